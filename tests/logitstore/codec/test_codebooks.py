"""Codebook sets: what they save on documents they were not trained on, how many are taken, that they are stable."""

import io

import numpy as np
import pytest

from logitstore.codec.codebook_training import largest, train_codebooks
from logitstore.codec.codebooks import CodebookSet, band_starts, identity_codebook, sort_in_bands
from logitstore.codec.writing_loops import NUMPY_WRITING
from logitstore.errors import InvalidLabelsError
from logitstore.shard.reader import ShardReader
from logitstore.shard.writer import write_shard
from tests.logitstore.capture import load_capture


def id_bytes(sequences, spec, books):
    buffer = io.BytesIO()
    stats = write_shard(buffer, sequences, spec, books)
    sizes = ShardReader(buffer, spec, books).column_bytes()
    ids = sum(size for name, size in sizes.items() if name.startswith(("ids_", "codebook_choice")))
    return ids / stats.num_rows


def test_more_codebooks_save_where_they_were_trained():
    spec, sequences = load_capture(32)
    rows = [sequence.rows for sequence in sequences]
    sizes = [id_bytes(sequences, spec, None)]
    for number in (1, 8):
        books = train_codebooks(rows, spec, max_codebooks=number, expected_rows=10**6)
        sizes.append(id_bytes(sequences, spec, books))
    assert sizes[1] < 0.9 * sizes[0]
    assert sizes[2] < 0.95 * sizes[1]


def test_a_small_store_takes_fewer_codebooks_than_a_large_one():
    spec, sequences = load_capture(32)
    rows = [sequence.rows for sequence in sequences]
    small = train_codebooks(rows, spec)
    large = train_codebooks(rows, spec, expected_rows=10**7)
    assert small.num_codebooks < large.num_codebooks
    assert len(small.to_bytes()) < len(large.to_bytes())


def test_training_and_files_are_deterministic():
    spec, sequences = load_capture(16)
    rows = [sequence.rows for sequence in sequences]
    first, second = (train_codebooks(rows, spec, expected_rows=10**6) for _ in range(2))
    assert first.hash == second.hash
    back = CodebookSet.from_bytes(first.to_bytes())
    np.testing.assert_array_equal(back.table, first.table)
    assert back.to_bytes() == first.to_bytes()


def test_every_id_has_one_position_under_every_codebook():
    spec, sequences = load_capture(16)
    books = train_codebooks([s.rows for s in sequences], spec, max_codebooks=4, expected_rows=10**6)
    ids = np.arange(spec.vocab_size, dtype=np.int32)[None, :].repeat(books.num_codebooks, axis=0)
    count_N = np.full(books.num_codebooks, spec.vocab_size, np.int32)
    positions = books.positions(ids, count_N, np.arange(books.num_codebooks, dtype=np.uint8), NUMPY_WRITING)
    for codebook, row in enumerate(positions):
        assert len(np.unique(row)) == spec.vocab_size
        in_head = row < books.head_length
        np.testing.assert_array_equal(books.heads_CH[codebook][row[in_head]], np.flatnonzero(in_head))


def test_bands_are_aligned_with_the_class_bytes():
    starts = np.flatnonzero(band_starts(700, 0))
    assert starts[:128].tolist() == list(range(128))
    assert starts[128:].tolist() == [128, 384, 640]
    shuffled = np.random.default_rng(0).permutation(700)[None]
    in_bands = sort_in_bands(shuffled, 0)[0]
    np.testing.assert_array_equal(in_bands[:128], shuffled[0, :128])
    np.testing.assert_array_equal(in_bands[128:384], np.sort(shuffled[0, 128:384]))


@pytest.mark.parametrize("number", [0, 257])
def test_numbers_of_codebooks_outside_a_byte_are_refused(number):
    spec, _ = load_capture(16)
    with pytest.raises(InvalidLabelsError, match=f"max_codebooks {number}"):
        train_codebooks([], spec, max_codebooks=number)


def test_nothing_to_train_on_gives_the_identity():
    spec, _ = load_capture(16)
    assert train_codebooks([], spec).hash == identity_codebook(spec.vocab_size).hash


@pytest.mark.parametrize("length", [1, 7, 40, 99, 100, 200])
def test_the_largest_are_the_first_of_a_stable_sort(length):
    shares_U = np.random.default_rng(length).integers(0, 9, 100) / 9
    expected = np.argsort(-shares_U, kind="stable")[:length]
    np.testing.assert_array_equal(largest(shares_U, length), expected)
