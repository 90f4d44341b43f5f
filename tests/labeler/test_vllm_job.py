"""A job with the real engine on Ray, over two ranks: its processes killed in the middle.

The actor itself is killed in `test_faults.py`, and with real engines by `python -m benchmarks storm`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from logitstore.store import LogitStore
from tests.labeler import engines
from tests.labeler.jobs import (
    assert_exactly_once,
    events,
    is_alive,
    overrides_for,
    started,
    units_done,
    wait_for,
    write_records,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not engines.MODEL.exists(), reason="no demo teacher in .demo/teacher; `make setup` makes it"
    ),
]


def vllm_overrides(tmp_path: Path, model: Path, *more: str) -> list[str]:
    vllm = ("teacher.engine=vllm", f"teacher.model='{model}'", "labels.top_k=16", "teacher.max_model_len=256")
    return overrides_for(tmp_path, *vllm, *more)


@pytest.fixture
def even_model(tmp_path: Path) -> Path:
    """A small model of random weights whose heads two ranks can share (the demo teacher has nine)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in engines.MODEL.iterdir():
        if "token" in path.name or path.suffix in (".txt", ".jinja"):
            shutil.copy(path, folder)
    return folder


def test_an_engine_over_two_ranks_survives_the_death_of_each_of_its_processes(
    tmp_path: Path, even_model: Path
) -> None:
    """One replica: a vLLM worker, then the engine core is killed; the labels are those of transformers."""
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
    with started(vllm_overrides(tmp_path, even_model, *two_ranks)) as job:
        for number, part in enumerate(("vLLM worker", "engine core")):
            wait_for(lambda n=number: units_done(store) >= 2 * (n + 1), job, timeout_sec=300)
            actors, (cores, workers) = job.actors(), job.engine_parts()
            assert (len(actors), len(cores), len(workers)) == (1, 1, 2)
            engine = [*actors, *cores, *workers]
            os.kill(workers[0] if part == "vLLM worker" else cores[0], signal.SIGKILL)
            killed_at = time.monotonic()
            wait_for(lambda n=number: len(events(store, "worker_ready")) == n + 2, job, timeout_sec=300)
            print(f"{part} killed: an engine is ready again after {time.monotonic() - killed_at:.1f} s")
            # Nothing is left of the engine that died.
            wait_for(lambda pids=engine: not any(map(is_alive, pids)), job)
        exit_status, output = job.finish(timeout_sec=300)
    assert exit_status == 0, output
    assert "2 engine_died" in output
    assert_exactly_once(tmp_path, num_records)
    assert_labels_are_those_of_transformers(store, even_model)


def assert_labels_are_those_of_transformers(store: Path, model_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    for sequence in itertools.islice(LogitStore.open(store).iter_sequences(), 0, None, 10):
        with torch.inference_mode():
            logits_TV = model(torch.as_tensor(sequence.token_ids_T[None].astype(np.int64))).logits[0]
        logits_NV = logits_TV[sequence.label_start - 1 : -1].double().numpy()
        theirs_NK = np.take_along_axis(logits_NV, sequence.rows.token_ids_NK.astype(np.int64), 1)
        assert np.abs(theirs_NK - sequence.rows.logits_NK).max() < 1e-2
        np.testing.assert_array_equal(sequence.rows.token_ids_NK[:, 0], logits_NV.argmax(axis=1))
        for index, temperature in enumerate((1.0, 2.0, 4.0)):
            whole_N = np.logaddexp.reduce(logits_NV / temperature, axis=1)
            assert np.abs(sequence.rows.logsumexp_NM[:, index] - whole_N).max() < 1e-3
