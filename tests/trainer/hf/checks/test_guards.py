"""Every guard lets the right thing pass and names what is wrong with the other."""

import dataclasses
import re

import numpy as np
import pytest

from logitstore.errors import TemperatureError
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from tests.trainer.stores import label_rows, label_spec, labeled_sequence, make_store, manifest
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.samples import Sample
from trainer.errors import GuardError
from trainer.hf.checks.alignment import check_alignment
from trainer.hf.checks.guards import (
    check_collation,
    check_student,
    check_temperature,
    check_tokenizer,
    real_vocab_size,
)
from trainer.loss.loss_settings import LossSettings

SPEC = label_spec()
VOCABULARY = {"a": 0, "b": 1, "c": 2}


def shifted(sequence, offset):
    """The sequence with its rows one place off, as a common mistake leaves them."""
    return dataclasses.replace(sequence, token_ids_T=np.roll(sequence.token_ids_T, offset))


def samples(offset=0):
    rng = np.random.default_rng(0)
    sequences = [labeled_sequence(rng, f"r{n}", SPEC, 40, 5) for n in range(8)]
    return [Sample(shifted(sequence, offset) if offset else sequence, SPEC) for sequence in sequences]


def test_aligned_rows_pass_and_say_by_how_much():
    alignment = check_alignment(samples(), where="store")
    assert alignment.nll_by_offset[0] + 1 < min(alignment.nll_by_offset[-1], alignment.nll_by_offset[1])
    assert alignment.num_rows == 8 * 34


@pytest.mark.parametrize("offset", [-1, 1])
def test_rows_one_place_off_are_refused(offset):
    with pytest.raises(GuardError, match=re.escape(f"predict the token at offset {offset:+d} best")):
        check_alignment(samples(offset), where="store")


def untrained(rng, record_id, length):
    """Labels of a teacher whose logits are noise: no row knows its token, and chance favours some offset."""
    sequence = labeled_sequence(rng, record_id, SPEC, length, 0)
    logits_NV = rng.normal(0, 0.02, (length - 1, SPEC.vocab_size))
    rows = label_rows(logits_NV, sequence.token_ids_T[1:], SPEC.top_k)
    return Sample(dataclasses.replace(sequence, rows=rows), SPEC)


@pytest.mark.parametrize("length", [4, 40])
def test_rows_of_an_untrained_teacher_are_not_taken_for_shifted(length):
    rng = np.random.default_rng(5)
    best = [
        check_alignment([untrained(rng, f"r{n}", length) for n in range(8)], where="store").nll_by_offset
        for _ in range(20)
    ]
    assert any(nll[0] > min(nll.values()) for nll in best), "chance should have favoured a neighbour"


def echoing(rng, record_id, length):
    """Labels of an untrained teacher whose head is its embedding: each row favours the token before its own."""
    sequence = labeled_sequence(rng, record_id, SPEC, length, 0)
    logits_NV = rng.normal(0, 0.2, (length - 1, SPEC.vocab_size))
    logits_NV[np.arange(length - 1), sequence.token_ids_T[:-1]] += 1.0
    rows = label_rows(logits_NV, sequence.token_ids_T[1:], SPEC.top_k)
    return Sample(dataclasses.replace(sequence, rows=rows), SPEC)


def test_rows_of_a_teacher_that_echoes_are_not_taken_for_shifted():
    """A tiny model with random weights, as people try things out with; its labels could not be trained on."""
    rng = np.random.default_rng(5)
    alignment = check_alignment([echoing(rng, f"r{n}", 60) for n in range(32)], where="store")
    assert alignment.nll_by_offset[-1] + 0.5 < alignment.nll_by_offset[0], "the echo is plain"


def test_no_rows_are_no_reason_to_refuse():
    assert check_alignment([], where="store").num_rows == 0
    short = labeled_sequence(np.random.default_rng(0), "r", SPEC, 2, 0)
    assert check_alignment([Sample(short, SPEC)], where="store").num_rows == 0


def test_tokenizer_of_the_teacher_passes_and_another_is_refused():
    stored = manifest(SPEC, tokenizer_fingerprint(VOCABULARY), 3)
    check_tokenizer(stored, dict(reversed(VOCABULARY.items())), where="store")
    for other in ({"a": 0, "b": 2, "c": 1}, {**VOCABULARY, "d": 3}, {"a": 0, "b": 1, "x": 2}):
        with pytest.raises(GuardError, match="the same id is another token"):
            check_tokenizer(stored, other, where="store")


