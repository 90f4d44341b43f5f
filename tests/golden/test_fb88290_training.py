"""A training run that the version fb88290 began and that was stopped at its checkpoint: this version ends it.

`fb88290/training` is what `python -m trainer train train.toml` of that version left at step 2 of 4.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from trainer.__main__ import main

GOLDEN = Path(__file__).parent / "fb88290" / "training"
KL_THERE = 1.881084
"""What that version measured at the end of its own uninterrupted run."""


@pytest.mark.slow
def test_the_run_is_ended_as_that_version_ended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "job"
    shutil.copytree(GOLDEN, folder)
    monkeypatch.chdir(folder)
    assert main(["train", "train.toml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["num_steps"] == 4
    assert found["after"]["kl"] == pytest.approx(KL_THERE, rel=1e-3)
    # The optimizer went on from where it was: its step counts both runs.
    state = torch.load("run/checkpoints/checkpoint-4/optimizer.pt", weights_only=True)["state"]
    assert {int(moments["step"]) for moments in state.values()} == {4}
