"""At SIGTERM a training saves where it stands, and every command ends with a sentence and its status."""

import multiprocessing
import os
import signal
import subprocess

import pytest
from safetensors.torch import load_file

from tests.trainer.run.conftest import settings
from trainer.__main__ import main
from trainer.run.watch.progress import TrainingProgress


def sigterm_in_step(step, monkeypatch):
    """Sent to all processes of the run when the student has learned from so many steps; these, once it was."""
    sent_to = []

    def send(self, args, state, control, **_):
        if state.global_step == step:
            sent_to.extend([os.getpid(), *(child.pid for child in multiprocessing.active_children())])
            # By another process, as Slurm does: a loader's worker is ended by one of its parent.
            subprocess.run(["kill", *map(str, reversed(sent_to))], check=True)

    monkeypatch.setattr(TrainingProgress, "on_step_end", send)
    return sent_to


FEW = settings("training.max_steps=6", "training.save_steps=null", "evaluation.before=false")


@pytest.mark.slow
def test_a_training_saves_where_it_stands_and_goes_on_from_there(config, tmp_path, capsys, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        sigterm_in_step(2, patch)
        assert main(["run", str(config), *FEW]) == 4
    told = capsys.readouterr().err.splitlines()[-1]
    checkpoints = tmp_path / "run" / "checkpoints"
    assert told == (
        f"penumbra train: stopped by SIGTERM after step 3 of 6, of which {checkpoints} has a checkpoint; the same "
        "command goes on from it"
    )
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert main(["run", str(config), *FEW]) == 0
    assert f"going on from {checkpoints / 'checkpoint-3'}" in capsys.readouterr().err
    assert main(["run", str(config), *FEW, *settings(f"output.folder={tmp_path / 'whole'}")]) == 0
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    found = load_file(tmp_path / "run" / "model.safetensors")
    assert all((found[name] == value).all() for name, value in whole.items())


@pytest.mark.slow
def test_a_training_at_its_end_finishes(config, tmp_path, monkeypatch):
    sigterm_in_step(6, monkeypatch)
    assert main(["run", str(config), *FEW]) == 0
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.slow
def test_workers_outlive_the_signal_that_slurm_sends_to_all(config, capsys, monkeypatch):
    sent_to = sigterm_in_step(2, monkeypatch)
    assert main(["run", str(config), *FEW, *settings("data.num_workers=1")]) == 4
    assert "has a checkpoint" in capsys.readouterr().err
    assert len(sent_to) == 2


def test_other_commands_end_with_a_sentence(config, capsys, monkeypatch):
    monkeypatch.setattr(
        "trainer.run.evaluation.evaluate_model", lambda *_, **__: signal.raise_signal(signal.SIGTERM)
    )
    assert main(["eval", str(config)]) == 4
    assert "penumbra train: stopped by SIGTERM; the same command goes on" in capsys.readouterr().err
