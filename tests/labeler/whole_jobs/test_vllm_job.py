"""A job with the real engine on Ray, over two ranks: its processes killed in the middle.

Actors with an engine inside are killed by `penumbra bench storm`.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.jobs.running_job import started, units_done, wait_for
from tests.labeler import engines
from tests.labeler.job.test_secrets_nowhere import PLANTED
from tests.labeler.jobs import assert_exactly_once, events, is_alive, overrides_for, write_records
from tests.labeler.whole_jobs.processes import engine_parts
from tests.labeler.whole_jobs.test_process_listings import listed, secret_job

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    engines.needs_model,
]


def vllm_overrides(tmp_path: Path, model: Path, *more: str) -> list[str]:
    vllm = ("teacher.engine=vllm", f"teacher.model='{model}'", "labels.top_k=16", "teacher.max_model_len=256")
    return overrides_for(tmp_path, *vllm, *more)


@pytest.fixture
def even_model(tmp_path: Path) -> Path:
    return engines.write_even_model(tmp_path / "model")


def test_an_engine_over_two_ranks_survives_the_death_of_each_of_its_processes(
    tmp_path: Path, even_model: Path
) -> None:
    """One replica: a vLLM worker, the engine core, the actor is killed; the labels are those of transformers."""
    num_records = 200
    write_records(tmp_path / "in.jsonl", num_records, response_bytes=200)
    store = tmp_path / "store"
    two_ranks = (
        "teacher.tensor_parallel_size=2",
        "workers.cores=2",
        "workers.replicas=1",
        "output.unit_size=4",
        "teacher.engine_args={kv_cache_memory_bytes = 67108864}",
    )
    with started(vllm_overrides(tmp_path, even_model, *two_ranks), str(secret_job(tmp_path))) as job:
        for number, part in enumerate(("vLLM worker", "engine core", "actor")):
            wait_for(lambda n=number: units_done(store) >= 2 * (n + 1), job, timeout_sec=300)
            actors, (cores, workers) = job.actors(), engine_parts(job)
            assert (len(actors), len(cores), len(workers)) == (1, 1, 2)
            engine = [*actors, *cores, *workers]
            shown = listed(job)
            assert {line.split(" ", 1)[0] for line in shown} >= set(map(str, engine))
            assert [line for line, environment in shown.items() if PLANTED in line + environment] == []
            victims = {"vLLM worker": workers[0], "engine core": cores[0], "actor": actors[0]}
            os.kill(victims[part], signal.SIGKILL)
            killed_at = time.monotonic()
            wait_for(lambda n=number: len(events(store, "worker_ready")) == n + 2, job, timeout_sec=300)
            print(f"{part} killed: an engine is ready again after {time.monotonic() - killed_at:.1f} s")
            # Nothing is left of the engine that died.
            wait_for(lambda pids=engine: not any(map(is_alive, pids)), job)
        exit_status, output = job.finish(timeout_sec=300)
    assert exit_status == 0, output
    assert "3 engine_died" in output
    assert_exactly_once(tmp_path, num_records)
    engines.assert_labels_are_those_of_transformers(store, even_model)
