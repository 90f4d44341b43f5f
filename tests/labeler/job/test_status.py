"""The driver's account, the rate, and what a status says of a store whose driver is gone."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest

from labeler.__main__ import main
from labeler.config.loading import identity, load_job
from labeler.driver.run import RunOptions, run
from labeler.errors import LeaseLostError, OtherSettingsError
from labeler.job.driver_lease import DriverLease, Holder, acquire
from labeler.job.status import Tally, read_status, snapshot, utc_now
from labeler.job.status_writer import StatusWriter, write_status
from labeler.planning.plan import Plan
from labeler.planning.preflight import prepare
from labeler.planning.provenance import provenance_of
from labeler.records import Committed, Heartbeat
from logitstore.errors import StoreNotFoundError
from logitstore.job_objects import JOB_NAME, LEASE_NAME, STATUS_NAME, JobState
from logitstore.job_parsing import parse_status
from logitstore.manifest.fields import ShardEntry
from logitstore.objects.opening import Objects
from logitstore.records import Reject
from logitstore.store import LogitStore
from tests.labeler.jobs import overrides_for, write_records
from tests.logitstore.random_labels import make_manifest


def ignore(_):
    pass


def entry(index, tokens=100, rows=40, num_bytes=4000):
    return ShardEntry(f"u{index}", index, f"shards/{index}", 8, rows, tokens, num_bytes, "", 0, 1.0, "w")


def result(index, **fields):
    return Committed(index, entry(index), True, **fields)


def beat(tokens):
    return Heartbeat(progress=tokens, in_engine=(), num_sequences=1, num_tokens=tokens)


def status_from(tally, state: JobState = "running"):
    return snapshot(tally, state=state, started=utc_now())


def test_a_refused_command_leaves_the_status_of_the_job_that_made_the_store(tmp_path):
    """A command with another teacher made a finished store's job "failed: 1/0 units" for everybody."""
    write_records(tmp_path / "in.jsonl", 4)
    mine, other = (load_job(None, overrides_for(tmp_path, f"labels.top_k={k}"), {}) for k in (8, 16))
    prepared = prepare(mine)
    made_from = provenance_of(mine, prepared.tokenizer)
    Plan(prepared.objects).claim(identity(mine), made_from, has_manifest=False, num_labeled=0)
    LogitStore.create(tmp_path / "store", make_manifest())
    status = status_from(Tally(units_total=1), "finished").as_json().encode()
    prepared.objects.put(STATUS_NAME, status)
    with pytest.raises(OtherSettingsError, match=r"labels\.top_k: 8 in the store, 16 now"):
        run(other, RunOptions(quiet=True))
    assert prepared.objects.get(STATUS_NAME) == status
    assert not prepared.objects.exists(JOB_NAME)


def test_units_of_earlier_runs_count_as_done_but_not_as_this_runs_work():
    tally = Tally(units_total=4)
    reject = Reject("in.jsonl", 1, "r", "it is long", "too_long")
    tally.count_stored(entry(0))
    tally.count_result(result(1, rejects=(reject, reject), filtered={"truncated": 3}, engine_sec=2.0))
    assert (tally.units_done, tally.units_of_run, tally.tokens, tally.rows) == (2, 1, 200, 80)
    assert tally.bytes_per_token == 100
    status = status_from(tally)
    assert (status.rejects, status.filtered, status.engine_sec) == (2, {"truncated": 3}, 2.0)


def test_the_rate_is_that_of_the_last_half_minute_over_all_workers():
    tally = Tally(units_total=10, tokens_total=1000)
    tally.heard("a", beat(0), 0.0)
    tally.heard("b", beat(0), 0.0)
    for second in range(1, 101):
        tally.heard("a", beat(10 * second), float(second))
        tally.heard("b", beat(5 * second), float(second))
    assert tally.tokens_per_second == pytest.approx(15, rel=0.05)
    for second in range(101, 140):
        tally.heard("a", beat(1000), float(second))
    assert tally.tokens_per_second == 0
    assert tally.seconds_left is None


def test_tokens_of_a_worker_that_died_stay_counted():
    tally = Tally()
    tally.heard("a.0", beat(70), 1.0)
    tally.forget("a.0")
    tally.heard("a.1", beat(5), 2.0)
    assert tally.tokens_seen == 75


def test_time_left_is_what_remains_at_the_present_rate():
    tally = Tally(units_total=4, tokens_total=400)
    tally.heard("a", beat(0), 0.0)
    tally.heard("a", beat(250), 25.0)
    assert tally.seconds_left == pytest.approx(40)
    tally.count_result(result(0))
    assert tally.seconds_left == pytest.approx(30)


def test_no_time_is_guessed_from_the_first_seconds_of_an_engine():
    """The demo began with "57:26 left", of three minutes: nothing was finished yet."""
    tally = Tally(units_total=4, tokens_total=400)
    tally.heard("a", beat(0), 0.0)
    tally.heard("a", beat(1), 10.0)
    assert tally.seconds_left is None
    tally.count_result(result(0))
    assert tally.seconds_left is not None, "a unit that is done tells more"


def test_only_the_latest_causes_are_kept_and_all_are_counted():
    tally = Tally()
    for number in range(25):
        tally.count_failure("engine_died", f"reason {number}")
    status = status_from(tally)
    assert (status.failures, status.failures_by_kind) == (25, {"engine_died": 25})
    assert len(status.causes) == 10
    assert status.causes[-1] == "engine_died: reason 24"


