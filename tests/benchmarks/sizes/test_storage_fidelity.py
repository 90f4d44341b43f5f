"""What the table of read labels says, checked where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.labels.label_sources import SAMPLE, LabelSource, capture_source
from benchmarks.sizes.layouts import (
    COLUMN_PARTS,
    PLAIN_LAYOUTS,
    Entries,
    column_bytes,
    encode_shard,
    from_parquet,
    to_parquet,
    to_tuned_parquet,
)
from benchmarks.sizes.storage_fidelity import (
    interpolated_fidelity,
    layout_fidelity,
    prefix_fidelity,
)
from logitstore.codec.codebook_training import train_codebooks
from logitstore.rows.temperature import log_tail_mass

TOP_K = 32


@pytest.fixture(scope="module")
def source() -> LabelSource:
    return capture_source(SAMPLE).cut(TOP_K)


def test_only_the_format_keeps_the_tail_at_two(source: LabelSource) -> None:
    books = train_codebooks((sequence.rows for sequence in source.sequences), source.spec, max_codebooks=1)
    ours, *plain = layout_fidelity(source, books)
    assert ours.kl_by_temperature[2.0] < 1e-6
    assert ours.largest_error < 0.0079
    tail_N = np.concatenate([log_tail_mass(one.rows, source.spec, 2.0) for one in source.sequences])
    renormalised = float(-np.log(-np.expm1(tail_N.astype(np.float64))).mean())
    assert [one.kl_by_temperature[2.0] for one in plain] == pytest.approx([renormalised] * 3, rel=1e-3)
    assert max(one.kl_by_temperature[1.0] for one in plain) < 1e-4


def test_a_prefix_and_an_interpolated_temperature_are_close_but_not_exact(source: LabelSource) -> None:
    books = train_codebooks((sequence.rows for sequence in source.sequences), source.spec, max_codebooks=1)
    assert 0 < prefix_fidelity(source, books).kl_by_temperature[1.0] < 1e-5
    interpolated = interpolated_fidelity(source)
    assert interpolated is not None
    assert 1e-5 < interpolated.kl_by_temperature[2.0] < 1e-2
    assert interpolated.kl_by_temperature[1.0] == 0


def test_columns_add_up_to_the_file_and_plain_sizes_are_what_they_must_be(source: LabelSource) -> None:
    data = encode_shard(source.spec, source.sequences, None)
    sizes = column_bytes(data, source.spec, None)
    assert tuple(sizes) == COLUMN_PARTS
    assert sum(sizes.values()) == len(data)
    by_slug = {one.slug: one.num_bytes(Entries.of(source.sequences)) for one in PLAIN_LAYOUTS}
    assert by_slug["numpy"] == source.num_rows * (6 * TOP_K + 4)
    order = ("tuned_parquet", "megatron", "torch", "parquet", "numpy", "jsonl")
    assert sorted(by_slug, key=by_slug.__getitem__) == list(order)


def test_both_parquets_give_back_what_was_written(source: LabelSource) -> None:
    entries = Entries.of(source.sequences)
    for write in (to_parquet, to_tuned_parquet):
        ids_NK, gaps_NK, normaliser_N = from_parquet(write(entries), TOP_K)
        np.testing.assert_array_equal(ids_NK, entries.ids_NK)
        np.testing.assert_array_equal(gaps_NK, entries.gaps_NK)
        np.testing.assert_array_equal(normaliser_N, entries.normaliser_N)
