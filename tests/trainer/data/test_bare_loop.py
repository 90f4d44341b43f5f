"""The example of a bare PyTorch loop runs, learns and goes on after an interruption."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.trainer.data import bare_loop


def test_bare_loop_learns_and_resumes(small_store, tmp_path, capsys, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    loss = bare_loop.main(str(small_store), str(whole))
    steps = int(capsys.readouterr().out.split()[0])
    monkeypatch.setattr(bare_loop, "NUM_EPOCHS", 1)
    first = bare_loop.main(str(small_store), str(cut))
    first_steps = int(capsys.readouterr().out.split()[0])
    assert loss < first
    assert steps == 2 * first_steps
    saved = torch.load(cut / "checkpoint.pt", weights_only=True)
    done = first_steps // bare_loop.SAVE_EVERY * bare_loop.SAVE_EVERY
    assert saved["data"]["consumed"] == 4 * done
    monkeypatch.setattr(bare_loop, "NUM_EPOCHS", 2)
    assert bare_loop.main(str(small_store), str(cut)) == loss
    assert int(capsys.readouterr().out.split()[0]) == steps - done


def test_bare_loop_is_short():
    assert len(Path(bare_loop.__file__).read_text().splitlines()) <= 62
