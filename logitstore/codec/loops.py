"""The inner loops of the codec: in numpy, the reference, and compiled where numba is installed.

numpy needs many passes over memory for what is one loop. Both forms give the same bits
(`tests/logitstore/codec/test_loops.py`), and the compiled one lets go of Python's lock. Loading numba takes
about a second, so a process does it once it has read or written so much that it is likely to do more.

Shape legend: N label rows, K stored entries, G ranks at once, V vocabulary, C codebooks, S slots of ids.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WIDE_CLASS = 224
"""First class with two low bytes (bytecodes.py)."""
LOAD_AFTER_ENTRIES = 1 << 26
"""Entries that a process reads before it loads the compiled loops: about a second of numpy's work."""
WRITTEN_AS_READ = 4
"""An entry written is as much of numpy's work as so many read."""
CHOICE_ROWS = 512
"""Rows whose codebooks numpy compares at once, to stay in cache."""
HALF_TO_SINGLE = np.float32(2.0**112)
"""fp16 bits shifted left by 13 are the value's fp32 bits but for the exponents' biases, 127 - 15."""


def half_to_single(bits: np.ndarray) -> np.ndarray:
    """float32 of int32 that hold the bits of finite fp16 numbers without their sign."""
    return np.left_shift(bits, 13).view(np.float32) * HALF_TO_SINGLE


def wide_from(threshold: int) -> int:
    """The first integer with two low bytes."""
    return threshold + 256 * (WIDE_CLASS - threshold)


@dataclass(frozen=True, slots=True)
class Loops:
    """One form of the loops."""

    join: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]
    """(low, middle and high bytes, uint8 [n], out uint32 [n])."""
    expand: Callable[[np.ndarray, np.ndarray, np.ndarray, int], tuple[np.ndarray, int, int]]
    """(classes uint8 [n], low uint8, wide uint16, threshold) to int32 [n] and how many of low and wide
    were used. `low` holds at least one byte more than is used."""
    look_up: Callable[[np.ndarray, np.ndarray, np.ndarray, int, int, np.ndarray, int], None]
    """(positions int32 [G, N], offset_N int32, table int32, head_length, beyond, out int32 [N, K], start):
    columns from `start` on become the table at position + offset inside the head, at position + beyond
    outside. Positions are checked already."""
    subtract_gaps: Callable[[np.ndarray, np.ndarray, np.ndarray, int], None]
    """(patterns int32 [G, N], top_N float32, out float32 [N, K], start): columns from `start` on become the
    top less the fp16 number that has these bits, which must be finite and not negative."""
    read_label: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]
    """(which rows bool [N], rank_N int32, logits float32 [N, K], logsumexp_N float32, out float32 [N]): the
    log-probability, at most 0, of the entry at the rank 1, 2, ... of each of these rows."""
    split: Callable[[np.ndarray, np.ndarray, int, int, int], tuple[np.ndarray, np.ndarray, np.ndarray]]
    """(values int32 [N, K], count_N int32, start, end, threshold): classes uint8, low bytes uint8, wide low
    bytes uint16 (bytecodes.py) of the ranks `start`..`end` of each row that has them, rank after rank."""
    choose: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    """(ids int32 [N, K], count_N int32, slot_V int32, bits float32 [S, C]): uint8 [N], the first codebook
    with the least sum of bits, added up in the order of the ranks."""
    place: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    """(ids int32 [N, K], count_N int32, choice_N uint8, slot_V int32, positions int32 [S, C], global int32
    [V]): int32 [N, K], the position of each id under its row's codebook; of an id in slot 0 the global one.
    Beyond its count a row's ids may be anything, and its positions are meaningless."""


def loops_for(num_entries: int) -> Loops:
    """The form to decode a block of so many entries with."""
    global _entries_read  # noqa: PLW0603
    if _entries_read < LOAD_AFTER_ENTRIES:
        _entries_read += num_entries
        return NUMPY_LOOPS
    return compiled_loops() or NUMPY_LOOPS


def use_compiled_loops() -> bool:
    """Load the compiled loops now, as before a long read; False where numba is not installed."""
    global _entries_read  # noqa: PLW0603
    found = compiled_loops()
    _entries_read = LOAD_AFTER_ENTRIES
    return found is not None


@functools.cache
def compiled_loops() -> Loops | None:
    """None where numba is not installed (the extra `fast`) or finds no place for what it compiles."""
    try:
        from logitstore.codec import compiled_loops
    except ImportError:
        return None
    except RuntimeError as error:
        warnings.warn(
            f"the loops of decoding cannot be compiled, so numpy reads at half the speed ({error}); set "
            "NUMBA_CACHE_DIR to a folder that can be written",
            stacklevel=2,
        )
        return None
    return Loops(
        compiled_loops.join,
        compiled_loops.expand,
        compiled_loops.look_up,
        compiled_loops.subtract_gaps,
        compiled_loops.read_label,
        compiled_loops.split,
        compiled_loops.choose,
        compiled_loops.place,
    )


def _join(low: np.ndarray, middle: np.ndarray, high: np.ndarray, out: np.ndarray) -> None:
    out[:] = high
    for plane in (middle, low):
        out <<= 8
        out |= plane


