"""Every guard lets the right thing pass and names what is wrong with the other."""

import dataclasses
import re

import numpy as np
import pytest

from logitstore.errors import TemperatureError
from logitstore.tokenizer_identity import tokenizer_fingerprint
from tests.trainer.stores import label_spec, labeled_sequence, manifest
from trainer.guards import (
    GuardError,
    check_alignment,
    check_temperature,
    check_tokenizer,
    real_vocab_size,
)
from trainer.samples import Sample

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


def test_no_rows_are_no_reason_to_refuse():
    assert check_alignment([], where="store").num_rows == 0


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


@pytest.mark.parametrize("temperature", [0.5, 4.5])
def test_a_temperature_without_a_tail_is_refused_unless_no_tail_is_wanted(temperature):
    with pytest.raises(TemperatureError, match=r"is outside 1.0..4.0.*loss.tail='renormalize'"):
        check_temperature(SPEC, temperature, "bucket", where="store")
    check_temperature(SPEC, temperature, "renormalize", where="store")
    check_temperature(SPEC, 2.5, "bucket", where="store")
