"""The unit plan: what goes into units, what is rejected, and that it is decided once and only added to."""

import gzip
import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from labeler.config.loading import identity, load_job
from labeler.errors import OtherSettingsError, PlanTakenError, TooManyRejectsError
from labeler.planning.digests import DigestSet, content_digest
from labeler.planning.plan import Plan, PlanTotals, SegmentWriter, read_unit
from labeler.planning.planner import Planner
from labeler.prompting.byte_tokenizer import ByteTokenizer
from labeler.prompting.prompts import ContextLimits, PromptBuilder
from logitstore.inputs.reading import iter_records
from logitstore.manifest.fields import InputInfo
from logitstore.objects.opening import Objects


def job_for(tmp_path, *overrides, kind="prompt_response"):
    base = [
        "teacher.engine=fake",
        f"input.uri='{tmp_path}/in.jsonl'",
        f"input.kind={kind}",
        f"output.uri='{tmp_path}/store'",
        "output.unit_size=4",
        "limits.max_reject_share=1",
    ]
    return load_job(None, [*base, *overrides], {})


def records(count, start=0):
    return [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(start, start + count)]


def write_input(tmp_path, items):
    lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")


def run_pass(job, plan_objects, writer=True):
    plan = Plan(plan_objects)
    known = plan.known()
    builder = PromptBuilder(job, ByteTokenizer(512), ContextLimits(512, job.teacher.max_model_len or 4096))
    info = InputInfo(uri=job.input.uri, kind=job.input.kind, fields=job.input.field_names())
    segment_writer = SegmentWriter(plan_objects, known) if writer else None
    planner = Planner(job, builder, info, known, segment_writer)
    raw = islice(iter_records(job.input.uri), job.input.limit)
    totals = planner.run(raw, lambda _: None)
    if writer:
        plan.finish_pass(str(totals.num_records), totals, planner.rejects.content())
    return plan, totals


def planned_ids(objects, plan):
    return [record.prompt.record_id for unit in plan.units() for record in read_unit(objects, unit)]


def test_units_hold_every_record_once_in_order(tmp_path):
    write_input(tmp_path, [{**record, "uid": i} for i, record in enumerate(records(10))])
    job, objects = job_for(tmp_path, "input.id=uid"), Objects(tmp_path / "store")
    plan, totals = run_pass(job, objects)
    units = list(plan.units())
    assert [unit.num_records for unit in units] == [4, 4, 2]
    assert [unit.unit_index for unit in units] == [0, 1, 2]
    assert planned_ids(objects, plan) == [str(i) for i in range(10)]
    assert (totals.num_records, totals.num_planned, totals.num_units) == (10, 10, 3)
    first = read_unit(objects, units[0])[0]
    assert (first.file, first.line) == ("in.jsonl", 1)
    assert ByteTokenizer(512).decode(first.prompt.response_token_ids.tolist()) == "answer 0<|end|>"  # type: ignore[union-attr]
    assert totals.num_tokens == sum(unit.num_tokens for unit in units)
    assert totals.num_labels == sum(len("answer 0") + 1 for _ in range(10))


def test_the_same_input_gives_the_same_plan(tmp_path):
    write_input(tmp_path, records(10))
    job = job_for(tmp_path)
    first, _ = run_pass(job, Objects(tmp_path / "a"))
    second, _ = run_pass(job, Objects(tmp_path / "b"))
    assert [unit.unit_id for unit in first.units()] == [unit.unit_id for unit in second.units()]
    assert len({unit.unit_id for unit in first.units()}) == 3


def test_long_records_make_smaller_units(tmp_path):
    write_input(tmp_path, records(9))
    job = job_for(tmp_path, "output.unit_tokens=150")
    plan, _ = run_pass(job, Objects(tmp_path / "store"))
    sizes = [(unit.num_records, unit.num_tokens) for unit in plan.units()]
    assert sum(count for count, _ in sizes) == 9
    assert all(tokens <= 150 for _, tokens in sizes)
    assert max(count for count, _ in sizes) < 4


def test_input_added_later_makes_new_units_and_leaves_the_old(tmp_path):
    write_input(tmp_path, records(6))
    job, objects = job_for(tmp_path), Objects(tmp_path / "store")
    plan, _ = run_pass(job, objects)
    before = list(plan.units())
    write_input(tmp_path, records(3, start=100) + records(6))
    plan, totals = run_pass(job, objects)
    after = list(plan.units())
    assert after[:2] == before
    assert [unit.num_records for unit in after[2:]] == [3]
    assert after[2].unit_index == 2
    assert len(set(planned_ids(objects, plan))) == 9
    assert (totals.num_records, totals.num_planned, totals.num_units, totals.num_rejects) == (9, 9, 3, 0)
    assert totals.num_tokens == sum(unit.num_tokens for unit in after)
    _, again = run_pass(job, objects)
    assert again == totals


