"""The loops of `loops.py` as machine code. Importing this needs numba and compiles once per machine.

Indices are unsigned, which spares a test for negative ones, and steps are masks rather than branches: half
of the entries take another path than the one before, and a mispredicted branch costs more than all the
rest. Nothing is checked here: who calls has done it (IntegerReader, IdDecoder, ValueDecoder, BlockCodec).
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from logitstore.codec.loops import HALF_TO_SINGLE, WIDE_CLASS

_INT32 = types.int32
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_SHORTS = types.Array(types.uint16, 1, "C", readonly=True)
_ORDER = types.Array(_INT32, 1, "C", readonly=True)
_FLOATS = types.Array(types.float32, 1, "C", readonly=True)
_FLAGS = types.Array(types.boolean, 1, "C", readonly=True)
_ROWS = types.Array(_INT32, 2, "C")
_TABLE = types.Array(_INT32, 2, "C", readonly=True)
_BITS = types.Array(types.float32, 2, "C", readonly=True)
_CHOICES = types.Array(types.uint8, 1, "C", readonly=True)
_WIDE = np.uint8(WIDE_CLASS)


@njit(types.void(_BYTES, _BYTES, _BYTES, types.uint32[::1]), nogil=True, cache=True)
def join(low, middle, high, out):  # noqa: ANN001, ANN201 - numba has the types
    for at in range(np.uint64(out.size)):
        out[at] = low[at] | np.uint32(middle[at]) << np.uint32(8) | np.uint32(high[at]) << np.uint32(16)


@njit(
    types.Tuple((_INT32[::1], types.int64, types.int64))(_BYTES, _BYTES, _SHORTS, types.int64),
    nogil=True,
    cache=True,
)
def expand(classes, low, wide, threshold):  # noqa: ANN001, ANN201
    base, mask = np.zeros(256, np.int32), np.zeros(256, np.uint8)
    first_wide = threshold + 256 * (WIDE_CLASS - threshold)
    for code in range(256):
        if code < threshold:
            base[code] = code
        elif code < WIDE_CLASS:
            base[code], mask[code] = threshold + 256 * (code - threshold), 255
        else:
            base[code] = first_wide + 65536 * (code - WIDE_CLASS)
    values = np.empty(classes.size, np.int32)
    one = np.uint64(1)
    at = at_low = at_wide = np.uint64(0)
    for _ in range(classes.size):
        code = classes[at]
        is_narrow = mask[code]
        values[at] = base[code] + (low[at_low] & is_narrow)
        at_low += np.uint64(is_narrow & 1)
        if code >= _WIDE:
            values[at] += wide[at_wide]
            at_wide += one
        at += one
    return values, int(at_low), int(at_wide)


@njit(types.void(_ROWS, _ORDER, _ORDER, _INT32, _INT32, _ROWS, types.int64), nogil=True, cache=True)
def look_up(positions_GN, offset_N, table, head_length, beyond, out_NK, start):  # noqa: ANN001, ANN201
    num_ranks, num_rows = np.uint64(positions_GN.shape[0]), np.uint64(positions_GN.shape[1])
    first = np.uint64(start)
    for row in range(num_rows):
        offset = offset_N[row]
        for rank in range(num_ranks):
            position = positions_GN[rank, row]
            place = position + (offset if position < head_length else beyond)
            out_NK[row, first + rank] = table[np.uint64(place)]


@njit(types.void(_ROWS, _FLOATS, types.float32[:, ::1], types.int64), nogil=True, cache=True)
def subtract_gaps(patterns_GN, top_N, out_NK, start):  # noqa: ANN001, ANN201
    num_ranks, num_rows = np.uint64(patterns_GN.shape[0]), np.uint64(patterns_GN.shape[1])
    first = np.uint64(start)
    for row in range(num_rows):
        top = top_N[row]
        for rank in range(num_ranks):
            gap = np.int32(patterns_GN[rank, row] << 13).view(np.float32) * HALF_TO_SINGLE
            out_NK[row, first + rank] = top - gap


@njit(types.void(_FLAGS, _ORDER, types.float32[:, ::1], _FLOATS, types.float32[::1]), nogil=True, cache=True)
def read_label(which_N, rank_N, logits_NK, logsumexp_N, out_N):  # noqa: ANN001, ANN201
    for row in range(np.uint64(out_N.size)):
        if which_N[row]:
            logprob = logits_NK[row, np.uint32(rank_N[row] - 1)] - logsumexp_N[row]
            out_N[row] = min(logprob, np.float32(0))


@njit(
    types.Tuple((types.uint8[::1], types.uint8[::1], types.uint16[::1]))(
        _TABLE, _ORDER, types.int64, types.int64, types.int64
    ),
    nogil=True,
    cache=True,
)
def split(values_NK, count_N, start, end, threshold):  # noqa: ANN001, ANN201
    # Row by row, as the values lie; where each rank's begin in the streams is counted before.
    num_rows, num_ranks = np.uint64(values_NK.shape[0]), np.uint64(max(0, end - start))
    first_wide, first_low = np.int32(threshold + 256 * (WIDE_CLASS - threshold)), np.int32(threshold)
    first = np.uint64(start)
    at_G = np.zeros(num_ranks + np.uint64(1), np.int64)
    at_low_G, at_wide_G = np.zeros_like(at_G), np.zeros_like(at_G)
    for row in range(num_rows):
        for rank in range(np.uint64(max(0, min(end, count_N[row]) - start))):
            value = values_NK[row, first + rank]
            is_wide = np.int64(value >= first_wide)
            at_G[rank + np.uint64(1)] += 1
            at_wide_G[rank + np.uint64(1)] += is_wide
            at_low_G[rank + np.uint64(1)] += np.int64(value >= first_low) - is_wide
    for rank in range(num_ranks):
        at_G[rank + np.uint64(1)] += at_G[rank]
        at_low_G[rank + np.uint64(1)] += at_low_G[rank]
        at_wide_G[rank + np.uint64(1)] += at_wide_G[rank]
    low_size = at_low_G[num_ranks]
    classes, low = np.empty(at_G[num_ranks], np.uint8), np.empty(low_size + 1, np.uint8)
    wide = np.empty(at_wide_G[num_ranks], np.uint16)
    for row in range(num_rows):
        for rank in range(np.uint64(max(0, min(end, count_N[row]) - start))):
            value = values_NK[row, first + rank]
            above = np.int32(value - first_low)
            at = np.uint64(at_G[rank])
            at_G[rank] += 1
            if value >= first_wide:
                classes[at] = np.int32(WIDE_CLASS) + ((value - first_wide) >> 16)
                wide[np.uint64(at_wide_G[rank])] = value - first_wide
                at_wide_G[rank] += 1
            elif above >= 0:
                classes[at] = first_low + (above >> 8)
                low[np.uint64(at_low_G[rank])] = above
                at_low_G[rank] += 1
            else:
                classes[at] = value
    return classes, low[:low_size], wide


@njit(types.uint8[::1](_TABLE, _ORDER, _ORDER, _BITS), nogil=True, cache=True)
def choose(ids_NK, count_N, slot_V, bits_SC):  # noqa: ANN001, ANN201
    num_codebooks = np.uint64(bits_SC.shape[1])
    choice_N, sums_C = np.zeros(len(ids_NK), np.uint8), np.empty(bits_SC.shape[1], np.float32)
    for row in range(np.uint64(ids_NK.shape[0])):
        sums_C[:] = 0
        for rank in range(np.uint64(min(count_N[row], ids_NK.shape[1]))):
            slot = np.uint64(slot_V[np.uint64(ids_NK[row, rank])])
            if slot == np.uint64(0):
                continue
            for book in range(num_codebooks):
                sums_C[book] += bits_SC[slot, book]
        best = np.uint64(0)
        for book in range(num_codebooks):
            if sums_C[book] < sums_C[best]:
                best = book
        choice_N[row] = best
    return choice_N


@njit(_ROWS(_TABLE, _ORDER, _CHOICES, _ORDER, _TABLE, _ORDER), nogil=True, cache=True)
def place(ids_NK, count_N, choice_N, slot_V, positions_SC, global_V):  # noqa: ANN001, ANN201
    places_NK = np.zeros(ids_NK.shape, np.int32)
    for row in range(np.uint64(ids_NK.shape[0])):
        book = np.uint64(choice_N[row])
        for rank in range(np.uint64(min(count_N[row], ids_NK.shape[1]))):
            token = np.uint64(ids_NK[row, rank])
            slot = np.uint64(slot_V[token])
            places_NK[row, rank] = positions_SC[slot, book] if slot else global_V[token]
    return places_NK
