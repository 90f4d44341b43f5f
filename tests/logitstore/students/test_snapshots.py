"""The file of snapshots: what is written is read, and what is no such file is refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from logitstore.errors import UnsupportedFormatError
from logitstore.students.snapshots import (
    SNAPSHOTS_NAME,
    FollowedSequence,
    Snapshots,
    StudentRows,
    read_snapshots,
    write_snapshots,
)
from tests.logitstore.viewer.viewer_records import TEMPERATURES, full_logits, rows_of


def some_snapshots(steps: tuple[int, ...] = (0, 5), num_rows: int = 4) -> Snapshots:
    rng = np.random.default_rng(0)

    def taken() -> StudentRows:
        own_N = rng.integers(0, 50, num_rows).astype(np.int32)
        return StudentRows(rows_of(full_logits(rng, num_rows, 50), 6), own_N, own_N.astype(np.float32))

    first = taken()
    followed = FollowedSequence(
        "labels/a", "r<1>", 2, TEMPERATURES, 50, (first, *([first] * (len(steps) - 1)))
    )
    return Snapshots(steps, (followed,))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    given = some_snapshots()
    write_snapshots(given, tmp_path)
    found = read_snapshots(tmp_path)
    assert found.steps == (0, 5)
    (one,), (other,) = given.sequences, found.sequences
    assert (other.store, other.record_id, other.sample_index, other.vocab_size) == ("labels/a", "r<1>", 2, 50)
    assert other.temperatures == TEMPERATURES
    for before, after in zip(one.snapshots, other.snapshots, strict=True):
        np.testing.assert_array_equal(before.rows.logits_NK, after.rows.logits_NK)
        np.testing.assert_array_equal(before.rows.token_ids_NK, after.rows.token_ids_NK)
        np.testing.assert_array_equal(before.rows.log_tail_mass_NM, after.rows.log_tail_mass_NM)
        np.testing.assert_array_equal(before.own_token_ids_N, after.own_token_ids_N)
    assert [path.name for path in tmp_path.iterdir()] == [SNAPSHOTS_NAME]


def test_a_step_taken_again_replaces_what_came_after() -> None:
    given = some_snapshots((0, 5, 10))
    again = given.with_step(5, [given.sequences[0].snapshots[0]])
    assert again.steps == (0, 5)
    assert len(again.sequences[0].snapshots) == 2


@pytest.mark.parametrize("change", ["version", "shape", "missing", "text", "steps", "none", "inf", "deep"])
def test_what_is_no_such_file_is_refused_in_words(tmp_path: Path, change: str) -> None:
    path = tmp_path / SNAPSHOTS_NAME
    write_snapshots(some_snapshots(), tmp_path)
    arrays = dict(np.load(path))
    head = json.loads(arrays["head"].tobytes())
    if change == "version":
        head["version"] = 2
    elif change == "shape":
        arrays["logits_0"] = arrays["logits_0"][:, :2]
    elif change == "missing":
        del arrays["logits_0"]
    elif change == "steps":
        head["steps"] = [0]
    elif change == "none":
        head["steps"] = []
        arrays |= {name: one[:0] for name, one in arrays.items() if name.startswith(("lo", "la", "ow"))}
    elif change == "inf":
        head["sequences"][0]["vocab_size"] = float("inf")
    text = "[" * 100_000 if change == "deep" else json.dumps(head)
    arrays["head"] = np.frombuffer(text.encode(), np.uint8)
    np.savez(path, **arrays)
    if change == "text":
        path.write_text("no archive")
    with pytest.raises(UnsupportedFormatError, match="train again"):
        read_snapshots(tmp_path)


def test_a_file_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snapshots(some_snapshots(), tmp_path)
    monkeypatch.setattr("logitstore.students.snapshots.MAX_BYTES", 100)
    with pytest.raises(UnsupportedFormatError, match="at most 100"):
        read_snapshots(tmp_path)


def test_an_archive_that_is_damaged_within_is_refused_in_words(tmp_path: Path) -> None:
    write_snapshots(some_snapshots(), tmp_path)
    path = tmp_path / SNAPSHOTS_NAME
    whole = path.read_bytes()
    for local, central, value in ((6, 8, 1), (8, 10, 99)):  # encrypted, and of an unknown compression
        data = bytearray(whole)
        for sign, at in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
            start = -1
            while (start := whole.find(sign, start + 1)) >= 0:
                data[start + at] = value
        path.write_bytes(data)
        with pytest.raises(UnsupportedFormatError, match="train again"):
            read_snapshots(tmp_path)
