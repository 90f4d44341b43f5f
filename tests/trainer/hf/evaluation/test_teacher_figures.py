"""The teacher's figures come from the stored rows: those of the very rows that the student is judged on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from logitstore.manifest.fields import (
    GIVEN_ENTRIES,
    RETOKENIZED,
    SEGMENTS,
    Manifest,
    Retokenized,
    TokenizerInfo,
)
from logitstore.records import UNKNOWN_RANK, LabeledSequence, Segment
from logitstore.store import LogitStore
from tests.trainer.stores import label_spec, labeled_sequence, make_store, manifest
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.hf.evaluation.evaluate import evaluation_batches
from trainer.hf.evaluation.teacher_figures import calibration_record, teacher_figures
from trainer.run.result.model_card import CardFigures, model_card
from trainer.run.result.report import evaluation_table, gap_closed, percent


@pytest.mark.parametrize("limit", [None, 9])
def test_they_are_those_of_the_rows_that_count(tmp_path: Path, limit: int | None) -> None:
    make_store(tmp_path / "store", (7, 6))
    dataset = StreamingLogitDataset(str(tmp_path / "store"), batch_size=4, shuffle=True, seed=3)
    found = teacher_figures(dataset, CollateSettings(max_length=limit), None)
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
    assert found.to_dict()["accuracy"] == pytest.approx(np.mean(right))
    assert found.to_dict()["calibration_error"] == pytest.approx(sum(off) / len(nll), abs=1e-5)


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


def changed_store(path: Path, change: Callable[[LabeledSequence], LabeledSequence]) -> LogitStore:
    """A store whose sequences are those of `make_store`, changed; with the features that they need."""
    made = make_store(path.with_name("made"), (9,))
    sequences = [change(one) for one in made.iter_sequences()]
    features = (SEGMENTS,) if sequences[0].segments_T is not None else ()
    labels = replace(made.manifest.labels, extra_columns=features)
    store = LogitStore.create(path, replace(made.manifest, labels=labels, features=features))
    store.commit_unit("u", 0, sequences, seconds=0.0, worker="test")
    return store


def test_segments_that_do_not_count_for_the_student_do_not_for_the_teacher(tmp_path: Path) -> None:
    """Both columns of the table are of the same rows."""

    def reasoning_first(sequence: LabeledSequence) -> LabeledSequence:
        segments_T = np.full(len(sequence.token_ids_T), Segment.CONTEXT, np.uint8)
        segments_T[sequence.label_start :] = Segment.ANSWER
        segments_T[sequence.label_start : sequence.label_start + 2] = Segment.REASONING
        return replace(sequence, segments_T=segments_T)

    store = changed_store(tmp_path / "store", reasoning_first)
    settings = CollateSettings(segment_weights={"reasoning": 0.0, "answer": 0.5})
    dataset = StreamingLogitDataset(store.uri, batch_size=4)
    answers = [one.rows.slice(2, one.rows.num_rows).label_logprob_N for one in store.iter_sequences()]
    found = teacher_figures(dataset, settings, None)
    assert found is not None
    assert found.num_rows == sum(map(len, answers))
    assert found.cross_entropy == pytest.approx(-np.concatenate(answers).mean(), rel=1e-5)
    labels = [batch["labels"] for batch in evaluation_batches(dataset, DistillationCollator(settings), None)]
    assert found.num_rows == sum(int((one != settings.ignore_index).sum()) for one in labels)


def test_a_rank_that_is_not_known_says_nothing_of_the_top_token(tmp_path: Path) -> None:
    """Rows that were mixed of two teachers' have no ranks, and a teacher of rank 2 twice has a top token."""

    def without_ranks(sequence: LabeledSequence) -> LabeledSequence:
        ranks_N = np.full(sequence.rows.num_rows, UNKNOWN_RANK, np.int32)
        return replace(sequence, rows=replace(sequence.rows, label_rank_N=ranks_N))

    store = changed_store(tmp_path / "store", without_ranks)
    right = [
        one.rows.token_ids_NK[:, 0] == one.token_ids_T[one.label_start :] for one in store.iter_sequences()
    ]
    found = teacher_figures(StreamingLogitDataset(store.uri, batch_size=4), CollateSettings(), None)
    assert found is not None
    assert found.to_dict()["accuracy"] == pytest.approx(np.mean(np.concatenate(right)))


def given_entries() -> Manifest:
    return replace(manifest(replace(label_spec(), support="given")), features=(GIVEN_ENTRIES,))


def mapped_entries() -> Manifest:
    """The likeliest token of the teacher may have had no equal: the row then began with the second."""
    origin = Retokenized(("0" * 32,), TokenizerInfo("other", 64), merged_spans=False)
    spec = replace(label_spec(), teacher_vocab_size=64)
    return replace(manifest(spec), features=(RETOKENIZED,), retokenized=origin)