def put_status(objects, holder):
    status = status_from(Tally(units_total=3, units_done=1))
    objects.put(STATUS_NAME, status.as_json().encode())
    objects.put(LEASE_NAME, json.dumps(asdict(holder)).encode())


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "running"),
        ({"process_start": "1"}, "interrupted"),
        ({"released": True}, "interrupted"),
        ({"machine": "elsewhere"}, "running"),
    ],
)
def test_a_status_says_so_when_its_driver_is_gone(tmp_path, changes, state):
    objects = Objects(tmp_path)
    put_status(objects, replace(Holder.here(30.0), **changes))
    status = read_status(str(tmp_path))
    assert status.state == state
    if state == "interrupted":
        assert "run the same command again" in status.message


@pytest.mark.parametrize("updated", ["2026-01-01T00:00:00+00:00", "2126-01-01T00:00:00+00:00"])
@pytest.mark.parametrize("is_renewed", [False, True])
def test_a_driver_elsewhere_is_watched_where_a_clock_is_wrong(tmp_path, updated, is_renewed):
    """A clock that is slow made a living driver "gone", and one that is fast a dead one living for as long."""
    objects = Objects(tmp_path)
    holder = replace(Holder.here(2.0), machine="elsewhere")
    put_status(objects, holder)
    document = json.loads(objects.get(STATUS_NAME))
    objects.put(STATUS_NAME, json.dumps({**document, "updated": updated}).encode())
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.05):
            objects.put(LEASE_NAME, json.dumps(asdict(replace(holder, renewed=str(time.time())))).encode())

    with ThreadPoolExecutor() as pool:
        if is_renewed:
            pool.submit(renew)
        state = read_status(str(tmp_path)).state
        ended.set()
    assert state == ("running" if is_renewed else "interrupted")


def test_a_driver_elsewhere_that_was_silent_is_not_watched_again(tmp_path, capsys):
    """`status` took 9 s without a word, each time that a page or a command asked."""
    objects = Objects(tmp_path)
    holder = replace(Holder.here(0.2), machine="elsewhere", host="node-7", process_id=41)
    put_status(objects, holder)
    document = json.loads(objects.get(STATUS_NAME))
    objects.put(STATUS_NAME, json.dumps({**document, "updated": "2026-01-01T00:00:00+00:00"}).encode())
    for times in (1, 0):
        assert main(["status", str(tmp_path)]) == 0
        shown = capsys.readouterr()
        assert shown.err.count("the store's driver was process 41 on node-7 (last sign of life") == times
        assert shown.out.startswith("interrupted: ")
    objects.put(LEASE_NAME, json.dumps(asdict(replace(holder, renewed="later"))).encode())
    watched = []
    assert read_status(str(tmp_path), on_wait=watched.append).state == "interrupted"
    assert len(watched) == 1, "it has renewed its lease since"


def test_no_store_is_an_error(tmp_path):
    with pytest.raises(StoreNotFoundError, match="no store lies at"):
        read_status(str(tmp_path))


def test_the_writer_ends_with_the_last_word(tmp_path):
    objects = Objects(tmp_path)
    writer = StatusWriter(objects, acquire(objects, 30.0, ignore))
    for done in range(50):
        writer.put(status_from(Tally(units_total=99, units_done=done)))
    writer.close(status_from(Tally(units_total=99, units_done=99), state="finished"))
    stored = json.loads(objects.get(STATUS_NAME))
    assert (stored["units_done"], stored["state"]) == (99, "finished")


def silent(lease):
    """As a driver that is suspended: it renews no more, and does not know of it."""
    lease._stop.set()
    lease._thread.join()


def test_a_driver_that_slept_through_its_term_leaves_the_status_of_its_successor(tmp_path):
    objects = Objects(tmp_path)
    asleep = acquire(objects, 0.3, ignore)
    writer = StatusWriter(objects, asleep)
    silent(asleep)
    successor = acquire(objects, 0.3, ignore)
    StatusWriter(objects, successor).close(status_from(Tally(), state="finished"))
    successor.release()
    writer.put(status_from(Tally()))
    deadline = time.monotonic() + 30
    while not asleep.is_lost:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    writer.close(status_from(Tally(), state="failed"))
    stored = parse_status(objects.get(STATUS_NAME))
    assert (stored.state, stored.driver) == ("finished", successor.owner)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_driver_that_falls_asleep_in_the_middle_of_a_write_changes_nothing(tmp_path, is_first):
    """Between its look at the lease and the write itself another driver begins and finishes."""
    objects = Objects(tmp_path)
    lease = acquire(objects, 0.3, ignore)
    if not is_first:
        assert write_status(objects, lease, status_from(Tally()))

    def fall_asleep():
        held = DriverLease.is_held(lease)
        if held:
            silent(lease)
            successor = acquire(objects, 0.3, ignore)
            assert write_status(objects, successor, status_from(Tally(), state="finished"))
            successor.release()
        return held

    lease.is_held = fall_asleep
    assert not write_status(objects, lease, status_from(Tally(units_total=7)))
    assert parse_status(objects.get(STATUS_NAME)).state == "finished"
    assert parse_status(objects.get(STATUS_NAME)).units_total == 0


def test_a_status_that_is_none_is_replaced(tmp_path):
    objects = Objects(tmp_path)
    objects.put(STATUS_NAME, b"[" * 5_000_000)
    lease = acquire(objects, 30.0, ignore)
    assert write_status(objects, lease, status_from(Tally(units_total=7)))
    lease.release()
    assert parse_status(objects.get(STATUS_NAME)).units_total == 7


def test_a_lease_that_is_damaged_belongs_to_nobody(tmp_path):
    objects = Objects(tmp_path)
    lease = acquire(objects, 30.0, ignore)
    objects.put(LEASE_NAME, b"{")
    assert not write_status(objects, lease, status_from(Tally()))
    with pytest.raises(LeaseLostError, match="another driver"):
        lease.raise_if_lost()
