"""Storage that fails for a while is used again, for a set time and not longer; a log never ends a job."""

import json

import pytest

from labeler import patience
from labeler.job.logs import JobLog
from labeler.patience import persistently
from labeler.planning.plan import Plan
from logitstore.errors import ObjectNotFoundError, ObjectStoreError, StoreExistsError
from logitstore.objects.opening import Objects


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_SEC", 0.01)


def failing(times, error):
    left = [error] * times

    def use():
        if left:
            raise left.pop()
        return "done"

    return use


def test_what_fails_is_tried_again_and_each_pause_is_told():
    pauses = []
    assert persistently(failing(3, ObjectStoreError("503")), 60, lambda: pauses.append(1)) == "done"
    assert len(pauses) == 3


def test_the_last_error_comes_out_when_the_time_is_up():
    pauses = []
    with pytest.raises(OSError, match="full"):
        persistently(failing(99, OSError("disk full")), 0.2, lambda: pauses.append(1))
    assert len(pauses) <= 4, "after 10, 20, 40 and 80 ms a pause of 160 would be too long"


@pytest.mark.parametrize("error", [ObjectNotFoundError("gone"), StoreExistsError("other"), ValueError("bug")])
def test_what_waiting_does_not_mend_is_raised_at_once(error):
    pauses = []
    with pytest.raises(type(error)):
        persistently(failing(1, error), 60, lambda: pauses.append(1))
    assert not pauses


def test_a_plan_read_from_failing_storage_loses_no_unit(tmp_path, monkeypatch):
    objects = Objects(tmp_path)
    segment = {
        "data": "plan/segments/d.units",
        "first_unit_index": 0,
        "units": [["u0", 0, 1, 1, 1]],
        "num_labels": 1,
        "ids": [0, 0],
        "prompts": [0, 0],
    }
    objects.put("plan/segments/000000.json", json.dumps(segment).encode())
    get, failures = Objects.get, [ObjectStoreError("503")] * 2

    def flaky(self, name, **options):
        if failures:
            raise failures.pop()
        return get(self, name, **options)

    monkeypatch.setattr(Objects, "get", flaky)
    assert [unit.unit_id for unit in Plan(objects).units(60)] == ["u0"]


def test_a_full_disk_costs_events_and_not_the_job(tmp_path):
    full = JobLog("/dev/full")
    full.write("leased", unit="u0")
    full.close()


def test_the_log_says_how_many_events_are_missing_and_keeps_its_lines_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JobLog(str(path))
    file = log._file

    class Torn:
        """Takes ten bytes of a line, then nothing, as a disk does that fills up."""

        room = 10

        def write(self, line):
            assert file is not None
            taken, self.room = line[: self.room], 0
            if not taken:
                raise OSError("No space left on device")
            return file.write(taken)

    log._file = Torn()  # type: ignore[assignment]
    log.write("first")
    log.write("second")
    log._file = file
    log.write("third")
    log.close()
    whole = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert [(event["event"], event["events_lost_before"]) for event in whole] == [("third", 2)]
