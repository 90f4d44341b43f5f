"""A record edited in place is seen, by a job and by the verifier, and can be labeled again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import logitstore.__main__ as store_command
from labeler.config.loading import load_job
from labeler.driver.plan_pass import contents_in_words
from labeler.planning.plan import Plan, PlanTotals, SegmentWriter, read_unit
from labeler.planning.planner import Planner
from labeler.planning.relabeling import replace_changed
from labeler.prompting.byte_tokenizer import ByteTokenizer
from labeler.prompting.prompts import ContextLimits, PromptBuilder
from logitstore.inputs.proofs import read_proofs
from logitstore.inputs.reading import iter_records
from logitstore.job_objects import PLAN_SEGMENTS_PREFIX
from logitstore.manifest.fields import InputInfo
from logitstore.objects.opening import Objects

INFO = {"prompt": "prompt", "response": "response", "id": "uid"}


def write(path: Path, contents: dict[str, str]) -> None:
    rows = [{"uid": uid, "prompt": f"question {uid}", "response": text} for uid, text in contents.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def plan_pass(folder: Path, *, keep_changed: bool = False) -> tuple[Planner, PlanTotals]:
    settings = ["teacher.engine=fake", f"input.uri='{folder}/in.jsonl'", "input.kind=prompt_response"]
    settings += [
        "input.id=uid",
        f"output.uri='{folder}/store'",
        "output.unit_size=2",
        "limits.max_reject_share=1",
    ]
    job = load_job(None, settings, {})
    objects = Objects(str(folder / "store"))
    known = Plan(objects).known()
    builder = PromptBuilder(job, ByteTokenizer(512), ContextLimits(512, 4096))
    info = InputInfo(uri=job.input.uri, kind=job.input.kind, fields=job.input.field_names())
    planner = Planner(job, builder, info, known, SegmentWriter(objects, known), keep_changed=keep_changed)
    totals = planner.run(iter_records(job.input.uri), lambda _: None)
    Plan(objects).finish_pass("f", totals, b"")
    return planner, totals


def planned(folder: Path) -> dict[str, str]:
    objects = Objects(str(folder / "store"))
    found = {}
    for unit in Plan(objects).units():
        for record in read_unit(objects, unit):
            response = record.prompt.response_token_ids
            assert response is not None
            found[record.prompt.record_id] = bytes(int(i) for i in response if i < 256).decode()
    return found


ROWS = {"a": "one", "b": "two", "c": "three", "d": "four", "e": "five"}


def test_changed_records_are_counted_and_told(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", ROWS)
    _, totals = plan_pass(tmp_path)
    assert (totals.num_planned, totals.num_changed) == (5, 0)
    _, totals = plan_pass(tmp_path)
    assert (totals.num_changed, contents_in_words(totals)) == (0, [])
    write(tmp_path / "in.jsonl", ROWS | {"b": "TWO", "d": "FOUR", "f": "six"})
    _, totals = plan_pass(tmp_path)
    assert (totals.num_planned, totals.num_changed) == (6, 2)
    assert "2 records differ from what was planned or labeled" in contents_in_words(totals)[0]
    assert Plan(Objects(str(tmp_path / "store"))).totals() == totals


def test_contents_that_changed_places_are_changed(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", ROWS)
    plan_pass(tmp_path)
    write(tmp_path / "in.jsonl", ROWS | {"a": "two", "b": "one"})
    assert plan_pass(tmp_path)[1].num_changed == 2


def test_a_changed_record_takes_its_place_in_its_unit(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", ROWS)
    plan_pass(tmp_path)
    objects = Objects(str(tmp_path / "store"))
    before = list(Plan(objects).units())
    changes = {"b": "another length", "e": "five!"}
    write(tmp_path / "in.jsonl", ROWS | changes)
    planner, totals = plan_pass(tmp_path, keep_changed=True)
    assert totals.num_changed == 2
    asked: list[set[str]] = []

    def uncommit(unit_ids: set[str]) -> set[str]:
        asked.append(unit_ids)
        return unit_ids

    assert replace_changed(objects, planner.changed, uncommit) == 2
    # Once more when the former records are gone: what a former driver's actor committed meanwhile.
    assert asked == [{before[0].unit_id, before[2].unit_id}] * 2
    after = list(Plan(objects).units())
    assert [(u.unit_id, u.unit_index, u.num_records) for u in after] == [
        (u.unit_id, u.unit_index, u.num_records) for u in before
    ]
    texts = planned(tmp_path)
    assert {uid: texts[uid].removesuffix("<|end|>").strip() for uid in texts} == ROWS | changes
    assert plan_pass(tmp_path)[1].num_changed == 0
    names = [name for name in objects.list(PLAN_SEGMENTS_PREFIX) if name.endswith(".units")]
    assert len(names) == 1


def test_a_unit_whose_labels_stay_keeps_its_records(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", ROWS)
    plan_pass(tmp_path)
    write(tmp_path / "in.jsonl", ROWS | {"b": "TWO"})
    planner, _ = plan_pass(tmp_path, keep_changed=True)
    objects = Objects(str(tmp_path / "store"))
    assert replace_changed(objects, planner.changed, lambda unit_ids: set()) == 0
    assert planned(tmp_path)["b"].startswith("two")
    assert plan_pass(tmp_path)[1].num_changed == 1


def test_a_plan_of_an_earlier_version_has_no_proofs_and_says_so(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", ROWS)
    plan_pass(tmp_path)
    segment = tmp_path / "store/plan/segments/000000.json"
    content = json.loads(segment.read_text())
    del content["proofs"]
    segment.write_text(json.dumps(content))
    write(tmp_path / "in.jsonl", ROWS | {"b": "TWO"})
    _, totals = plan_pass(tmp_path)
    assert (totals.num_changed, totals.num_unproven) == (0, 5)
    proofs = read_proofs(Objects(str(tmp_path / "store")))
    assert proofs is not None
    assert (len(proofs.proofs), len(proofs.unproven)) == (0, 5)


def test_the_verifier_compares_contents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    from tests.golden.test_fb88290 import GOLDEN

    shutil.copytree(GOLDEN, tmp_path / "job")
    store = str(tmp_path / "job/store")
    lines = (tmp_path / "job/input.jsonl").read_text().splitlines()
    rejects = lines[24]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines[:15]]) + "\n")
    # The plan of that version, with the proofs that this one keeps.
    from logitstore.inputs.identity import digest_of
    from logitstore.inputs.proofs import proof_of

    info = InputInfo("in.jsonl", "prompt_response", INFO)
    proofs = b"".join(
        proof_of(digest_of(json.loads(line)["uid"]), json.loads(line), info) for line in lines[:24]
    )
    segment = tmp_path / "job/store/plan/segments/000000.json"
    content = json.loads(segment.read_text())
    data = tmp_path / "job/store" / content["data"]
    start = data.stat().st_size
    data.write_bytes(data.read_bytes() + proofs)
    segment.write_text(json.dumps(content | {"proofs": [start, start + len(proofs)]}))
    (tmp_path / "same.jsonl").write_text("\n".join([*lines[:15], *[""] * 9, rejects]))
    store_command.main(["verify", store, "--against", str(tmp_path / "same.jsonl")])
    assert "content_changed" not in capsys.readouterr().out
    lines[3] = lines[3].replace("It is 6.", "It is 7.")
    lines[4], lines[5] = lines[4].replace("r04", "r05"), lines[5].replace("r05", "r04")
    (tmp_path / "edited.jsonl").write_text("\n".join([*lines[:15], *[""] * 9, rejects]))
    assert store_command.main(["verify", store, "--against", str(tmp_path / "edited.jsonl")]) == 1
    out = capsys.readouterr().out
    assert out.count("[content_changed]") == 3
    assert "record 'r03' is not what was labeled" in out


def test_a_store_without_proofs_says_what_was_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.golden.test_fb88290 import GOLDEN

    store_command.main(["verify", str(GOLDEN / "store"), "--against", str(GOLDEN / "input.jsonl")])
    assert "15 records compared by id alone" in capsys.readouterr().out


def test_proofs_are_found_among_many() -> None:
    from logitstore.inputs.proofs import PlannedProofs

    values = np.frombuffer(bytes(range(256)) * 16, "V16")[:16]
    found = PlannedProofs(np.unique(values), np.unique(values[:0]))
    assert found.held(values).all()
    assert not found.unknown(values).any()
