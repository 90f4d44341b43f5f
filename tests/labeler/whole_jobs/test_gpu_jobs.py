"""Jobs with the real engine on a GPU, in processes that are killed; nothing of them may be left.

The same bodies run on the CPU with the stand-in teacher, whose replicas hold no GPU.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.jobs.running_job import started, units_done, verify, wait_for
from logitstore.store import LogitStore
from tests.devices import DEVICES, GPU, give_back_gpu_memory
from tests.labeler import engines
from tests.labeler.jobs import assert_exactly_once, events, is_alive, overrides_for, run_job, write_records
from tests.labeler.whole_jobs.processes import ray_parts

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
NUM_RECORDS = 120
START_SEC = 400.0
"""An engine on a GPU compiles and captures its graphs first."""


def job_overrides(folder: Path, device: str, *more: str, gpus: float = 1) -> list[str]:
    """One replica. On a GPU a bf16 model of random weights with as many ids as the demo's tokenizer."""
    common = ("output.unit_size=4", "workers.replicas=1", *more)
    if device == "cpu":
        return overrides_for(folder, "teacher.fake.seconds_per_token=0.0005", *common)
    give_back_gpu_memory()
    model = engines.write_even_model(folder / "model")
    # Those that share a GPU are given their parts of its memory.
    memory = ["teacher.engine_args={gpu_memory_utilization = 0.8}"] if gpus == 1 else []
    return overrides_for(
        folder,
        "teacher.engine=vllm",
        f"teacher.model='{model}'",
        "teacher.dtype=bfloat16",
        "teacher.max_model_len=256",
        f"workers.gpus={gpus}",
        *memory,
        *common,
    )


@pytest.mark.parametrize("device", DEVICES)
def test_a_killed_actor_leaves_nothing_and_a_killed_job_goes_on(tmp_path: Path, device: str) -> None:
    """`kill -9` of the actor: its engine's processes end too. Then of the driver: the same command finishes."""
    write_records(tmp_path / "in.jsonl", NUM_RECORDS, response_bytes=200)
    store, overrides = tmp_path / "store", job_overrides(tmp_path, device)
    with started(overrides) as job:
        wait_for(lambda: units_done(store) >= 2, job, timeout_sec=START_SEC)
        (actor,) = job.actors()
        below = [process.pid for process in psutil.Process(actor).children(recursive=True)]
        assert device == "cpu" or below, "an engine on a GPU has processes of its own"
        os.kill(actor, signal.SIGKILL)
        wait_for(lambda: not any(map(is_alive, [actor, *below])), job)
        wait_for(lambda: len(events(store, "worker_ready")) == 2, job, timeout_sec=START_SEC)
        done = units_done(store)
        wait_for(lambda: units_done(store) > done, job, timeout_sec=START_SEC)
        left = [child.pid for one in job.actors() for child in psutil.Process(one).children(recursive=True)]
        left += [*job.actors(), *ray_parts(job, "raylet")]
        job.kill()
        result = run_job(overrides, timeout_sec=START_SEC)
        assert result.returncode == 0, result.stderr
        deadline = time.monotonic() + 150
        while any(map(is_alive, left)):
            assert time.monotonic() < deadline, "the killed driver's engine lives on"
            time.sleep(0.1)
    assert_exactly_once(tmp_path, NUM_RECORDS)
    assert verify(store, tmp_path / "in.jsonl").returncode == 0
    if device == "cuda":
        teacher = LogitStore.open(store).manifest.teacher
        assert (teacher.capture, teacher.dtype) == ("in_engine", "bfloat16_float32_sums")


@pytest.mark.parametrize("device", [GPU])
def test_two_replicas_share_a_gpu(tmp_path: Path, device: str) -> None:
    write_records(tmp_path / "in.jsonl", NUM_RECORDS, response_bytes=200)
    overrides = job_overrides(tmp_path, device, "workers.replicas=2", "output.unit_size=2", gpus=0.5)
    with started(overrides) as job:
        store = tmp_path / "store"
        wait_for(lambda: len(events(store, "worker_ready")) == 2, job, timeout_sec=START_SEC)
        exit_status, output = job.finish(timeout_sec=START_SEC)
    assert exit_status == 0, output
    assert_exactly_once(tmp_path, NUM_RECORDS)
    workers = {event["shard"]["worker"] for event in events(tmp_path / "store", "committed")}
    assert len(workers) == 2, "one of the two labeled nothing"
