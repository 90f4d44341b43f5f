"""Whole runs on a device that refuses what a GPU refuses, against the same runs on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

STEPS = 6


def finished(folder: Path, device: str, *overrides: str) -> dict[str, Any]:
    """Metrics of a run in a process of its own."""
    folder.mkdir()
    arguments = [str(folder), device, f"training.max_steps={STEPS}", *overrides]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.trainer.hf.on_simulated_device", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads((folder / "run" / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "ways",
    [
        ("training.save_steps=3", "evaluation.samples=2", "loss.temperature=2.0"),
        ("loss.fused=false", "data.pack_length=64"),
    ],
    ids=["fused", "dense and packed"],
)
def test_a_run_on_a_device_is_the_run_on_the_cpu(tmp_path: Path, ways: tuple[str, ...]) -> None:
    """No tensor is left behind on the CPU, none goes back to it unasked, and the numbers are the same."""
    here = finished(tmp_path / "cpu", "cpu", *ways)
    there = finished(tmp_path / "device", "simulated", *ways)
    assert [step["loss"] for step in there["history"]] == pytest.approx(
        [step["loss"] for step in here["history"]], rel=1e-5
    )
    for figures in ("before", "after"):
        assert there[figures] == pytest.approx(here[figures], rel=1e-4, abs=1e-6)
    expected = load_file(tmp_path / "cpu" / "run" / "model.safetensors")
    found = load_file(tmp_path / "device" / "run" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert (weight - expected[name]).abs().max() < 1e-3, name  # of 0.02 in each of six steps of Adam
    waits: Counter[str] = Counter()
    for line, count in json.loads((tmp_path / "device" / "waits.json").read_text()).items():
        waits[line.partition(":")[0]] += count * ("model(" not in line)  # transformers' own waits are its own
    num_evaluated = 2 * there["after"]["num_sequences"]
    assert 0 < waits["loss_inputs.py"] <= 2 * (STEPS + num_evaluated)
    assert 0 < waits["evaluate.py"] <= 3 * num_evaluated, "it waited twenty times for a sequence"
    assert 0 < waits["calibration.py"] <= num_evaluated