def test_a_pass_cut_short_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("labeler.planning.plan.SEGMENT_UNITS", 2)
    write_input(tmp_path, records(20))
    job, objects = job_for(tmp_path), Objects(tmp_path / "store")
    whole, _ = run_pass(job, Objects(tmp_path / "whole"))
    run_pass(job_for(tmp_path, "input.limit=16"), objects)
    assert len(objects.list("plan/segments/")) == 4
    plan, _ = run_pass(job, objects)
    assert [unit.unit_id for unit in plan.units()] == [unit.unit_id for unit in whole.units()]


def test_bad_records_are_listed_with_file_line_and_reason(tmp_path):
    good = records(4)
    items = [
        "{not json",
        good[0] | {"uid": 0},
        {"prompt": "x", "uid": 1},
        good[1] | {"uid": 2},
        good[0] | {"uid": 0},
        '"text"',
        {"prompt": "", "response": "x", "uid": 3},
    ]
    write_input(tmp_path, items)
    job, objects = job_for(tmp_path, "teacher.max_model_len=200", "input.id=uid"), Objects(tmp_path / "store")
    plan, totals = run_pass(job, objects)
    found = {(reject.line, reject.kind) for reject in plan.rejects()}
    assert found == {
        (1, "invalid_record"),
        (3, "missing_field"),
        (5, "duplicate_id"),
        (6, "invalid_record"),
        (7, "empty"),
    }
    assert totals.rejects_by_kind == Counter(kind for _, kind in found)
    assert all(reject.file == "in.jsonl" and len(reject.reason) > 20 for reject in plan.rejects())
    assert len(planned_ids(objects, plan)) == 2


def test_several_records_without_the_field_are_each_that_and_no_duplicates(tmp_path):
    write_input(tmp_path, [{"q": 1}, {"q": 2}, *records(2)])
    plan, totals = run_pass(job_for(tmp_path), Objects(tmp_path / "store"))
    assert totals.rejects_by_kind == {"missing_field": 2}
    assert [reject.line for reject in plan.rejects()] == [1, 2]


def test_repeated_prompts_are_dropped_by_configuration_across_passes(tmp_path):
    items = [{"prompt": "a", "uid": "1"}, {"prompt": "b", "uid": "2"}, {"prompt": "a", "uid": "3"}]
    write_input(tmp_path, items)
    overrides = ("labels.mode=generate", "input.id=uid", "filters.duplicate_prompts=drop")
    job, objects = job_for(tmp_path, *overrides, kind="prompt"), Objects(tmp_path / "store")
    plan, _ = run_pass(job, objects)
    assert [(reject.record_id, reject.kind) for reject in plan.rejects()] == [("3", "duplicate_prompt")]
    write_input(tmp_path, [*items, {"prompt": "b", "uid": "4"}, {"prompt": "c", "uid": "5"}])
    plan, _ = run_pass(job, objects)
    assert planned_ids(objects, plan) == ["1", "2", "5"]
    assert {reject.record_id for reject in plan.rejects()} == {"3", "4"}


def test_too_many_rejects_stop_the_job_with_examples(tmp_path):
    write_input(tmp_path, [{"q": i} for i in range(3)] + records(27))
    job = job_for(tmp_path, "limits.max_reject_share=0.05")
    with pytest.raises(TooManyRejectsError) as caught:
        run_pass(job, Objects(tmp_path / "store"))
    message = str(caught.value)
    assert "3 of 30 records" in message
    assert "3 missing_field" in message
    assert "in.jsonl:1: field 'prompt' is missing" in message
    assert "limits.max_reject_share" in message
    run_pass(job_for(tmp_path, "limits.max_reject_share=0.1"), Objects(tmp_path / "other"))


def test_one_bad_record_of_a_few_is_no_stop(tmp_path):
    write_input(tmp_path, [{"q": 1}, *records(3)])
    job = job_for(tmp_path, "limits.max_reject_share=0.05")
    _, totals = run_pass(job, Objects(tmp_path / "store"))
    assert totals.num_planned == 3


