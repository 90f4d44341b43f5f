"""`--relabel-changed` cut off at every change, or losing requests and replies: no label of a former content."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.schedules.lossy_objects import Fault, LossyBackend, Memory, objects_over
from labeler.config.loading import JobConfig
from labeler.planning.plan import Plan, SegmentWriter, read_unit
from labeler.planning.planner import Planner
from labeler.planning.relabeling import replace_changed
from labeler.prompting.byte_tokenizer import ByteTokenizer
from labeler.prompting.prompts import ContextLimits, PromptBuilder
from logitstore.errors import ObjectStoreError
from logitstore.inputs.reading import iter_records
from logitstore.manifest.fields import InputInfo
from logitstore.manifest.reading import encode_manifest
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.labeler.planning.test_plan import job_for, records, write_input
from tests.logitstore.random_labels import make_manifest, make_sequence

NUM_RECORDS = 11
MANIFEST = make_manifest()


class _StoppedHereError(Exception):
    """The process ends at this change, made or not."""


class StoppingBackend(LossyBackend):
    """Ends the process at the change of a given number, before or after it takes effect."""

    def __init__(self, memory: Memory, stop_at: int, *, after: bool) -> None:
        super().__init__(memory, random.Random(0), 0.0)
        self._left, self._after = stop_at, after

    def _change(self, change: Callable[[], bool], share: float | None = None) -> bool:
        self._left -= 1
        if self._left > 0:
            return change()
        if self._left == 0 and self._after:
            change()
        raise _StoppedHereError


def content_of(response: str) -> dict[str, str]:
    return {"uid": response.split()[0], "prompt": "a question", "response": response}


def before_and_after() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    before = [content_of(f"r{i:02d} first") for i in range(NUM_RECORDS)]
    after = [content_of(f"r{i:02d} second, longer") if i in (1, 6, 10) else r for i, r in enumerate(before)]
    return before, after


def plan_and_replace(job: JobConfig, objects: Objects) -> int:
    """What a run with `--relabel-changed` does before it labels; how many records it replaced."""
    plan = Plan(objects)
    known = plan.known()
    builder = PromptBuilder(job, ByteTokenizer(512), ContextLimits(512, 4096))
    info = InputInfo(uri=job.input.uri, kind=job.input.kind, fields=job.input.field_names())
    planner = Planner(job, builder, info, known, SegmentWriter(objects, known), keep_changed=True)
    totals = planner.run(iter_records(job.input.uri), lambda _: None)
    store = LogitStore._begin(objects, MANIFEST)

    def uncommit(unit_ids: set[str]) -> set[str]:
        labeled = {entry.unit_id: entry.name for entry in store.shards() if entry.unit_id in unit_ids}
        return (unit_ids - labeled.keys()) | set(store.uncommit(labeled.values()) if labeled else [])

    replaced = replace_changed(objects, planner.changed, uncommit) if planner.changed else 0
    plan.finish_pass("f", totals, planner.rejects.content())
    return replaced


def texts_of(objects: Objects) -> dict[str, list[str]]:
    """By unit, the responses that the plan holds."""
    found: dict[str, list[str]] = {}
    for unit in Plan(objects).units():
        found[unit.unit_id] = []
        for record in read_unit(objects, unit):
            assert record.prompt.response_token_ids is not None
            text = bytes(int(i) for i in record.prompt.response_token_ids if i < 256).decode()
            found[unit.unit_id].append(text.removesuffix("<|end|>").strip())
    return found


def label_all(objects: Objects) -> None:
    """Commit the units that have no labels; each sequence is named by the response that was labeled."""
    store = LogitStore._begin(objects, MANIFEST)
    done = set(store.shards().unit_ids())
    for index, (unit_id, texts) in enumerate(texts_of(objects).items()):
        if unit_id not in done:
            sequences = [replace(make_sequence(f"s{index}"), record_id=text) for text in texts]
            store.commit_unit(unit_id, index, sequences, seconds=1.0, worker="w")


def check(objects: Objects, expected: list[str]) -> None:
    store = LogitStore._begin(objects, MANIFEST)
    assert sorted(sequence.record_id for sequence in store.iter_sequences()) == sorted(expected)
    assert sorted(text for texts in texts_of(objects).values() for text in texts) == sorted(expected)
    assert [str(problem) for problem in verify_store(store, grace_sec=-10).errors] == []


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    return job_for(tmp_path, "input.id=uid")


def labeled_before(job: JobConfig, folder: Path, memory: Memory) -> list[str]:
    """A store labeled from the first contents, the input edited since; the responses now."""
    before, after = before_and_after()
    write_input(folder, before)
    clean = objects_over(LossyBackend(memory, random.Random(0), 0.0))
    clean.put("manifest.json", encode_manifest(MANIFEST))
    plan_and_replace(job, clean)
    label_all(clean)
    check(clean, [record["response"] for record in before])
    write_input(folder, after)
    return [record["response"] for record in after]


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
def test_a_stop_at_every_change(
    tmp_path: Path, job: JobConfig, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr("labeler.planning.plan.SEGMENT_UNITS", 2)
    first = Memory()
    expected = labeled_before(job, tmp_path, first)
    stop_at, was_stopped = 0, True
    while was_stopped:
        stop_at, memory = stop_at + 1, Memory()
        memory.data, memory.changed_sec = dict(first.data), dict(first.changed_sec)
        was_stopped = False
        try:
            plan_and_replace(job, objects_over(StoppingBackend(memory, stop_at, after=after)))
        except _StoppedHereError:
            was_stopped = True
        clean = objects_over(LossyBackend(memory, random.Random(0), 0.0))
        if was_stopped and stop_at % 2:
            # The next run has no such flag: it labels what the plan holds, and the one after puts it right.
            label_all(clean)
        plan_and_replace(job, clean)
        label_all(clean)
        check(clean, expected)
    assert stop_at > 8, "so few changes are no relabeling"


@pytest.mark.parametrize("seed", range(12))
def test_lost_requests_and_replies(
    tmp_path: Path, job: JobConfig, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The index is compacted in the middle; every run that fails is repeated."""
    monkeypatch.setattr("labeler.planning.plan.SEGMENT_UNITS", 2)
    memory, rng = Memory(), random.Random(seed)
    expected = labeled_before(job, tmp_path, memory)

    def others_compact(fault: Fault) -> None:
        if rng.random() < 0.02:
            LogitStore._begin(clean, MANIFEST).compact()

    lossy = LossyBackend(memory, rng, 0.2, others_compact)
    clean = objects_over(LossyBackend(memory, rng, 0.0))
    for step in (plan_and_replace, lambda _, objects: label_all(objects)):
        for _ in range(200):
            try:
                step(job, objects_over(lossy))
                break
            except ObjectStoreError:
                continue
        else:
            pytest.fail("no run ever ends")
    assert lossy.num_faults
    check(clean, expected)
    assert plan_and_replace(job, clean) == 0


@pytest.mark.parametrize("seed", range(8))
def test_rejects_are_those_of_the_last_pass(tmp_path: Path, seed: int) -> None:
    """Each pass writes its list, then says where it is: whatever is lost, one whole list is read."""
    write_input(tmp_path, [*records(6), {"prompt": 3, "response": "x"}, "{"])
    memory, rng = Memory(), random.Random(seed)
    job = job_for(tmp_path)
    memory.data["manifest.json"] = encode_manifest(MANIFEST)
    memory.changed_sec["manifest.json"] = 0.0
    lossy = objects_over(LossyBackend(memory, rng, 0.3))
    clean = objects_over(LossyBackend(memory, rng, 0.0))
    num_done = 0
    for _ in range(60):
        try:
            plan_and_replace(job, lossy)
            num_done += 1
        except ObjectStoreError:
            pass
        seen = [reject.kind for reject in Plan(clean).rejects()]
        assert seen in ([], ["bad_type", "invalid_record"])
        assert seen or not num_done
    assert num_done
