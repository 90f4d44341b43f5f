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
