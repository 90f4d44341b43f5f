"""Storage that fails under a running job: S3 behind a proxy that errs and cuts, and a disk that is full.

The real S3 server and the real worker; labels are kept and written again, and each record has them once.
"""

import contextlib
import os
import subprocess
import threading
import time

import pytest

from labeler.actor import Worker
from labeler.config import load_job
from labeler.plan import Plan, SegmentWriter
from labeler.preflight import prepare
from labeler.run import new_planner, read_input
from labeler.scheduler import Lease
from labeler.store_setup import StoreSetup
from logitstore.errors import ObjectStoreError
from logitstore.store import LogitStore
from tests.fault_proxy import Faults, fault_proxy
from tests.labeler.jobs import overrides_for, write_records


def started_worker(job):
    """A planned store and a worker on it."""
    prepared = prepare(job)
    known = Plan(prepared.objects).known()
    planner = new_planner(job, prepared, known, SegmentWriter(prepared.objects, known))
    totals = planner.run(read_input(job), lambda _: None)
    setup = StoreSetup(job, prepared, totals, lambda _: None)
    worker = Worker(job, "w", prepared.tokenizer.special_ids)
    setup.take_description(worker.start(None))
    return worker, list(Plan(prepared.objects).units())


@pytest.fixture
def proxied(tmp_path, s3_server, s3_place):
    """(worker, units, faults, direct store URI and options): the worker talks to S3 through the proxy."""
    write_records(tmp_path / "in.jsonl", 32, response_bytes=400)
    faults = Faults()
    with fault_proxy(s3_server.endpoint, faults) as endpoint:
        options = {**s3_place.storage_options}
        options["client_kwargs"] = {**options["client_kwargs"], "endpoint_url": endpoint}
        overrides = overrides_for(tmp_path, f"output.uri='{s3_place.uri}'", "output.retry_sec=30")
        job = load_job(None, overrides, {})
        output = job.output.model_copy(update={"storage_options": options})
        worker, units = started_worker(job.model_copy(update={"output": output}))
        yield worker, units, faults, s3_place


def assert_all_once(place, count):
    store = LogitStore.open(place.uri, storage_options=place.storage_options)
    ids = [sequence.record_id for sequence in store.iter_sequences()]
    assert sorted(ids, key=int) == [str(i) for i in range(count)]


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("status", [503, 500])
def test_errors_of_s3_are_outlasted(proxied, status):
    worker, units, faults, place = proxied
    worker.label_unit(Lease(0, units[0], "w"))
    faults.error_status, faults.errors_left = status, 12
    started = time.monotonic()
    for number, unit in enumerate(units[1:], start=1):
        assert worker.label_unit(Lease(number, unit, "w")).won
    print(f"{faults.counts['errors']} answers of {status} outlasted in {time.monotonic() - started:.1f} s")
    assert faults.counts["errors"] == 12
    assert worker.heartbeat().num_sequences == 32, "nothing is labeled twice for a failing store"
    assert_all_once(place, 32)


@pytest.mark.s3
@pytest.mark.slow
def test_uploads_cut_in_the_middle_are_sent_again_whole(proxied):
    worker, units, faults, place = proxied
    worker.label_unit(Lease(0, units[0], "w"))
    faults.cuts_left = 4
    for number, unit in enumerate(units[1:], start=1):
        assert worker.label_unit(Lease(number, unit, "w")).won
    assert faults.counts["cuts"] == 4
    assert_all_once(place, 32)


@pytest.mark.s3
@pytest.mark.slow
def test_an_outage_longer_than_all_retries_fails_the_unit_and_a_later_lease_commits_it(proxied):
    worker, units, faults, place = proxied
    worker.label_unit(Lease(0, units[0], "w"))
    worker._job = worker._job.model_copy(
        update={"output": worker._job.output.model_copy(update={"retry_sec": 1.0})}
    )
    faults.error_status, faults.errors_left = 503, -1
    started = time.monotonic()
    with pytest.raises((ObjectStoreError, OSError)):
        worker.label_unit(Lease(1, units[1], "w"))
    took = time.monotonic() - started
    print(f"a permanent 503 was given up after {took:.1f} s and {faults.counts['errors']} requests")
    assert took < 60
    faults.errors_left = 0
    for number, unit in enumerate(units[1:], start=2):
        assert worker.label_unit(Lease(number, unit, "w")).won
    assert_all_once(place, 32)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path):
    """Write until the disk is full."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    block = b"x" * 4096
    with contextlib.suppress(OSError):
        while os.write(file, block):
            continue
    os.close(file)


@pytest.mark.slow
def test_a_full_disk_holds_labels_back_until_there_is_room(tmp_path, small_disk):
    write_records(tmp_path / "in.jsonl", 16, response_bytes=200)
    overrides = overrides_for(tmp_path, f"output.uri='{small_disk}/store'", "output.retry_sec=20")
    worker, units = started_worker(load_job(None, overrides, {}))
    ballast = small_disk / "ballast"
    fill(ballast)
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(worker.label_unit(Lease(0, units[0], "w"))))
    thread.start()
    thread.join(2.0)
    assert thread.is_alive(), "the worker goes on trying"
    ballast.unlink()
    thread.join(15)
    assert outcome[0].won
    assert worker.label_unit(Lease(1, units[1], "w")).won
    store = LogitStore.open(small_disk / "store")
    assert len([sequence.record_id for sequence in store.iter_sequences()]) == 16
    assert not list((small_disk / "store").rglob(".tmp-*[0-9a-f]")), "no half-written file is left"


@pytest.mark.slow
def test_a_disk_that_stays_full_fails_the_unit_with_the_reason(tmp_path, small_disk):
    write_records(tmp_path / "in.jsonl", 8, response_bytes=200)
    overrides = overrides_for(tmp_path, f"output.uri='{small_disk}/store'", "output.retry_sec=1")
    worker, units = started_worker(load_job(None, overrides, {}))
    fill(small_disk / "ballast")
    with pytest.raises(OSError, match="No space left"):
        worker.label_unit(Lease(0, units[0], "w"))
