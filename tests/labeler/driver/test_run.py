"""The whole job on a real Ray cluster of its own, with the stand-in teacher."""

import json

import pytest

from labeler.__main__ import main
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore
from tests.labeler.jobs import (
    assert_exactly_once,
    labeled_ids,
    overrides_for,
    run_job,
    status_of,
    write_records,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A job of 100 records, two of them bad, run to its end."""
    folder = tmp_path_factory.mktemp("finished")
    write_records(folder / "in.jsonl", 60)
    with (folder / "in.jsonl").open("a") as file:
        file.write('{"uid": "x", "prompt": "no response"}\nnot json\n')
    result = run_job(overrides_for(folder, "limits.max_reject_share=0.1"))
    assert result.returncode == 0, result.stderr
    return folder, result


def test_every_record_is_labeled_once_by_two_actors(finished):
    folder, result = finished
    assert_exactly_once(folder, 60)
    store = LogitStore.open(folder / "store")
    assert len(store.shards()) == 8
    assert "60 sequences" in result.stdout
    assert "starting: 0/8 units" in result.stderr
    workers = {entry.worker for entry in store.shards()}
    assert workers <= {"worker-0.0", "worker-1.0"}


def test_rejects_are_in_one_file_with_line_and_reason(finished):
    folder, _ = finished
    lines = (folder / "store" / "rejects.jsonl").read_text().splitlines()
    rejects = [json.loads(line) for line in lines]
    assert [(reject["file"], reject["line"], reject["kind"]) for reject in rejects] == [
        ("in.jsonl", 61, "missing_field"),
        ("in.jsonl", 62, "invalid_record"),
    ]


def test_the_status_says_what_was_done(finished, capsys):
    folder, _ = finished
    assert main(["status", str(folder / "store"), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    store = LogitStore.open(folder / "store")
    assert status["state"] == "finished"
    assert (status["units_done"], status["units_total"], status["sequences"]) == (8, 8, 60)
    assert status["tokens"] == sum(entry.num_tokens for entry in store.shards())
    assert status["bytes"] == sum(entry.num_bytes for entry in store.shards())
    assert status["bytes_per_token"] == pytest.approx(status["bytes"] / status["rows"], abs=0.01)
    assert status["rejects_by_kind"] == {"missing_field": 1, "invalid_record": 1}
    assert status["cost"]["device_sec"] > 0
    assert main(["status", str(folder / "store")]) == 0
    assert "8/8 units" in capsys.readouterr().out


def test_the_log_tells_each_units_story(finished):
    folder, _ = finished
    (path,) = (folder / "store" / "logs").glob("*.jsonl")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    committed = [event for event in events if event["event"] == "committed"]
    units = {entry.unit_id for entry in LogitStore.open(folder / "store").shards()}
    assert {event["shard"]["unit_id"] for event in committed} == units
    assert {event["unit"] for event in events if event["event"] == "leased"} == units
    assert events[-1]["event"] == "ended"


def test_the_resolved_job_in_the_store_runs_again_and_finds_nothing_to_do(finished):
    folder, _ = finished
    before = LogitStore.open(folder / "store").digest
    assert main(["run", str(folder / "store" / "job.json"), "--quiet"]) == 0
    assert LogitStore.open(folder / "store").digest == before


def test_changed_settings_are_refused_with_the_difference(finished, capsys):
    folder, _ = finished
    changed = overrides_for(folder, "limits.max_reject_share=0.1", "labels.top_k=16")
    sets = [part for override in changed for part in ("--set", override)]
    assert main(["run", *sets, "--quiet"]) == 2
    assert "labels.top_k: 8 in the store, 16 now" in capsys.readouterr().err
    status = status_of(folder / "store")
    assert status is not None
    assert (status.state, status.units_done) == ("finished", 8)


def test_added_input_is_labeled_and_nothing_else(finished, tmp_path):
    folder, _ = finished
    before = {entry.unit_id: entry.name for entry in LogitStore.open(folder / "store").shards()}
    write_records(folder / "in.jsonl", 20, start=60)
    result = run_job(overrides_for(folder, "limits.max_reject_share=0.1", "workers.replicas=1"))
    assert result.returncode == 0, result.stderr
    after = {entry.unit_id: entry.name for entry in LogitStore.open(folder / "store").shards()}
    assert len(after) == 11
    assert {name: after[name] for name in before} == before
    assert len(labeled_ids(folder / "store")) == 80
    assert_exactly_once(folder, 80)
    rejects = Objects(folder / "store").get("rejects.jsonl").splitlines()
    assert len(rejects) == 2, "rejects are not repeated"


def test_the_store_has_shared_codebooks_and_reads_shards_from_before_and_after(finished):
    folder, _ = finished
    store = LogitStore.open(folder / "store")
    assert store.codebooks() is not None
    assert sum(1 for _ in store.iter_sequences()) == sum(entry.num_sequences for entry in store.shards())


def test_a_calibration_measures_the_teacher_and_leaves_nothing_behind(tmp_path, capsys):
    write_records(tmp_path / "in.jsonl", 60)
    slow = ("teacher.fake.seconds_per_token=0.001", "cost.per_core_hour=3600")
    overrides = overrides_for(tmp_path, *slow, "input.slice='1/2'")
    sets = [part for override in overrides for part in ("--set", override)]
    assert main(["run", *sets, "--dry-run", "--calibrate", "16", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)["plan"]["calibration"]
    assert 20 < estimate["tokens_per_second_per_replica"] <= 1000, "a token takes a millisecond"
    assert estimate["records_tried"] == 16, "of the slice's 30"
    assert 0.9 < estimate["expected_tokens"] / 2212 < 1.1
    assert estimate["cost"]["compute"] == pytest.approx(estimate["cost"]["device_sec"])
    assert not (tmp_path / "store").exists()
