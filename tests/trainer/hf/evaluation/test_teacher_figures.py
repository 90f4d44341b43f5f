"""The teacher's figures come from the stored rows: those of the very rows that the student is judged on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from logitstore.store import LogitStore
from tests.trainer.stores import make_store
from trainer.data.dataset import StreamingLogitDataset
from trainer.hf.evaluation.teacher_figures import teacher_figures
from trainer.run.result.report import gap_closed, percent


@pytest.mark.parametrize("limit", [None, 9])
def test_they_are_those_of_the_rows_that_count(tmp_path: Path, limit: int | None) -> None:
    make_store(tmp_path / "store", (7, 6))
    dataset = StreamingLogitDataset(str(tmp_path / "store"), batch_size=4, shuffle=True, seed=3)
    found = teacher_figures(dataset, limit, None)
    nll, right, confidence = [], [], []
    for sequence in LogitStore.open(tmp_path / "store").iter_sequences():
        rows = sequence.rows
        for row in range(rows.num_rows):
            if limit is not None and sequence.label_start + row >= limit:
                continue
            token = sequence.token_ids_T[sequence.label_start + row]
            nll.append(-rows.label_logprob_N[row])
            right.append(rows.token_ids_NK[row, 0] == token)
            confidence.append(np.exp(rows.logits_NK[row, 0] - rows.logsumexp_NM[row, 0]))
    bins = np.minimum((np.array(confidence) * 15).astype(int), 14)
    off = [abs(sum((np.array(right) - confidence)[bins == place])) for place in range(15)]
    assert found is not None
    assert found.num_rows == len(nll)
    assert found.cross_entropy == pytest.approx(np.mean(nll), rel=1e-5)
    assert found.accuracy == pytest.approx(np.mean(right))
    assert found.calibration_error == pytest.approx(sum(off) / len(nll), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "before", "after", "teacher", "share"),
    [
        ("kl", 4.0, 1.0, 0.0, 0.75),
        ("accuracy", 0.2, 0.5, 0.8, 0.5),
        ("cross_entropy", 3.0, 3.5, 1.0, -0.25),
        ("accuracy", 0.8, 0.9, 0.7, None),
        ("calibration_error", 0.2734, 0.0299, 0.0634, None),
    ],
)
def test_the_share_of_the_gap(
    name: str, before: float, after: float, teacher: float, share: float | None
) -> None:
    assert gap_closed(name, before, after, teacher) == (None if share is None else pytest.approx(share))


def test_texts_alone_tell_nothing_of_the_teacher(tmp_path: Path) -> None:
    """Their rows are made of the text: a teacher of accuracy 1 and cross-entropy 0 that nobody has."""
    make_store(tmp_path / "texts", texts_alone=True, prefix="t")
    make_store(tmp_path / "labels")
    for stores in (["texts"], ["labels", "texts"]):
        dataset = StreamingLogitDataset([str(tmp_path / name) for name in stores], batch_size=4)
        assert teacher_figures(dataset, None, None) is None


def test_a_share_just_below_zero_has_no_sign() -> None:
    assert [percent(share) for share in (-0.001, -0.004, -0.006, 0.0, 0.994, 1.0)] == [
        "0%", "0%", "-1%", "0%", "99%", "100%",
    ]  # fmt: skip