@pytest.mark.parametrize("head", [given_entries(), mapped_entries()], ids=["given", "mapped"])
def test_entries_of_other_ids_do_not_tell_the_top_token(tmp_path: Path, head: Manifest) -> None:
    store = LogitStore.create(tmp_path / "store", head)
    rng = np.random.default_rng(0)
    sequences = [labeled_sequence(rng, f"r{number}", label_spec(), 12, 3) for number in range(4)]
    store.commit_unit("u", 0, sequences, seconds=0.0, worker="test")
    found = teacher_figures(StreamingLogitDataset(store.uri, batch_size=4), CollateSettings(), None)
    assert found is not None
    assert found.to_dict().keys() == {"num_rows", "num_known_labels", "cross_entropy"}
    assert calibration_record(None, found) == {}


def as_imported(sequence: LabeledSequence) -> LabeledSequence:
    """What an import of entries alone knows: the log-probability of those actual tokens that are among them."""
    rows = sequence.rows
    has_N = (rows.token_ids_NK == sequence.token_ids_T[sequence.label_start :, None]).any(1)
    known_N = np.where(has_N, rows.label_logprob_N, np.nan).astype(np.float32)
    return replace(sequence, rows=replace(rows, label_logprob_N=known_N))


def test_rows_whose_actual_token_is_not_known_count_as_they_do_for_the_student(tmp_path: Path) -> None:
    """Of the rows that are known the teacher would seem better than it is: its own top ones."""
    whole = teacher_figures(
        StreamingLogitDataset(changed_store(tmp_path / "whole", lambda one: one).uri, batch_size=4),
        CollateSettings(),
        None,
    )
    (tmp_path / "part").mkdir()
    store = changed_store(tmp_path / "part" / "store", as_imported)
    found = teacher_figures(StreamingLogitDataset(store.uri, batch_size=4), CollateSettings(), None)
    assert whole is not None
    assert found is not None
    assert found.num_rows == whole.num_rows
    assert found.reliability == whole.reliability
    assert found.cross_entropy is None
    assert 0 < found.num_known_labels < found.num_rows
    student = {"num_sequences": 9, "num_rows": found.num_rows, "cross_entropy": 3.0, "accuracy": 0.1}
    printed = evaluation_table({**student, "cross_entropy": 4.0}, student, found.to_dict())
    assert "cross-entropy, nats                  4.0000   3.0000\n" in printed
    assert printed.splitlines()[-1] == (
        f"  the teacher's cross-entropy is left out, as its log-probability is known of {found.num_known_labels} "
        f"of the {found.num_rows} actual tokens"
    )
    assert "| cross-entropy, nats | - | 3.0000 | - |" in "\n".join(card_figures(student, found.to_dict()))


def card_figures(student: dict[str, float], teacher: dict[str, float]) -> list[str]:
    return model_card([], {}, CardFigures(None, student, teacher, None, 1)).splitlines()


def test_figures_of_other_rows_do_not_stand_beside_the_students() -> None:
    """In metrics of an earlier version."""
    student, teacher = (
        {"num_sequences": 9, "num_rows": 90, "accuracy": 0.1},
        {"num_rows": 80, "accuracy": 0.5},
    )
    printed = evaluation_table(student, student, teacher)
    assert "0.5000" not in printed
    assert printed.endswith("the teacher's figures are left out, as they are of 80 other rows")
    assert "| top token as in the text | - | 0.1000 | - |" in card_figures(student, teacher)


def test_given_entries_without_known_tokens_tell_nothing(tmp_path: Path) -> None:
    head = manifest(replace(label_spec(), support="given"))
    store = LogitStore.create(tmp_path / "store", replace(head, features=(GIVEN_ENTRIES,)))
    rng = np.random.default_rng(0)
    sequences = [as_imported(labeled_sequence(rng, f"r{number}", label_spec(), 12, 3)) for number in range(4)]
    store.commit_unit("u", 0, sequences, seconds=0.0, worker="test")
    assert teacher_figures(StreamingLogitDataset(store.uri, batch_size=4), CollateSettings(), None) is None


def test_texts_alone_tell_nothing_of_the_teacher(tmp_path: Path) -> None:
    """Their rows are made of the text: a teacher of accuracy 1 and cross-entropy 0 that nobody has."""
    make_store(tmp_path / "texts", texts_alone=True, prefix="t")
    make_store(tmp_path / "labels")
    for stores in (["texts"], ["labels", "texts"]):
        dataset = StreamingLogitDataset([str(tmp_path / name) for name in stores], batch_size=4)
        assert teacher_figures(dataset, CollateSettings(), None) is None


def test_a_share_just_below_zero_has_no_sign() -> None:
    assert [percent(share) for share in (-0.001, -0.004, -0.006, 0.0, 0.994, 1.0)] == [
        "0%", "0%", "-1%", "0%", "99%", "100%",
    ]  # fmt: skip
