"""An actor of a former driver, still at work while another driver has changed records labeled again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from labeler.config.loading import load_job
from labeler.driver.plan_pass import new_planner, read_input
from labeler.errors import StaleLeaseError
from labeler.planning.plan import Plan, SegmentWriter
from labeler.planning.preflight import prepare
from labeler.planning.relabeling import replace_changed
from labeler.records import Lease
from labeler.worker.actor import Worker
from logitstore.store import LogitStore
from tests.labeler.jobs import label_and_commit, overrides_for
from tests.labeler.whole_jobs.test_relabeling import text_of, write
from tests.labeler.whole_jobs.test_storage_faults import started_worker

TEXTS = [f"answer {i}" for i in range(4)]


class Case:
    """A planned unit on a worker, and an input that has changed since."""

    def __init__(self, folder: Path) -> None:
        write(folder / "in.jsonl", TEXTS)
        self.folder = folder
        self.job = load_job(None, overrides_for(folder, "output.unit_size=4", "output.retry_sec=0"), {})
        self.worker, units = started_worker(self.job)
        self.unit = units[0]
        write(folder / "in.jsonl", ["quite another answer", *TEXTS[1:]])

    def relabel(self) -> int:
        """What another driver's run with `--relabel-changed` does."""
        prepared = prepare(self.job)
        known = Plan(prepared.objects).known()
        writer = SegmentWriter(prepared.objects, known)
        planner = new_planner(self.job, prepared, known, writer, keep_changed=True)
        planner.run(read_input(self.job), lambda _: None)
        store = LogitStore.open(str(self.folder / "store"), writing=True)

        def uncommit(unit_ids: set[str]) -> set[str]:
            store.refresh()
            labeled = {entry.unit_id: entry.name for entry in store.shards() if entry.unit_id in unit_ids}
            return (unit_ids - labeled.keys()) | set(store.uncommit(labeled.values()) if labeled else [])

        return replace_changed(prepared.objects, planner.changed, uncommit)

    def meanwhile(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
        """Let `act` happen when the worker's engine has labeled the unit and nothing is committed yet."""
        finish = Worker._finish

        def acted(worker: Worker, *args: object) -> object:
            act()
            return finish(worker, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Worker, "_finish", acted)


def test_labels_of_former_records_are_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path)
    with monkeypatch.context() as patch:
        case.meanwhile(patch, case.relabel)
        with pytest.raises(StaleLeaseError, match="were replaced while they were labeled"):
            case.worker.label_unit(Lease(0, case.unit, "w"))
    assert len(LogitStore.open(str(tmp_path / "store")).shards()) == 0
    (unit,) = Plan(prepare(case.job).objects).units()
    assert unit.unit_id == case.unit.unit_id
    assert label_and_commit(case.worker, Lease(1, unit, "w")).won
    assert "quite another answer" in text_of(tmp_path / "store", "0")


def test_what_is_committed_while_records_are_replaced_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former actor is quicker than the replacement: between the first un-committing and the new records."""
    case = Case(tmp_path)
    from labeler.planning import relabeling

    replace_in, committed = relabeling._replace_in, []

    def late(*args: object) -> int:
        committed.append(label_and_commit(case.worker, Lease(0, case.unit, "w")).won)
        return replace_in(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(relabeling, "_replace_in", late)
    assert case.relabel() == 1
    assert committed == [True]
    assert len(LogitStore.open(str(tmp_path / "store")).shards()) == 0
    (unit,) = Plan(prepare(case.job).objects).units()
    assert label_and_commit(case.worker, Lease(1, unit, "w")).won
    assert "quite another answer" in text_of(tmp_path / "store", "0")
    ids = [json.loads(line)["uid"] for line in (tmp_path / "in.jsonl").read_text().splitlines()]
    assert [one.record_id for one in LogitStore.open(str(tmp_path / "store")).iter_sequences()] == ids
