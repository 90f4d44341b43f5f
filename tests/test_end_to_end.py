"""The whole path with nothing faked: Ray, vLLM, the store's checks, training, and a model that loads.

Shape legend: T tokens, N label rows, K stored entries, V vocabulary.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from logitstore.store import LogitStore

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / ".demo" / "teacher"
PAIRS = ROOT / "benchmarks" / "demo_data" / "pairs.jsonl"
RECORDS = 20
TOP_K = 32
STEP_LIMIT_SEC = 400
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "VLLM_LOGGING_LEVEL": "ERROR"}


def run_module(module: str, *arguments: str, status: int = 0) -> str:
    """`python -m module arguments` from the checkout; its standard output."""
    environment = {**os.environ, **ENVIRONMENT}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=STEP_LIMIT_SEC,
    )  # fmt: skip
    assert done.returncode == status, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@dataclass(frozen=True)
class Labeled:
    uri: str
    arguments: tuple[str, ...]
    """Of the command that labeled."""


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Labeled:
    """Twenty scored answers, labeled by two vLLM engines side by side."""
    uri = str(tmp_path_factory.mktemp("store") / "scored")
    settings = {
        "input.limit": RECORDS,
        "labels.top_k": TOP_K,
        "output.uri": uri,
        "output.unit_size": 5,
    }
    arguments = ["run", "configs/demo-score.toml"]
    for name, value in settings.items():
        arguments += ["--set", f"{name}={value}"]
    run_module("labeler", *arguments)
    return Labeled(uri, tuple(arguments))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.timeout(2 * STEP_LIMIT_SEC)
def test_every_record_is_labeled_exactly_once(labeled: Labeled) -> None:
    run_module("logitstore", "verify", labeled.uri, "--against", str(PAIRS), "--limit", str(RECORDS))
    store = LogitStore.open(labeled.uri)
    expected = [json.loads(line)["id"] for line in PAIRS.read_text().splitlines()[:RECORDS]]
    assert sorted(one.record_id for one in store.iter_sequences()) == sorted(expected)
    assert store.manifest.teacher.capture == "in_engine"
    assert store.manifest.labels.temperatures == (1.0, 2.0, 4.0)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.timeout(2 * STEP_LIMIT_SEC)
def test_the_same_command_again_changes_nothing(labeled: Labeled) -> None:
    before = LogitStore.open(labeled.uri)
    run_module("labeler", *labeled.arguments)
    after = LogitStore.open(labeled.uri)
    assert after.digest == before.digest
    assert list(after.shards()) == list(before.shards())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.timeout(2 * STEP_LIMIT_SEC)
def test_labels_are_those_of_the_model_itself(labeled: Labeled) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    num_rows, same_top, same_set, largest_error, tail_error = 0, 0, 0, 0.0, 0.0
    for sequence in LogitStore.open(labeled.uri).iter_sequences():
        rows, start = sequence.rows, sequence.label_start
        with torch.no_grad():
            logits_TV = model(torch.from_numpy(sequence.token_ids_T)[None].long()).logits[0].numpy()
        logits_NV = logits_TV[start - 1 : start - 1 + rows.num_rows]
        ids_NK = np.argsort(-logits_NV, axis=1)[:, :TOP_K]
        num_rows += rows.num_rows
        same_top += int((ids_NK[:, 0] == rows.token_ids_NK[:, 0]).sum())
        same_set += sum(set(a) == set(b) for a, b in zip(ids_NK, rows.token_ids_NK, strict=True))
        own_NK = np.take_along_axis(logits_NV, rows.token_ids_NK, axis=1)
        largest_error = max(largest_error, float(np.abs(own_NK - rows.logits_NK).max()))
        softened_NV = np.exp(logits_NV / 2 - logits_NV.max(axis=1, keepdims=True) / 2)
        stored_N = np.take_along_axis(softened_NV, rows.token_ids_NK, axis=1).sum(axis=1)
        tail_N = 1 - stored_N / softened_NV.sum(axis=1)
        tail_error = max(tail_error, float(np.abs(np.exp(rows.log_tail_mass_NM[:, 1]) - tail_N).max()))
    assert num_rows > 500
    assert same_top >= 0.999 * num_rows
    assert same_set >= 0.99 * num_rows
    assert largest_error < 1e-2 + 2**-7  # a gap below 16 rounds by at most 2^-8 as fp16
    assert tail_error < 1e-3


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.timeout(2 * STEP_LIMIT_SEC)
def test_a_student_learns_from_the_store_and_loads(labeled: Labeled, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "student"
    settings = [f'data.stores=["{labeled.uri}"]', f"output.folder={folder}", "training.max_steps=12"]
    settings += ["data.held_out_fraction=0.2", f"student.model={tmp_path / 'start'}"]
    run_module("benchmarks", "student", "--layers", "0,29", "--out", str(tmp_path / "start"))
    run_module("trainer", "train", "configs/demo-train.toml", *(w for s in settings for w in ("--set", s)))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["after"]["kl"] < metrics["before"]["kl"] - 0.5
    student = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logits_TV = student(torch.tensor([tokenizer("Why is the sky blue?")["input_ids"]])).logits[0]
    assert logits_TV.shape[1] == LogitStore.open(labeled.uri).manifest.labels.vocab_size
    assert bool(torch.isfinite(logits_TV).all())


@pytest.mark.slow
def test_bad_records_are_counted_with_their_line_and_reason(tmp_path: Path) -> None:
    """The plan alone: neither Ray nor an engine is started."""
    damaged = ROOT / "benchmarks" / "demo_data" / "damaged.jsonl"
    settings = [
        "teacher.engine=fake", f"input.uri={damaged}", "input.kind=prompt_response", "input.id=id",
        "limits.max_reject_share=0.9", f"output.uri={tmp_path / 'store'}",
    ]  # fmt: skip
    printed = run_module("labeler", "run", *(w for s in settings for w in ("--set", s)), "--dry-run")
    assert "11 records read: 4 in 1 units, 7 rejected" in printed
    assert "damaged.jsonl:4: field 'response' is missing" in printed
    assert not (tmp_path / "store" / "commits").exists()
