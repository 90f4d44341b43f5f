"""A sweep's page and recommendation say what its runs show, whatever the values and however runs end."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from logitstore.common.config_file import ConfigError
from logitstore.store import LogitStore
from tests.trainer.stores import make_store
from trainer.__main__ import main
from trainer.hf.evaluation.better import HIGHER_IS_BETTER, LOWER_IS_BETTER
from trainer.run.config import resolved
from trainer.run.file_names import CONFIG_NAME, METRICS_NAME
from trainer.sweep.command import report
from trainer.sweep.grid import Axis, Point, points_of, read_axis
from trainer.sweep.page import page
from trainer.sweep.runs import Outcome, ended_before, failure
from trainer.sweep.summary import FIGURES, recommendation, record

BASE: dict[str, Any] = {"student": {"model": "m"}, "data": {"stores": "s"}, "output": {"folder": "out"}}


def swept(*over: str, base: dict[str, Any] = BASE, folder: str = "out") -> tuple[list[Axis], list[Point]]:
    axes = [read_axis(text) for text in over]
    return axes, points_of(base, axes, folder, None)


def ended(
    points: Sequence[Point], kls: Sequence[float | None], num_rows: Sequence[int] = ()
) -> list[Outcome]:
    """Runs with these figures; None failed."""
    return [
        Outcome(point, "failed", None, "its process was ended by SIGKILL")
        if kl is None
        else Outcome(
            point,
            "finished",
            {
                "before": None,
                "after": dict.fromkeys(FIGURES, kl) | {"num_rows": rows},
                "train_seconds": 1.0,
            },
        )
        for point, kl, rows in zip(points, kls, num_rows or [7] * len(kls), strict=True)
    ]


def test_values_that_are_lists_have_curves_too() -> None:
    """The page could not be written, and the sweep ended after its first run."""
    base = {**BASE, "student": {"model": "m", "lora": {"rank": 4}}}
    over = 'student.lora.target_modules=["q_proj"],["q_proj","v_proj"]'
    axes, points = swept(over, "loss.alpha=0.5,1", base=base)
    outcomes = ended(points, [1.0, 2.0, 3.0, 4.0])
    written = page(outcomes, axes, "kl", "out")
    assert written.count("<circle") == 2 * 2 * len(points)
    assert ">[&#x27;q_proj&#x27;, &#x27;v_proj&#x27;]</text>" in written
    assert json.loads(json.dumps(record(outcomes, axes, "kl")))["runs"][0]["after"]["kl"] == 1.0


@pytest.mark.parametrize("over", ["loss.temperature=1,1.0", "training.seed=0,0.0", "loss.temperature=1,true"])
def test_one_value_in_two_spellings_is_named_twice(over: str) -> None:
    """The same seed twice showed no spread, and so a recommendation that was surer than it could be."""
    with pytest.raises(ConfigError, match=r"names a value twice, in .+; every value is tried once"):
        swept(over)


@pytest.mark.parametrize("name", ["data.held_out_fraction", "evaluation.max_sequences", "evaluation.stores"])
def test_what_students_are_judged_on_is_no_axis(name: str) -> None:
    values = "a,b" if name.endswith("stores") else "1,2" if name.endswith("sequences") else "0.1,0.2"
    with pytest.raises(ConfigError, match=f"{name}, which says what the students are judged on"):
        swept(f"{name}={values}")


def test_runs_judged_on_unlike_rows_are_not_compared() -> None:
    """Shorter sequences have other rows, and the least KL was recommended all the same."""
    axes, points = swept("data.max_length=64,128")
    outcomes = ended(points, [1.0, 2.0], [640, 1280])
    assert recommendation(outcomes, "kl")[0].startswith(
        "nothing is recommended: the runs were judged on unlike label rows (640 to 1,280)"
    )
    told = report(outcomes, "out", "kl")
    assert "\nrecommended: " not in told
    assert "next: " not in told
    assert "nothing is recommended" in page(outcomes, axes, "kl", "out")


def test_of_every_figure_it_is_known_whether_the_highest_is_the_best() -> None:
    assert {*FIGURES} <= {*LOWER_IS_BETTER, *HIGHER_IS_BETTER}
    for by in FIGURES:
        _, points = swept("loss.alpha=0.5,1")
        best = 0.5 if by in LOWER_IS_BETTER else 1
        assert recommendation(ended(points, [0.1, 0.2]), by)[0].startswith(f"recommended: alpha={best}")


def test_seeds_of_the_order_are_no_settings() -> None:
    """One of them was recommended."""
    axes, points = swept("loss.alpha=0.5,1", "data.seed=0,1,2", "training.seed=0,1")
    outcomes = ended(points, [1.0, 1.1, 1.2, 1.0, 1.1, 1.2, 2.0, 2.1, 2.2, 2.0, 2.1, 2.2])
    assert recommendation(outcomes, "kl")[0].startswith("recommended: alpha=0.5, ")
    written = page(outcomes, axes, "kl", "out")
    assert "<tr><th>alpha=0.5<td>6<td>1.1000 ±0.0894" in written
    assert "<h2>data.seed" not in written


def test_seeds_are_said_in_one_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number was ignored where an axis named them."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    base = ["sweep", "--student", "m", "--labels", "s", "--out", str(tmp_path), "--dry-run"]
    make_store(tmp_path / "s", (6,))
    base[4] = str(tmp_path / "s")
    assert main([*base, "--seeds", "3", "--over", "training.seed=0,1"]) == 2
    assert "--seeds 3 and --over training.seed both say which seeds" in capsys.readouterr().err
    assert main([*base, "--over", "training.seed=5"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path}/runs/seed=5"]
    assert main([*base, "--over", "loss.alpha=1"]) == 0
    assert [line[-6:] for line in capsys.readouterr().out.splitlines()] == ["seed=0", "seed=1"]


def test_a_recommendation_says_which_of_its_runs_failed() -> None:
    """One seed of three had not diverged, and its setting was recommended without a word."""
    axes, points = swept("training.learning_rate=1e-3,1e-2", "training.seed=0,1,2")
    outcomes = ended(points, [2.0, 2.1, 2.2, None, 1.0, None])
    said = recommendation(outcomes, "kl")
    assert said[0].startswith("recommended: learning_rate=0.01, ")
    assert said[1] == "2 of its 3 runs failed, which this figure does not show"
    assert (
        "2 of 6 runs failed, the first learning_rate=0.01_seed=0: its process was ended by SIGKILL"
        in report(outcomes, "out", "kl")
    )
    assert "2 of its 3 runs failed" in page(outcomes, axes, "kl", "out")


@pytest.mark.parametrize(
    ("status", "told", "why"),
    [
        (2, "note\nerror: no store\n", "error: no store"),
        (1, "", "exit status 1"),
        (-9, "found: no GPU\n", "its process was ended by SIGKILL, as is done to one that takes more memory"),
        (-11, "found: no GPU\n", "its process was ended by SIGSEGV"),
        (-99, "", "its process was ended by signal 99"),
    ],
)
def test_a_run_that_was_killed_did_not_fail_for_what_it_said_last(status: int, told: str, why: str) -> None:
    assert failure(status, told).startswith(why)


def test_more_curves_than_colours_can_be_told_apart() -> None:
    axes, points = swept("loss.temperature=1,2", "loss.alpha=" + ",".join(f"0.{i}" for i in range(1, 10)))
    written = page(ended(points, [float(i) for i in range(18)]), axes, "kl", "out")
    section = written[written.index("<h2>loss.temperature") : written.index("<h2>loss.alpha")]
    keys = re.findall(r"<line x2=26 y1=4 y2=4 ([^/]+) />", section)
    assert len(keys) == len(set(keys)) == 9
    assert all(section.count(key) == 3 for key in keys), "in the key and in both charts"


def test_finished_runs_stay_so_when_values_are_added_or_taken_away(tmp_path: Path) -> None:
    """Only the first evaluates before training; those that were not, or were, the first before failed: "made
    otherwise than now"."""
    digest = make_store(tmp_path / "store", (6,), fingerprint="f", tokenizer_size=64).digest
    assert digest == LogitStore.open(str(tmp_path / "store")).digest
    base = {**BASE, "data": {"stores": str(tmp_path / "store")}}
    _, points = swept("loss.temperature=2,4", "training.seed=0", base=base, folder=str(tmp_path))
    for point in points:
        folder = Path(point.config.output.folder)
        folder.mkdir(parents=True)
        (folder / CONFIG_NAME).write_text(json.dumps(resolved(point.config)))
        (folder / METRICS_NAME).write_text(json.dumps({"stores": [{"digest": digest}]}))
    for over, names in (
        ("loss.temperature=1,2,4", ["temperature=2_seed=0", "temperature=4_seed=0"]),
        ("loss.temperature=4", ["temperature=4_seed=0"]),
        ("loss.temperature=4,2", ["temperature=4_seed=0", "temperature=2_seed=0"]),
    ):
        _, now = swept(over, "training.seed=0", base=base, folder=str(tmp_path))
        assert [outcome.point.name for outcome in ended_before(now)] == names
    _, others = swept("loss.temperature=2,4", "training.seed=0", base={**base, "loss": {"alpha": 0.25}},
                      folder=str(tmp_path))  # fmt: skip
    assert not list(ended_before(others))
