"""What the parts `sweep` and `parity` make of the records that the commands leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.demo.demo import StepFailedError, answering_students
from benchmarks.report.results_page import write_page
from benchmarks.students import parity, sweep
from trainer.run.config import load_config
from trainer.sweep.grid import points_of, read_axis

CONFIGS = Path(__file__).parents[3] / "configs"


def sweep_record(**changes: Any) -> dict[str, Any]:
    """As `penumbra train sweep` writes it: the KL is the temperature, and a tenth for each seed."""
    axes = [read_axis(text) for text in (*sweep.OVER, f"training.seed={','.join('01')}")]
    base = {"student": {"model": "m"}, "data": {"stores": "s"}}
    runs = [
        {
            "name": point.name,
            "settings": point.values,
            "state": "finished",
            "error": "",
            "after": {
                "kl": point.values["loss.temperature"] + point.values["training.seed"] / 10,
                "cross_entropy": 3.0,
                "top1_agreement": 0.5,
                "calibration_error": 0.1,
            },
            "train_seconds": 7.0,
        }
        for point in points_of(base, axes, "out", None)
    ]
    runs[-1] |= changes
    return {"runs": runs, "recommendation": ["recommended: T"]}


def test_a_sweep_is_a_line_for_each_settings_and_its_seeds_are_repetitions(tmp_path: Path) -> None:
    (tmp_path / sweep.RECORD_NAME).write_text(json.dumps(sweep_record()))
    runs = sweep.read_runs(tmp_path)
    assert len(runs) == sweep.num_runs() == 16
    result = sweep.result_of(runs, sweep.Interruption(8, 8, 600.0, "r", 0.0), ["recommended: T"])
    kl = result.figure("kl_t2_alpha90_k64")
    assert (kl.value, kl.repetitions) == (pytest.approx(2.05), 2)
    assert kl.spread == pytest.approx(0.1)
    assert len(result.tables[0].rows) == 8
    assert result.tables[0].rows[0][0].startswith("T=1, ")  # type: ignore[union-attr]  # the best stands first
    assert result.meaning.startswith("16 students of one store took 10.0 min")
    write_page({"sweep": result}, (), tmp_path, tmp_path / "RESULTS.md")
    assert '<a id="sweep.kl_t1_alpha50_k16"></a>' in (tmp_path / "RESULTS.md").read_text()


def test_a_run_that_failed_ends_the_measurement(tmp_path: Path) -> None:
    assert sweep.read_runs(tmp_path) == {}
    record = sweep_record(state="failed", error="out of memory", after=None)
    (tmp_path / sweep.RECORD_NAME).write_text(json.dumps(record))
    with pytest.raises(StepFailedError, match="failed: out of memory"):
        sweep.read_runs(tmp_path)


def gap(teacher: float, student: float) -> dict[str, Any]:
    between = teacher - student
    return {
        "num_items": 50, "teacher": teacher, "student": student, "gap": between, "low": between - 0.1,
        "high": between + 0.1,
    }  # fmt: skip


def test_parity_has_a_line_for_each_measure_of_each_student(tmp_path: Path) -> None:
    answered = {
        "gaps": {
            "gsm8k (exact_match, strict-match)": {**gap(0.04, 0.0), "low": 0.04, "high": 0.04},
            "gsm8k (exact_match, flexible-extract)": gap(0.06, 0.02),
        },
        "num_cut_answers": {"teacher": 3, "student": 40},
    }
    train = load_config(str(CONFIGS / parity.TRAIN_FILE))
    likely = {
        name: {"gaps": {"q.jsonl (bits_per_byte)": gap(1.0, 1.5 + place / 10)}}
        for place, name in enumerate(answering_students(train))
    }
    result = parity.result_of(answered, likely, 90.0)
    assert result.figure("exact_match_strict_match_teacher").value == 0.04
    assert result.figure("exact_match_flexible_extract_gap").value == pytest.approx(0.04)
    assert result.figure("bits_per_byte_distilled_student").value == pytest.approx(1.7)
    assert len(result.tables[0].rows) == 5
    assert [cell is None for cell in result.tables[0].rows[0][4:]] == [True, True], "all items are alike"
    assert [cell is None for cell in result.tables[0].rows[1][4:]] == [False, False]
    assert "Of 50 GSM8K questions the teacher answers 4% and its student 0%" in result.meaning
    write_page({"parity": result}, (), tmp_path, tmp_path / "RESULTS.md")
    assert '<a id="parity.bits_per_byte_before_gap"></a>' in (tmp_path / "RESULTS.md").read_text()
