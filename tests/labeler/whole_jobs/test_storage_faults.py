"""Storage that fails under a running job: S3 behind a proxy that errs, is slow and cuts, and a full disk.

The real S3 server and real jobs; labels are kept and written again, and each record has them once. Each
test prints how long the recovery took (`pytest -s`).
"""

import contextlib
import os
import subprocess
import time

import pytest

from benchmarks.jobs.running_job import started, verify, wait_for
from labeler.config.loading import load_job
from labeler.records import Lease
from logitstore.errors import ObjectStoreError
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore
from tests.labeler.jobs import events, label_and_commit, overrides_for, planned, write_records
from tests.servers.fault_proxy import Faults, fault_proxy


def started_worker(job):
    """A planned store and a worker on it."""
    worker, units, _ = planned(job)
    return worker, units


def through(endpoint, place):
    """Storage options that reach the server by way of `endpoint`."""
    options = {**place.storage_options}
    options["client_kwargs"] = {**options["client_kwargs"], "endpoint_url": endpoint}
    return options


def units_done(place):
    return len(Objects(place.uri, place.storage_options).list("commits/"))


@pytest.mark.s3
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_outlasts_s3_that_errs_answers_slowly_and_cuts_uploads(
    tmp_path, s3_server, s3_place, monkeypatch
):
    """Every fault in turn under one job, all requests of driver and workers through the proxy."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    write_records(tmp_path / "in.jsonl", 160, response_bytes=400)
    faults = Faults()

    def outlast(name, job, is_over):
        """From the moment a fault is over to the next commit after it."""
        wait_for(is_over, job)
        over_at, before = time.monotonic(), units_done(s3_place)
        wait_for(lambda: units_done(s3_place) > before, job)
        print(f"{name}: the next unit is committed {time.monotonic() - over_at:.1f} s after it")

    with fault_proxy(s3_server.endpoint, faults) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        overrides = overrides_for(
            tmp_path,
            f"output.uri='{s3_place.uri}'",
            "output.storage_options={config_kwargs = {retries = {max_attempts = 2}}}",
            "output.unit_size=4",
            "teacher.fake.seconds_per_token=0.0008",
            "workers.driver_lease_sec=2",
        )
        with started(overrides) as job:
            wait_for(lambda: units_done(s3_place) >= 3, job)
            # Longer than the driver's lease: nobody else can have taken it, so the driver goes on.
            faults.error_status, faults.errors_left = 503, -1
            time.sleep(4)
            faults.errors_left = 0
            outlast(f"503 for 4 s ({faults.counts['errors']} answers)", job, lambda: True)
            faults.error_status, faults.errors_left = 500, 12
            outlast("500 to 12 requests", job, lambda: faults.errors_left == 0)
            faults.cuts_left = 4
            outlast("4 uploads cut in the middle", job, lambda: faults.cuts_left == 0)
            faults.latency_sec = 0.2
            outlast("0.2 s for every 16 KB", job, lambda: True)
            faults.latency_sec = 0.0
            exit_status, output = job.finish()
    assert exit_status == 0, output
    assert faults.counts["errors"] > 12
    assert faults.counts["cuts"] == 4
    store = LogitStore.open(s3_place.uri, storage_options=s3_place.storage_options)
    ids = [sequence.record_id for sequence in store.iter_sequences()]
    assert sorted(ids, key=int) == [str(i) for i in range(160)]
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    check = verify(s3_place.uri, tmp_path / "in.jsonl")
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.s3
@pytest.mark.slow
def test_an_outage_longer_than_all_retries_fails_the_unit_and_a_later_lease_commits_it(
    tmp_path, s3_server, s3_place
):
    """The retries of s3fs multiply those of botocore; here is how many both together are at most."""
    write_records(tmp_path / "in.jsonl", 16)
    faults = Faults()
    with fault_proxy(s3_server.endpoint, faults) as endpoint:
        job = load_job(None, overrides_for(tmp_path, f"output.uri='{s3_place.uri}'"), {})
        options = {"retry_sec": 1.0, "storage_options": through(endpoint, s3_place)}
        output = job.output.model_copy(update=options)
        worker, units = started_worker(job.model_copy(update={"output": output}))
        assert label_and_commit(worker, Lease(0, units[0], "w")).won
        faults.error_status, faults.errors_left = 503, -1
        began = time.monotonic()
        with pytest.raises(ObjectStoreError, match="after bounded retries"):
            worker.label_unit(Lease(1, units[1], "w"))
        took, num_requests = time.monotonic() - began, faults.counts["errors"]
        print(f"a permanent 503 was given up after {took:.1f} s and {num_requests} requests")
        assert num_requests <= 10
        faults.errors_left = 0
        assert label_and_commit(worker, Lease(2, units[1], "w")).won
    assert worker.heartbeat().num_sequences == 16, "a unit that cannot be read is not labeled"
    check = LogitStore.open(s3_place.uri, storage_options=s3_place.storage_options)
    assert [sequence.record_id for sequence in check.iter_sequences()] == [str(i) for i in range(16)]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path):
    """Write until the disk is full."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    block = b"x" * 4096
    with contextlib.suppress(OSError):
        while os.write(file, block):
            continue
    os.close(file)


def fill_for_good(path, done):
    """Until nothing is committed for a while: what was half written makes room again when it is removed."""
    for _ in range(10):
        before = done()
        fill(path)
        time.sleep(4)
        if done() == before:
            return before
    raise AssertionError("units are committed on a full disk")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_disk_holds_the_job_up_until_there_is_room(tmp_path, small_disk):
    write_records(tmp_path / "in.jsonl", 64, response_bytes=100)
    store = small_disk / "store"
    overrides = overrides_for(
        tmp_path,
        f"output.uri='{store}'",
        "output.unit_size=4",
        "teacher.fake.seconds_per_token=0.002",
        "workers.driver_lease_sec=2",
    )

    def done():
        return len(list(store.glob("commits/*.json")))

    with started(overrides) as job:
        wait_for(lambda: done() >= 3, job)
        full_at = fill_for_good(small_disk / "ballast", done)
        assert full_at < 16, "the job was over before the disk was full"
        assert job.process.poll() is None, "the driver outlives a full disk"
        (small_disk / "ballast").unlink()
        freed_at = time.monotonic()
        wait_for(lambda: done() > full_at, job)
        print(f"full disk: the next unit is committed {time.monotonic() - freed_at:.1f} s after it has room")
        exit_status, output = job.finish()
    assert exit_status == 0, output
    check = verify(store, tmp_path / "in.jsonl")
    assert check.returncode == 0, check.stdout + check.stderr
    assert not list(store.rglob(".tmp-*[0-9a-f]")), "no half-written file is left"
    assert len(events(store, "ended")) == 1


@pytest.mark.slow
def test_a_disk_that_stays_full_fails_the_unit_with_the_reason(tmp_path, small_disk):
    write_records(tmp_path / "in.jsonl", 8, response_bytes=200)
    overrides = overrides_for(tmp_path, f"output.uri='{small_disk}/store'", "output.retry_sec=1")
    worker, units = started_worker(load_job(None, overrides, {}))
    fill(small_disk / "ballast")
    with pytest.raises(OSError, match="No space left"):
        worker.label_unit(Lease(0, units[0], "w"))
