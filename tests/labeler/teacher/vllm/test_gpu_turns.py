"""Engines on one GPU start one after the other, those on others side by side. Neither GPU nor vLLM here."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labeler.teacher.vllm import gpu_turns
from labeler.teacher.vllm.gpu_turns import gpus_of_this_process, turns_on_gpus


@contextmanager
def on(gpus: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    with turns_on_gpus(folder):
        yield


@pytest.mark.parametrize(
    ("listed", "names"),
    [("1,0", ["0", "1"]), ("GPU-8a/b, GPU-2", ["GPU-2", "GPU-8a/b"]), ("", ["all"]), (None, ["all"])],
)
def test_a_process_takes_its_turn_on_the_gpus_that_it_sees(
    listed: str | None, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert gpus_of_this_process() == names
    with turns_on_gpus(tmp_path):
        assert len(list(tmp_path.iterdir())) == len(names)


def test_another_engine_waits_for_the_gpu_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a process that was forked meanwhile has the lock's file open."""
    kept_open = []
    lock_file = gpu_turns.lock_file

    def lock_and_fork(descriptor: int, *, wait: bool = True) -> None:
        kept_open.append(os.dup(descriptor))
        lock_file(descriptor, wait=wait)

    monkeypatch.setattr(gpu_turns, "lock_file", lock_and_fork)
    started, waits = threading.Event(), threading.Event()
    monkeypatch.setattr(gpu_turns.logger, "info", lambda *_: waits.set())

    def start() -> None:
        with turns_on_gpus(tmp_path):
            started.set()

    other = threading.Thread(target=start)
    with on("0,1", tmp_path, monkeypatch):
        with on("2", tmp_path, monkeypatch):
            assert not waits.is_set()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
        other.start()
        assert waits.wait(60)
        assert not started.is_set()
    assert started.wait(60)
    other.join()
    for descriptor in kept_open:
        os.close(descriptor)


def test_an_engine_that_fails_to_start_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no memory"), on("0", tmp_path, monkeypatch):
        raise ValueError("no memory")
    with on("0", tmp_path, monkeypatch):
        pass


def test_where_nothing_can_be_written_an_engine_starts_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("")
    with on("0", tmp_path / "taken", monkeypatch):
        assert "starts without waiting for others" in caplog.text