def test_an_unknown_tokenizer_is_said_aloud():
    with pytest.warns(UserWarning, match="nothing tells whether"):
        check_tokenizer(manifest(SPEC), VOCABULARY, where="store")


def test_vocabularies_of_one_width_need_no_name():
    assert real_vocab_size(manifest(SPEC), 64, "same", where="store") is None
    with pytest.raises(GuardError, match=r"the student has 96 logits, the teacher of store 64.*'padded'"):
        real_vocab_size(manifest(SPEC), 96, "same", where="store")


@pytest.mark.parametrize("student_width", [60, 64, 96])
def test_padded_vocabularies_are_handled_by_name(student_width):
    assert real_vocab_size(manifest(SPEC, "", 60), student_width, "padded", where="store") == 60


def test_more_than_padding_missing_is_refused():
    with pytest.raises(GuardError, match="more than padding is missing"):
        real_vocab_size(manifest(SPEC, "", 60), 59, "padded", where="store")


@pytest.mark.parametrize("temperature", [0.5, 0.9])
def test_a_temperature_without_a_tail_is_refused_unless_no_tail_is_wanted(temperature):
    with pytest.raises(TemperatureError, match=r"is below 1, .*loss.tail='renormalize'"):
        check_temperature(SPEC, temperature, "bucket", where="store")
    check_temperature(SPEC, temperature, "renormalize", where="store")
    with pytest.raises(
        TemperatureError, match=r"'renormalize' needs no normaliser: give CollateSettings reno"
    ):
        check_temperature(SPEC, temperature, "renormalize", where="store", is_renormalized=False)
    for possible in (2.5, 4.5, 10.0):
        check_temperature(SPEC, possible, "bucket", where="store")


@pytest.mark.parametrize(
    ("collate", "words"),
    [
        ({"temperature": 1.0}, "temperature is 1.0, the loss takes its batches to have 2.0"),
        ({"with_teacher": False}, "with_teacher=True"),
        ({"alignment": "logit"}, "alignment='label'"),
        ({"ignore_index": -1}, "ignore_index=-100"),
        ({"renormalize": True}, "needs the mass outside"),
    ],
)
def test_batches_that_are_not_what_the_loss_takes_them_for_are_refused(collate, words):
    with pytest.raises(GuardError, match=re.escape(words)):
        check_collation(
            LossSettings(temperature=2.0), dataclasses.replace(CollateSettings(temperature=2.0), **collate)
        )
    check_collation(LossSettings(temperature=2.0), CollateSettings(temperature=2.0))
    check_collation(LossSettings(alpha=0.0), CollateSettings(with_teacher=False))


def test_each_store_of_a_dataset_is_checked(tmp_path, small_store):
    """The second store's rows are one place off; nothing of the first tells."""
    store = make_store(tmp_path / "shifted", (6,), prefix="other")
    moved = [shifted(sequence, 1) for sequence in store.iter_sequences()] * 4
    renamed = [dataclasses.replace(sequence, record_id=f"s{n}") for n, sequence in enumerate(moved)]
    store.commit_unit("unit-1", 1, renamed, seconds=0.0, worker="test")
    good, both = (
        StreamingLogitDataset(stores, num_splits=2) for stores in ([small_store], [small_store, store.uri])
    )

    def check(dataset, student_width=64, temperature=1.0):
        loss, collate = LossSettings(temperature=temperature), CollateSettings(temperature=temperature)
        return check_student(dataset, loss, collate, student_width=student_width, vocabulary=None)

    assert len(check(good)) == 1
    with pytest.raises(GuardError, match="shifted predict the token at offset"):
        check(both)
    with pytest.raises(GuardError, match="the student has 96 logits"):
        check(good, student_width=96)
    with pytest.raises(TemperatureError, match=r"0\.5 is below"):
        check(good, temperature=0.5)


def test_more_ids_than_the_student_has_are_refused(small_store):
    dataset, loss = StreamingLogitDataset(small_store), LossSettings(vocab_size=64, foreign_ids="tail")
    with pytest.raises(
        GuardError, match="vocab_size=64 ids shall take part in the loss, but the student has 60"
    ):
        check_student(dataset, loss, CollateSettings(), student_width=60, vocabulary=None)


def test_top_entries_are_not_taken_for_drawn_ones(small_store):
    dataset, loss = StreamingLogitDataset(small_store), LossSettings(divergence="sampled")
    with pytest.raises(GuardError, match="all other ids would be unlearned"):
        check_student(dataset, loss, CollateSettings(), student_width=64, vocabulary=None)
