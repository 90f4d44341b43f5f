"""The calculator on real stores: what it reads from one, and how it judges another."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.jobs.made_up_labels import TOP_K, empty_store, made_up_sequence
from benchmarks.labels.labeled_times import read_store

ROWS, UNIT_SEC = 32, 0.15


def labeled_store(folder: Path, units: int, *, rows: int = ROWS) -> str:
    """A store whose two workers take turns, each unit committed after the time it says it took."""
    store, rng = empty_store(folder), np.random.default_rng(1)
    for unit in range(0, units, 2):
        time.sleep(UNIT_SEC)
        for worker in range(2):
            sequence = made_up_sequence(f"record-{unit}-{worker}", rows, rng)
            store.commit_unit(
                f"unit-{unit + worker}",
                unit + worker,
                [sequence],
                seconds=UNIT_SEC,
                worker=f"worker-{worker}",
            )
    return store.uri


def test_a_store_says_how_fast_it_was_made(tmp_path: Path) -> None:
    began = time.time()
    uri = labeled_store(tmp_path / "store", 8)
    took = time.time() - began
    got = read_store(uri)
    assert (got.top_k, got.rows, got.units, got.replicas) == (TOP_K, 8 * ROWS, 8, 2)
    # Three units of each worker after its first; committing takes time too, more on a busy machine.
    assert 6 * ROWS / took < got.rows_per_sec < 1.05 * 2 * ROWS / UNIT_SEC
    assert got.rows_per_token == ROWS / (ROWS + 1)
    assert got.num_bytes > 8 * ROWS * TOP_K


def test_a_small_run_foretells_the_size_of_a_larger_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = (labeled_store(tmp_path / str(units), units) for units in (4, 8))
    main(["plan", "--from-store", small, "--against", large, "--json"])
    errors = json.loads(capsys.readouterr().out)["relative_errors"]
    assert abs(errors["bytes"]) < 0.05
    assert set(errors) == {"bytes", "rows per second"}


def test_a_model_that_is_off_fails(tmp_path: Path) -> None:
    small = labeled_store(tmp_path / "small", 4)
    doubled = labeled_store(tmp_path / "doubled", 4, rows=4 * ROWS)
    assert main(["plan", "--from-store", small, "--bytes-per-token", "1000", "--against", doubled]) == 1


def test_the_calculator_prints_what_it_assumes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tokens", "1e12", "--gpus", "64", "--rate", "20000", "--bytes-per-token", "130"]
    assert main(["plan", *arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["estimate"]["store_bytes"] == 130e12
    assert printed["scale"]["replicas"] == 64
    assert printed["rates"]["origin"] == "as given"
    assert main(["plan", *arguments]) == 0
    assert "Assumed: 130.0 B and 20,000 rows/s" in " ".join(capsys.readouterr().out.split())


def test_a_rate_must_come_from_somewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--tokens", "1e9"]) == 2
    assert "--rate is missing" in capsys.readouterr().err


GIVEN = ("plan", "--tokens", "1e9", "--rate", "1000")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--gpus", "1", "--gpus-per-replica", "8"), "--gpus 1 hold no replica, which takes"),
        (("--top-k", "8", "--bytes-per-token", "9"), "--top-k 8 chooses the committed size of a row, but"),
        (("--bytes-per-token", "1e300"), "come to more than can be reckoned with"),
    ],
)
def test_an_estimate_of_something_else_than_was_asked_is_refused(
    more: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One GPU was taken for the eight of a replica, and a K was ignored beside a size."""
    assert main([*GIVEN, *more]) == 2
    assert says in capsys.readouterr().err


def test_what_an_estimate_leaves_out_and_guesses_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GIVEN, "--gpus", "10", "--gpus-per-replica", "4", "--top-k", "1000", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "2 of 10 GPUs are left over, and not counted\n"
    origin = json.loads(captured.out)["rates"]["origin"]
    assert "at other K, extrapolated from those of K=8 to 128, rate as given" in origin
    assert main([*GIVEN, "--top-k", "40", "--json"]) == 0
    assert "at other K, between those, rate" in json.loads(capsys.readouterr().out)["rates"]["origin"]
    assert main([*GIVEN, "--json"]) == 0
    assert "at other K" not in json.loads(capsys.readouterr().out)["rates"]["origin"]
