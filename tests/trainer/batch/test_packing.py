"""Packing loses no sequence, keeps to its row length, and fills its rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.batch.packing import packed


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    row_length=st.integers(40, 90),
    multiple=st.sampled_from([1, 8, 64]),
)
def test_every_sequence_has_a_place_of_its_own(lengths, row_length, multiple):
    places, (num_rows, width) = packed(lengths, row_length, multiple)
    assert [place.length for place in places] == lengths
    assert width <= row_length
    taken = np.zeros((num_rows, width), dtype=int)
    for place in places:
        assert place.start + place.length <= width
        taken[place.row, place.start : place.start + place.length] += 1
    assert taken.max() == 1
    assert taken.any(axis=1).all(), "no row is empty"
    assert num_rows <= max(1, 2 * sum(lengths) / row_length), "two rows at most half full would be one"


def test_the_layout_depends_on_the_lengths_alone():
    assert packed([5, 5, 7], 12, 4) == packed([5, 5, 7], 12, 4)
    places, shape = packed([5, 5, 7], 12, 4)
    assert shape == (2, 12)
    assert [(place.row, place.start) for place in places] == [(1, 0), (1, 5), (0, 0)]


@pytest.mark.parametrize("mean_tokens", [100, 140, 400, 900])
@pytest.mark.parametrize("batch_size", [16, 64])
def test_rows_of_4096_are_full_with_lengths_as_real_ones_are(mean_tokens, batch_size):
    """Log-normal, as answers are. First fit into rows of exactly 4,096 filled a third to a half of them."""
    rng = np.random.default_rng(7)
    tokens = places = 0
    for _ in range(100):
        drawn = rng.lognormal(np.log(mean_tokens) - 0.32, 0.8, batch_size)
        lengths = np.clip(drawn, 8, 4096).astype(int).tolist()
        _, (num_rows, width) = packed(lengths, 4096, 8)
        tokens, places = tokens + sum(lengths), places + num_rows * width
    assert tokens / places > 0.95
