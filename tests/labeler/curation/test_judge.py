"""Grades are the exact expectation over the digits; what has none is dropped and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labeler.__main__ import main
from labeler.curation.judge import Grade, _read_scores, agreement_of, grade_of
from logitstore import LabelRows, LogitStore
from logitstore.inputs.json_text import json_text

FAKE = ("--set", "teacher.engine=fake", "--quiet")


def rows(entries: dict[int, float], logsumexp: float) -> LabelRows:
    ids = sorted(entries, key=lambda token_id: -entries[token_id])
    return LabelRows(
        logits_NK=np.array([[entries[i] for i in ids]], np.float32),
        token_ids_NK=np.array([ids], np.int32),
        count_N=np.array([len(ids)], np.int32),
        logsumexp_NM=np.array([[logsumexp]], np.float32),
        log_tail_mass_NM=np.array([[-1.0]], np.float32),
        label_logprob_N=np.array([-1.0], np.float32),
        label_rank_N=np.array([1], np.int32),
    )


def digit_of(token_id: int) -> int | None:
    return {11: 1, 12: 2, 15: 5, 25: 5}.get(token_id)


def test_the_grade_is_the_mean_of_the_digits_under_their_probabilities() -> None:
    logprobs = {11: np.log(0.1), 15: np.log(0.2), 25: np.log(0.1), 77: np.log(0.5)}
    grade = grade_of(rows({i: float(value) + 3 for i, value in logprobs.items()}, 3.0), digit_of)
    assert grade.expected == pytest.approx((1 * 0.1 + 5 * 0.3) / 0.4, abs=1e-6), "two tokens show a 5"
    assert grade.mass == pytest.approx(0.4, abs=1e-6)
    assert grade.argmax == 5


def test_without_a_digit_there_is_no_grade() -> None:
    assert grade_of(rows({77: 1.0, 78: 0.5}, 2.0), digit_of) == Grade(0.0, 0, 0.0)


def test_agreement_counts_what_both_graded() -> None:
    one = {"a": Grade(1.2, 1, 0.9), "b": Grade(3.1, 3, 0.9), "c": Grade(4.5, 5, 0.9), "d": Grade(2, 2, 0.9)}
    other = {"a": Grade(2.0, 2, 0.8), "b": Grade(3.5, 3, 0.8), "c": Grade(4.9, 5, 0.8), "x": Grade(1, 1, 0.8)}
    found = agreement_of(one, other)
    assert (found.num_prompts, found.spearman) == (3, pytest.approx(1.0))
    assert found.same_argmax == pytest.approx(2 / 3)
    assert np.isnan(agreement_of(one, {"a": one["a"]}).spearman), "one prompt has no order"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_judge_asks_once_and_its_grades_are_those_of_the_stored_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    prompts = [{"id": f"p{number}", "prompt": f"prompt {number}"} for number in range(12)]
    source.write_text("".join(json.dumps(one) + "\n" for one in [*prompts, prompts[3], {"prompt": 4}]))
    out = tmp_path / "good.jsonl"
    command = ["judge", "--input", str(source), "--out", str(out), *FAKE, "--set", "labels.top_k=512"]
    arguments = [*command, "--set", "judge.min_mass=0.001", "--threshold", "3"]
    assert main(arguments) == 0
    scores = {one["id"]: one for one in lines(tmp_path / "good.scores.jsonl")}
    assert scores.keys() == {one["id"] for one in prompts}
    for sequence in LogitStore.open(tmp_path / "good.asked").iter_sequences():
        logits = np.zeros(512)
        logits[sequence.rows.token_ids_NK[0]] = sequence.rows.logits_NK[0]
        digits = np.exp(logits[49:54] - np.log(np.exp(logits).sum()))
        score = scores[sequence.record_id]
        assert score["mass"] == pytest.approx(digits.sum(), rel=2e-3)
        assert score["expected"] == pytest.approx(digits @ np.arange(1, 6) / digits.sum(), abs=5e-3)
    expected = [one for one in prompts if scores[one["id"]]["expected"] >= 3]
    graded = [one for one in prompts if scores[one["id"]]["mass"] >= 0.001]
    kept = lines(out)
    assert kept == [one for one in expected if one in graded]
    dropped = lines(tmp_path / "good.dropped.jsonl")
    assert len(kept) + len(dropped) == 14
    assert [one["method"] for one in dropped[:2]] == ["repeated", "unreadable"]
    before = (out.read_bytes(), (tmp_path / "good.scores.jsonl").read_bytes())
    assert main([*arguments, "--compare", str(tmp_path / "good.scores.jsonl")]) == 0
    assert (out.read_bytes(), (tmp_path / "good.scores.jsonl").read_bytes()) == before
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "judge.rubric=grade this"), "has no {prompt}"),
        (("--threshold", "7"), "threshold = 7"),
        (("--set", "judge.treshold=2"), "did you mean"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n')
    assert main(["judge", "--input", str(source), "--out", str(tmp_path / "o.jsonl"), *FAKE, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o.asked").exists()


def test_grades_of_ids_with_any_character_are_read_back(tmp_path: Path) -> None:
    ids = ["a\u2028b", "a\u0085b", "\u00e9"]
    lines = [json_text({"id": name, "expected": 4.0, "argmax": 4, "mass": 0.9}) for name in ids]
    (tmp_path / "o.scores.jsonl").write_bytes("".join(f"{line}\n" for line in lines).encode())
    assert list(_read_scores(tmp_path / "o.scores.jsonl")) == ids
