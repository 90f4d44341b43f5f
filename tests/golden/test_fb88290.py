"""A job that the version fb88290 began and that was stopped: later versions read, verify and finish it.

`fb88290/job` is what `python -m labeler run job.toml` of that version left after SIGTERM at 5 of 8 units.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import labeler.__main__ as labeler_command
import logitstore.__main__ as store_command
from labeler.config.loading import identity, load_job
from labeler.job.driver_lease import present_holder
from labeler.job.status import read_status
from labeler.planning.plan import Plan, read_unit
from labeler.planning.provenance import provenance_of
from labeler.prompting.tokenization import load_tokenizer
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore

GOLDEN = Path(__file__).parent / "fb88290" / "job"
NUM_RECORDS, NUM_LABELED = 24, 15


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the job, from whose folder commands run.

    A plan names its input by absolute path, which is the one thing that is written anew.
    """
    folder = tmp_path / "job"
    shutil.copytree(GOLDEN, folder)
    head = folder / "store/plan/head.json"
    head.write_text(head.read_text().replace("/tmp/golden/input.jsonl", str(folder / "input.jsonl")))
    monkeypatch.chdir(folder)
    return folder


def test_the_store_is_read_and_verified(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sequences = list(LogitStore.open("store").iter_sequences())
    assert [sequence.record_id for sequence in sequences] == [f"r{i:02d}" for i in range(NUM_LABELED)]
    assert sum(len(sequence.rows.count_N) for sequence in sequences) == 145
    assert store_command.main(["verify", "store"]) == 0
    assert "no errors" in capsys.readouterr().out


def test_the_job_objects_are_read(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = Objects("store")
    assert present_holder(objects) is None
    plan = Plan(objects)
    totals = plan.totals()
    assert totals is not None
    assert (totals.num_planned, totals.num_units, totals.rejects_by_kind) == (24, 8, {"bad_type": 1})
    records = [record for unit in plan.units() for record in read_unit(objects, unit)]
    assert [record.prompt.record_id for record in records] == [f"r{i:02d}" for i in range(NUM_RECORDS)]
    assert [reject.record_id for reject in plan.rejects()] == ["broken"]
    status = read_status("store")
    assert (status.state, status.units_done, status.units_total) == ("stopped", 5, 8)
    assert labeler_command.main(["status", "store"]) == 0
    assert "5/8 units" in capsys.readouterr().out


def test_the_plan_is_that_of_the_same_job_now(job: Path) -> None:
    for source in ("job.toml", "store/job.json"):
        settings = load_job(source, [], {})
        tokenizer = load_tokenizer(settings.teacher, settings.input, settings.sampling)
        made_from = provenance_of(settings, tokenizer)
        plan = Plan(Objects("store"))
        assert plan.claim(identity(settings), made_from, has_manifest=True, num_labeled=5) == ""
    known = plan.known()
    assert (len(known.ids), len(known.unproven), len(known.proofs)) == (NUM_RECORDS, NUM_RECORDS, 0)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_job_is_finished(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in (job / "store/shards").iterdir()}
    assert labeler_command.main(["run", "job.toml"]) == 0
    ids = [sequence.record_id for sequence in LogitStore.open("store").iter_sequences()]
    assert ids == [f"r{i:02d}" for i in range(NUM_RECORDS)]
    assert {name: (job / "store/shards" / name).read_bytes() for name in before} == before
    capsys.readouterr()
    assert store_command.main(["verify", "store", "--against", "input.jsonl"]) == 0
    assert json.loads((job / "store/status.json").read_text())["state"] == "finished"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_job_is_finished_from_its_own_resolved_settings(job: Path) -> None:
    shutil.copyfile("store/job.json", "again.json")
    assert labeler_command.main(["run", "again.json"]) == 0
    assert len(list(LogitStore.open("store").iter_sequences())) == NUM_RECORDS