def _expand(
    classes: np.ndarray, low: np.ndarray, wide: np.ndarray, threshold: int
) -> tuple[np.ndarray, int, int]:
    values = classes.astype(np.int32)
    large_at = np.flatnonzero(classes >= threshold)
    large = values.take(large_at)
    is_wide = large >= WIDE_CLASS
    num_wide = int(np.count_nonzero(is_wide)) if wide.size else 0
    num_low = large.size - num_wide
    if num_wide:
        narrow = large[~is_wide]
        large[is_wide] = ((large[is_wide] - WIDE_CLASS) << 16) + wide_from(threshold) + wide[:num_wide]
        large[~is_wide] = ((narrow - threshold) << 8) + threshold + low[:num_low]
    else:
        large -= threshold
        large <<= 8
        large += low[:num_low]
        large += threshold
    values[large_at] = large
    return values, num_low, num_wide


def _look_up(
    positions_GN: np.ndarray,
    offset_N: np.ndarray,
    table: np.ndarray,
    head_length: int,
    beyond: int,
    out_NK: np.ndarray,
    start: int,
) -> None:
    places_GN = positions_GN + np.where(positions_GN < head_length, offset_N, np.int32(beyond))
    out_NK[:, start : start + len(positions_GN)] = table.take(places_GN).T


def _subtract_gaps(patterns_GN: np.ndarray, top_N: np.ndarray, out_NK: np.ndarray, start: int) -> None:
    gaps_GN = half_to_single(patterns_GN)
    np.subtract(top_N, gaps_GN, out=gaps_GN)
    out_NK[:, start : start + len(patterns_GN)] = gaps_GN.T


def _read_label(
    which_N: np.ndarray,
    rank_N: np.ndarray,
    logits_NK: np.ndarray,
    logsumexp_N: np.ndarray,
    out_N: np.ndarray,
) -> None:
    rows = np.flatnonzero(which_N)
    logprobs = logits_NK[rows, rank_N[rows] - 1] - logsumexp_N[rows]
    out_N[rows] = np.minimum(logprobs, 0)


def _split(
    values_NK: np.ndarray, count_N: np.ndarray, start: int, end: int, threshold: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values_GN = np.ascontiguousarray(values_NK[:, start:end].T)
    if int(count_N.min(initial=end)) >= end:
        return split_integers(values_GN.reshape(-1), threshold)
    return split_integers(values_GN[np.arange(start, end)[:, None] < count_N], threshold)


def split_integers(values: np.ndarray, threshold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes uint8, low bytes uint8, wide low bytes uint16 of int32 [n]."""
    first_wide = wide_from(threshold)
    large_at = np.flatnonzero(values >= threshold)
    large = values[large_at]
    is_wide = large >= first_wide
    classes = values.astype(np.uint8)
    classes[large_at] = np.where(
        is_wide, WIDE_CLASS + ((large - first_wide) >> 16), threshold + ((large - threshold) >> 8)
    )
    low = (large[~is_wide] - threshold).astype(np.uint8)
    return classes, low, (large[is_wide] - first_wide).astype(np.uint16)


def _choose(ids_NK: np.ndarray, count_N: np.ndarray, slot_V: np.ndarray, bits_SC: np.ndarray) -> np.ndarray:
    slot_NK = slot_V.take(_real_or_zero(ids_NK[:, : int(count_N.max(initial=0))], count_N))
    slot_NK[np.arange(slot_NK.shape[1]) >= count_N[:, None]] = 0
    return cheapest_codebook(slot_NK, bits_SC)


def cheapest_codebook(slot_NK: np.ndarray, bits_SC: np.ndarray) -> np.ndarray:
    """uint8 [N]: the first codebook with the least sum of its bits at the slots, added rank by rank."""
    choice_N = np.empty(len(slot_NK), np.uint8)
    for start in range(0, len(slot_NK), CHOICE_ROWS):
        slot_KN = np.ascontiguousarray(slot_NK[start : start + CHOICE_ROWS].T)
        sum_NC = np.zeros((slot_KN.shape[1], bits_SC.shape[1]), bits_SC.dtype)
        for slot_N in slot_KN:
            sum_NC += bits_SC.take(slot_N, axis=0)
        choice_N[start : start + CHOICE_ROWS] = sum_NC.argmin(axis=1)
    return choice_N


def _real_or_zero(ids_NK: np.ndarray, count_N: np.ndarray) -> np.ndarray:
    width = ids_NK.shape[1]
    if int(count_N.min(initial=width)) >= width:
        return ids_NK
    return np.where(np.arange(width) < count_N[:, None], ids_NK, 0)


def _place(
    ids_NK: np.ndarray,
    count_N: np.ndarray,
    choice_N: np.ndarray,
    slot_V: np.ndarray,
    positions_SC: np.ndarray,
    global_V: np.ndarray,
) -> np.ndarray:
    ids_NK = _real_or_zero(ids_NK, count_N)
    slot_NK = slot_V.take(ids_NK)
    flat_NK = slot_NK.astype(np.intp) * positions_SC.shape[1] + choice_N[:, None]
    return np.where(slot_NK > 0, positions_SC.reshape(-1).take(flat_NK), global_V.take(ids_NK))


NUMPY_LOOPS = Loops(_join, _expand, _look_up, _subtract_gaps, _read_label, _split, _choose, _place)
_entries_read = 0