def test_other_settings_are_refused_once_something_is_labeled(tmp_path):
    write_input(tmp_path, records(2))
    objects = Objects(tmp_path / "store")
    plan, _ = run_pass(job_for(tmp_path), objects)
    plan.claim(identity(job_for(tmp_path)), {}, has_manifest=False, num_labeled=0)
    plan.claim(identity(job_for(tmp_path)), {}, has_manifest=True, num_labeled=1)
    changed = identity(job_for(tmp_path, "labels.top_k=16"))
    with pytest.raises(OtherSettingsError, match=r"labels\.top_k: 64 in the store, 16 now"):
        plan.claim(changed, {}, has_manifest=True, num_labeled=1)
    plan.claim(changed, {}, has_manifest=False, num_labeled=0)
    assert list(plan.units()) == []
    plan.claim(changed, {}, has_manifest=True, num_labeled=1)


def test_a_pass_leaves_the_rejects_of_no_earlier_one(tmp_path):
    """Their reasons quote records."""
    objects, totals = Objects(tmp_path / "store"), PlanTotals(1, 0, 0, 0, 0, {"empty": 1})
    line = b'{"file": "a", "line": 1, "record_id": null, "reason": "r", "kind": "empty"}\n'
    for number in range(3):
        Plan(objects).finish_pass(str(number), totals, line)
        assert len([name for name in objects.list("plan/") if "rejects" in name]) == 1
        assert [reject.kind for reject in Plan(objects).rejects()] == ["empty"]
    Plan(objects).finish_pass("without", totals, b"")
    assert [name for name in objects.list("plan/") if "rejects" in name] == []


def test_a_segment_written_by_another_driver_stops_this_one(tmp_path):
    write_input(tmp_path, records(2))
    objects = Objects(tmp_path / "store")
    job = job_for(tmp_path)
    late = SegmentWriter(objects, Plan(objects).known())
    run_pass(job, objects)
    late.add("0123", [], 0, b"", b"", b"")
    with pytest.raises(PlanTakenError, match="another driver"):
        late.flush()


def test_a_dry_run_counts_without_writing(tmp_path):
    write_input(tmp_path, records(10))
    objects = Objects(tmp_path / "store")
    _, totals = run_pass(job_for(tmp_path), objects, writer=False)
    assert (totals.num_planned, totals.num_units) == (10, 3)
    assert objects.list() == []


def test_compressed_input_makes_the_same_units(tmp_path):
    write_input(tmp_path, records(6))
    plain, _ = run_pass(job_for(tmp_path), Objects(tmp_path / "a"))
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "in.jsonl").read_bytes()))
    job = job_for(tmp_path, f"input.uri='{packed}'")
    zipped, _ = run_pass(job, Objects(tmp_path / "b"))
    assert [unit.unit_id for unit in plain.units()] == [unit.unit_id for unit in zipped.units()]


def test_a_digest_set_finds_members_in_recent_and_old_runs():
    members = DigestSet(recent_limit=7)
    names = [content_digest(str(i).encode()) for i in range(100)]
    assert all(members.add(name) for name in names)
    assert not any(members.add(name) for name in names)
    assert len(members) == 100
    assert content_digest(b"other") not in members
    assert sum(name in members for name in names) == 100
    sizes = [len(run) for run in members._runs]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= np.log2(100)


@pytest.mark.parametrize(
    ("action", "planned", "kinds"), [("keep", 30, {}), ("drop", 10, {"duplicate_prompt": 20})]
)
def test_equal_records_without_ids_never_stop_a_job(tmp_path, action, planned, kinds):
    lines = [json.dumps({"prompt": f"question {i % 10}"}) for i in range(30)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    base = ["teacher.engine=fake", f"input.uri='{tmp_path}/in.jsonl'", "output.uri=out", "input.kind=prompt"]
    job = load_job(None, [*base, "labels.mode=generate", f"filters.duplicate_prompts={action}"], {})
    info = InputInfo(uri=job.input.uri, kind="prompt", fields={"prompt": "prompt"})
    objects = Objects(tmp_path / "store")
    for _ in range(2):
        # The second pass finds every record planned already.
        known = Plan(objects).known()
        builder = PromptBuilder(job, ByteTokenizer(512), ContextLimits(512, 4096))
        planner = Planner(job, builder, info, known, SegmentWriter(objects, known))
        totals = planner.run(iter_records(job.input.uri), lambda _: None)
        assert (totals.num_planned, totals.rejects_by_kind) == (planned, kinds)
    names = [r.prompt.record_id for unit in Plan(objects).units() for r in read_unit(objects, unit)]
    assert len(set(names)) == planned
