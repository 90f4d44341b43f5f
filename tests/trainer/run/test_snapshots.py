"""Snapshots of a student are what it predicts: checked against its own full logits and its evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from logitstore.records import LabeledSequence
from logitstore.rows.temperature import log_tail_mass, logprobs
from logitstore.store import LogitStore
from logitstore.students.snapshots import FollowedSequence, Snapshots, read_snapshots
from trainer.run.config import load_config
from trainer.run.train import train

SETTINGS = ("training.max_steps=4", "training.tensorboard=false", "evaluation.snapshots=3")


def sequence_of(tmp_path: Path, one: FollowedSequence) -> LabeledSequence:
    return LogitStore.open(str(tmp_path / "store"))[one.record_id, one.sample_index]


@pytest.mark.slow
def test_the_last_snapshot_is_the_saved_students(config: Path, tmp_path: Path) -> None:
    train(load_config(str(config), [*SETTINGS, "evaluation.snapshot_steps=2"]), quiet=True)
    found = read_snapshots(tmp_path / "run")
    assert found.steps == (0, 2, 4)
    assert len(found.sequences) == 3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    for one in found.sequences:
        sequence = sequence_of(tmp_path, one)
        ids = torch.tensor(sequence.token_ids_T[None], dtype=torch.long)
        with torch.no_grad():
            logits_NV = model(ids).logits[0, sequence.label_start - 1 :][: one.num_rows].double().numpy()
        last = one.snapshots[-1]
        assert one.num_rows == sequence.rows.num_rows
        np.testing.assert_array_equal(last.rows.token_ids_NK, sequence.rows.token_ids_NK)
        taken_NK = np.take_along_axis(logits_NV, sequence.rows.token_ids_NK, axis=1)
        np.testing.assert_allclose(last.rows.logits_NK, taken_NK, atol=2e-5)
        np.testing.assert_array_equal(last.own_token_ids_N, logits_NV.argmax(axis=1))
        for place, temperature in enumerate(one.temperatures):
            exact_NV = np.exp(logits_NV / temperature)
            head_N = np.exp(taken_NK / temperature).sum(axis=1)
            tail_N = np.log((exact_NV.sum(axis=1) - head_N) / exact_NV.sum(axis=1))
            np.testing.assert_allclose(last.rows.log_tail_mass_NM[:, place], tail_N, atol=1e-4)
        label_logprob_N = (logits_NV - np.log(np.exp(logits_NV).sum(axis=1))[:, None])[
            np.arange(one.num_rows), sequence.token_ids_T[sequence.label_start :]
        ]
        np.testing.assert_allclose(last.rows.label_logprob_N, label_logprob_N, atol=1e-4)


@pytest.mark.slow
def test_the_kl_of_snapshots_is_that_of_the_evaluation(config: Path, tmp_path: Path) -> None:
    """Where all held-out sequences are followed; steps come from the evaluations."""
    given = ["training.max_steps=4", "training.tensorboard=false", "evaluation.snapshots=1000"]
    settings = load_config(str(config), [*given, "evaluation.steps=2"])
    metrics = train(settings, quiet=True)
    found = read_snapshots(tmp_path / "run")
    assert found.steps == (0, 2, 4)
    assert metrics.before is not None
    for place, expected in ((0, metrics.before["kl"]), (-1, metrics.after["kl"])):
        assert kl_of(found, place, tmp_path) == pytest.approx(expected, abs=1e-5)


def kl_of(found: Snapshots, place: int, tmp_path: Path) -> float:
    """Mean over all rows of all sequences of one snapshot, stored entries and a bucket for the rest."""
    spec = LogitStore.open(str(tmp_path / "store")).manifest.labels
    values = []
    for one in found.sequences:
        teacher, student = sequence_of(tmp_path, one).rows, one.snapshots[place].rows
        p, q = (
            np.concatenate([logprobs(rows, spec, 1.0), log_tail_mass(rows, spec, 1.0)[:, None]], axis=1)
            for rows in (teacher, student)
        )
        values += (np.exp(p) * (p - q)).sum(axis=1).tolist()
    return float(np.mean(values))


@pytest.mark.slow
def test_a_resumed_run_keeps_what_was_taken_before(config: Path, tmp_path: Path) -> None:
    given = [*SETTINGS, "evaluation.snapshot_steps=1", "training.save_steps=2"]
    train(load_config(str(config), given), quiet=True)
    first = read_snapshots(tmp_path / "run")
    given[0] = "training.max_steps=6"
    train(load_config(str(config), given), quiet=True)
    resumed = read_snapshots(tmp_path / "run")
    assert resumed.steps == (0, 1, 2, 3, 4, 5, 6)
    for before, after in zip(first.sequences, resumed.sequences, strict=True):
        np.testing.assert_array_equal(before.snapshots[1].rows.logits_NK, after.snapshots[1].rows.logits_NK)
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.slow
def test_none_are_kept_where_none_are_asked_for(config: Path, tmp_path: Path) -> None:
    train(load_config(str(config), ["training.max_steps=1", "training.tensorboard=false"]), quiet=True)
    assert read_snapshots(tmp_path / "run").steps == (0, 1)
    without = ["training.max_steps=1", "training.tensorboard=false", "evaluation.snapshots=0"]
    train(load_config(str(config), without), quiet=True, restart=True)
    with pytest.raises(FileNotFoundError, match=r"evaluation\.snapshots is at least 1"):
        read_snapshots(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "train.json").read_text())["evaluation"]["snapshots"] == 0
