"""A file appears whole or not at all, and a failure leaves what was there."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from logitstore.common.whole_file import (
    DEAD_AFTER_SEC,
    check_place,
    naming_full_disk,
    replacing,
    write_whole,
)
from logitstore.errors import UnsupportedInputError


def test_a_file_is_replaced_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("first\n", "zweitens: ü\n"):
        write_whole(path, text)
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "earlier")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "a lone surrogate \ud800 " * 100_000)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_with_the_file_that_found_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's error of writing names no file: which disk is full was not said."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as refused:
        write_whole(tmp_path / "a.json", "text")
    assert refused.value.filename == str(tmp_path / "a.json")
    with pytest.raises(OSError, match="No space left") as refused, naming_full_disk(tmp_path / "b.npz"):
        full(0)
    assert refused.value.filename == str(tmp_path / "b.npz")


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "a.html", tmp_path / "file" / "a.html"):
        with pytest.raises(OSError, match=r"a\.html") as refused:
            write_whole(path, "text")
        assert refused.value.filename == str(path)


def test_a_place_where_no_file_can_be_put_is_told_of_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    wrong = {"none/a.html": "is no folder; make it", ".": "is a folder", "link": "a link", "pipe": "a pipe"}
    for name, says in wrong.items():
        with pytest.raises(UnsupportedInputError, match=says):
            check_place(tmp_path / name)
    check_place(tmp_path / "a.html")


def test_what_killed_processes_left_of_a_file_goes_with_its_next_writing(tmp_path: Path) -> None:
    names = {"a.jsonl": [".a.jsonl.part", ".a.jsonl.0123abcd.part"], "b.jsonl": [".b.jsonl.0123abcd.part"]}
    for name in (name for parts in names.values() for name in parts):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (0, time.time() - DEAD_AFTER_SEC - 60))
    (tmp_path / ".a.jsonl.89ef4567.part").write_text("of one that is at work")
    with replacing(tmp_path / "a.jsonl") as part:
        part.write_text("whole")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.jsonl", ".a.jsonl.89ef4567.part", *names["b.jsonl"]}
    assert (tmp_path / "a.jsonl").read_text() == "whole"
    with pytest.raises(UnicodeEncodeError), replacing(tmp_path / "a.jsonl") as part:
        part.write_text("half \ud800", encoding="utf-8")
    assert (tmp_path / "a.jsonl").read_text() == "whole"
    assert {path.name for path in tmp_path.iterdir()} == left
