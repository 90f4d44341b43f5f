"""One driver per store: refused while it lives, replaced once it is dead."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest

from labeler.errors import StoreBusyError
from labeler.job.driver_lease import Holder, acquire, present_holder
from logitstore.job_objects import LEASE_NAME
from logitstore.objects.opening import Objects


def ignore(_):
    pass


def wait_until_lost(lease):
    deadline = time.monotonic() + 60
    while not lease.is_lost:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def put_holder(objects, holder):
    objects.put(LEASE_NAME, json.dumps(asdict(holder)).encode())


def replace_holder(objects, holder):
    """As a successor does, which never writes over what it has not seen."""
    while not objects.put_if_match(
        LEASE_NAME, json.dumps(asdict(holder)).encode(), objects.get_with_etag(LEASE_NAME)[1]
    ):
        pass


@pytest.fixture
def soon_convinced(monkeypatch):
    """A second of watching is enough, so that a term can be long beside any pause of a busy machine."""
    monkeypatch.setattr("labeler.job.driver_lease.PROOF_SEC", 1.0)


@pytest.mark.usefixtures("soon_convinced")
def test_a_second_driver_is_refused_with_the_first_sign_of_life_of_the_first(tmp_path):
    objects = Objects(tmp_path)
    lease = acquire(objects, 15.0, ignore)
    told: list[str] = []
    started = time.monotonic()
    with pytest.raises(StoreBusyError) as caught:
        acquire(objects, 15.0, told.append)
    assert 1 <= time.monotonic() - started < 15, "the first second proves nothing, one renewal after it does"
    assert f"process {os.getpid()}" in told[0]
    assert "within 15 s" in told[0]
    assert f"process {os.getpid()}" in str(caught.value)
    assert "output.uri" in str(caught.value)
    lease.release()
    assert present_holder(objects) is None
    acquire(objects, 30.0, ignore).release()


def test_a_driver_that_does_not_get_on_shows_no_sign_of_life(tmp_path):
    """It is alive and would renew, but its cluster is gone: another takes over after its term."""
    objects = Objects(tmp_path)
    stuck = acquire(objects, 2.0, ignore)
    stuck.is_working = lambda: False
    started = time.monotonic()
    lease = acquire(objects, 2.0, ignore)
    assert time.monotonic() - started >= 2
    stuck.is_working = lambda: True
    wait_until_lost(stuck)
    stuck.release()
    lease.release()


@contextmanager
def silent_driver(tmp_path, renew_sec):
    """A live process that holds the lease and does not renew it, as one does that hangs."""
    code = f"""
import os, signal
from labeler.job.driver_lease import acquire
from logitstore.objects.opening import Objects
lease = acquire(Objects({str(tmp_path)!r}), {renew_sec}, print)
lease._stop.set()
lease._thread.join()
print("held", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_driver_of_this_machine_that_hangs_is_outwaited(tmp_path):
    objects = Objects(tmp_path)
    with silent_driver(tmp_path, 0.6):
        started = time.monotonic()
        lease = acquire(objects, 0.6, ignore)
        assert time.monotonic() - started >= 0.6
        lease.release()


def test_a_driver_that_dies_while_it_is_watched_is_replaced_at_once(tmp_path):
    objects = Objects(tmp_path)
    with silent_driver(tmp_path, 30.0) as process:
        started = time.monotonic()
        acquire(objects, 30.0, lambda _: process.kill()).release()
        assert time.monotonic() - started < 30


def test_a_dead_process_of_this_machine_is_replaced_at_once(tmp_path):
    objects = Objects(tmp_path)
    code = f"from labeler.job.driver_lease import acquire; from logitstore.objects.opening import Objects; import os\nacquire(Objects({str(tmp_path)!r}), 30.0, print); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    dead = present_holder(objects)
    assert dead is not None
    assert not dead.is_running
    started = time.monotonic()
    acquire(objects, 30.0, ignore).release()
    assert time.monotonic() - started < 30


def test_another_process_with_the_same_number_is_not_the_driver(tmp_path):
    objects = Objects(tmp_path)
    put_holder(objects, replace(Holder.here(30.0), process_start="1", owner="other"))
    acquire(objects, 30.0, ignore).release()


def test_where_machines_cannot_be_told_apart_a_driver_is_watched():
    """Two of macOS took each other for gone, as neither names itself and neither has /proc."""
    nameless = replace(Holder.here(30.0), machine="", owner="other")
    assert not nameless.is_on_this_machine
    assert not nameless.has_left


def test_a_silent_driver_of_another_machine_is_outwaited(tmp_path):
    objects = Objects(tmp_path)
    put_holder(objects, replace(Holder.here(0.6), machine="elsewhere", host="far", owner="other"))
    told: list[str] = []
    started = time.monotonic()
    lease = acquire(objects, 0.6, told.append)
    assert time.monotonic() - started >= 0.6
    assert "far" in told[0]
    lease.release()


@pytest.mark.usefixtures("soon_convinced")
def test_a_driver_of_another_machine_that_renews_is_refused(tmp_path):
    objects = Objects(tmp_path)
    elsewhere = replace(Holder.here(15.0), machine="elsewhere", owner="other")
    put_holder(objects, elsewhere)
    ended = threading.Event()

    def renew():
        while not ended.wait(0.2):
            put_holder(objects, replace(elsewhere, renewed=str(time.time())))

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        with pytest.raises(StoreBusyError):
            acquire(objects, 15.0, ignore)
    finally:
        ended.set()
        renewing.join()


def test_a_driver_notices_that_it_was_replaced(tmp_path):
    objects = Objects(tmp_path)
    lease = acquire(objects, 0.3, ignore)
    time.sleep(0.5)
    assert not lease.is_lost
    usurper = replace(Holder.here(30.0), owner="usurper")
    replace_holder(objects, usurper)
    wait_until_lost(lease)
    lease.release()
    holder = present_holder(objects)
    assert holder is not None
    assert holder.owner == "usurper"


def test_of_many_drivers_at_once_one_gets_the_store(tmp_path):
    code = f"""
import sys
from labeler.job import driver_lease
from labeler.job.driver_lease import StoreBusyError, acquire
from logitstore.objects.opening import Objects
objects = Objects({str(tmp_path)!r})
driver_lease.PROOF_SEC = 1.0
print("ready", flush=True)
sys.stdin.readline()
try:
    acquire(objects, 20.0, lambda _: None)
    print("won", flush=True)
    sys.stdin.readline()
except StoreBusyError:
    print("refused", flush=True)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    try:
        assert [said_by(process) for process in processes] == ["ready"] * 4
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outcomes = [said_by(process) for process in processes]
    finally:
        for process in processes:
            process.communicate("end\n")
    assert sorted(outcomes) == ["refused", "refused", "refused", "won"]


def said_by(process):
    assert process.stdout is not None
    return process.stdout.readline().strip()
