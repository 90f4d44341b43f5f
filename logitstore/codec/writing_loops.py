"""The inner loops of writing: in numpy, the reference, and compiled where numba is installed.

Both forms give the same bits (`tests/logitstore/codec/test_writing_loops.py`), and the compiled one lets go
of Python's lock. `loops.py` has those of reading, and says when the compiled ones are loaded.

Shape legend: N label rows, K stored entries, G ranks at once, V vocabulary, C codebooks, S slots of ids,
M temperatures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from logitstore.codec.bytecodes import split_integers
from logitstore.codec.loops import NUMPY_LOOPS, import_compiled, loops_for
from logitstore.codec.values import to_patterns

WRITTEN_AS_READ = 4
"""An entry written is as much of numpy's work as so many read."""
CHOICE_ROWS = 512
"""Rows whose codebooks numpy compares at once, to stay in cache."""
CHOICE_RANKS = 64
"""Entries by which the writer judges the codebook of a row."""
EXCESS_PER_BIT = 14
"""Steps of `excess_of`: the most that a vocabulary of 2^20 can differ by fits a byte."""
INFINITE_HALF = 0x7C00


@dataclass(frozen=True, slots=True)
class WritingLoops:
    """One form of the loops. `count_N` (int32) says how many entries of a row are real, at least one."""

    is_sound: Callable[
        [np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, float], bool
    ]
    """(ids int32 [N, K], logits float32 [N, K], count_N, logsumexp float32 [N, M], log tail mass float32
    [N, M], temperatures float32 [M], V, tolerance): True only if ids are distinct and below V, logits finite
    and falling, and masses add up to 1 within the tolerance. False says nothing: `validation.py` looks."""
    steps: Callable[[np.ndarray, np.ndarray, str], np.ndarray]
    """(logits float32 [N, K], count_N, value kind): int32 [N, K], the first pattern of each row (values.py)
    and the steps to the next ones, meaningless beyond the count. Raises InvalidLabelsError."""
    code_ties: Callable[[np.ndarray, np.ndarray, np.ndarray], None]
    """(positions int32 [N, K], steps int32 [N, K], count_N): positions whose value does not step become
    ascending, and each the distance from the one before, less one. In place."""
    split: Callable[[np.ndarray, np.ndarray, int, int, int], tuple[np.ndarray, np.ndarray, np.ndarray]]
    """(values int32 [N, K], count_N, start, end, threshold): classes uint8, low bytes uint8, wide low bytes
    uint16 (bytecodes.py) of the ranks `start`..`end` of each row that has them, rank after rank."""
    choose: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    """(ids int32 [N, K], count_N of at most CHOICE_RANKS, slot_V int32, bits float32 [S, C], excess uint8
    [S, C]): uint8 [N], the first codebook with the least sum of bits, added up in the order of the ranks."""
    place: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    """(ids int32 [N, K], count_N, choice_N uint8, slot_V int32, positions int32 [S, C], global int32 [V]):
    int32 [N, K], the position of each id under its row's codebook; of an id in slot 0 the global one.
    Beyond its count a row's ids may be anything, and its positions are meaningless."""


def writing_loops_for(num_entries: int) -> WritingLoops:
    """The form to write a block of so many entries with."""
    if loops_for(WRITTEN_AS_READ * num_entries) is NUMPY_LOOPS:
        return NUMPY_WRITING
    return compiled_writing()


@functools.cache
def compiled_writing() -> WritingLoops:
    """The compiled form, or numpy's where it cannot be had."""
    compiled = import_compiled("compiled_writing")
    if compiled is None:
        return NUMPY_WRITING

    def steps(logits_NK: np.ndarray, count_N: np.ndarray, value_kind: str) -> np.ndarray:
        find = compiled.gap_steps if value_kind == "gap_f16" else compiled.logit_steps
        steps_NK, wrong_row = find(logits_NK, count_N)
        # The reference says what is wrong.
        return steps_NK if wrong_row < 0 else _steps(logits_NK, count_N, value_kind)

    return WritingLoops(
        compiled.is_sound, steps, compiled.code_ties, compiled.split, compiled.choose, compiled.place
    )


def excess_of(bits_SC: np.ndarray) -> np.ndarray:
    """uint8 [S, C]: by how much an id costs more than under its best codebook, to leave out dearer ones by.

    Rows begin where a line of cache does, wherever they are as long as one.
    """
    excess_SC = (bits_SC - bits_SC.min(axis=1, keepdims=True)) * EXCESS_PER_BIT
    room = np.empty(bits_SC.size + 64, np.uint8)
    start = -room.ctypes.data % 64
    out_SC = room[start : start + bits_SC.size].reshape(bits_SC.shape)
    np.rint(excess_SC, out=excess_SC)
    out_SC[:] = excess_SC
    return out_SC


def _is_sound(*_arrays: object) -> bool:
    return False


def _steps(logits_NK: np.ndarray, count_N: np.ndarray, value_kind: str) -> np.ndarray:
    real_NK = np.arange(logits_NK.shape[1])[None, :] < count_N[:, None]
    patterns_NK = to_patterns(logits_NK, real_NK, value_kind)
    steps_NK = patterns_NK.astype(np.int32)
    steps_NK[:, 1:] -= patterns_NK[:, :-1]
    return steps_NK


def _code_ties(positions_NK: np.ndarray, steps_NK: np.ndarray, count_N: np.ndarray) -> None:
    keys_NK = (np.cumsum(steps_NK, axis=1, dtype=np.int64) << 32) | positions_NK
    keys_NK[np.arange(positions_NK.shape[1])[None, :] >= count_N[:, None]] = np.iinfo(np.int64).max
    sorted_NK = (np.sort(keys_NK, axis=1) & 0xFFFFFFFF).astype(np.int32)
    positions_NK[:] = sorted_NK
    distance_NK = np.diff(sorted_NK, axis=1) - 1
    np.copyto(positions_NK[:, 1:], distance_NK, where=steps_NK[:, 1:] == 0)


def _split(
    values_NK: np.ndarray, count_N: np.ndarray, start: int, end: int, threshold: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values_GN = np.ascontiguousarray(values_NK[:, start:end].T)
    if int(count_N.min(initial=end)) >= end:
        return split_integers(values_GN.reshape(-1), threshold)
    return split_integers(values_GN[np.arange(start, end)[:, None] < count_N], threshold)


def _choose(
    ids_NK: np.ndarray,
    count_N: np.ndarray,
    slot_V: np.ndarray,
    bits_SC: np.ndarray,
    _excess_SC: np.ndarray,
) -> np.ndarray:
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


NUMPY_WRITING = WritingLoops(_is_sound, _steps, _code_ties, _split, _choose, _place)
