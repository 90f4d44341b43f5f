"""The loops of `writing_loops.py` as machine code. Importing this needs numba and compiles once per machine.

What is easy to vectorise goes along a row; where entries take another path than the one before, both are
computed and one is kept, since a mispredicted branch costs more than either. Nothing is checked here but by
`is_sound`, which comes first.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from logitstore.codec.loops import HALF_TO_SINGLE, WIDE_CLASS
from logitstore.codec.writing_loops import CHOICE_RANKS, INFINITE_HALF

_INT32 = types.int32
_ORDER = types.Array(_INT32, 1, "C", readonly=True)
_TABLE = types.Array(_INT32, 2, "C", readonly=True)
_ROWS = types.Array(_INT32, 2, "C")
_FLOATS = types.Array(types.float32, 1, "C", readonly=True)
_BITS = types.Array(types.float32, 2, "C", readonly=True)
_EXCESS = types.Array(types.uint8, 2, "C", readonly=True)
_CHOICES = types.Array(types.uint8, 1, "C", readonly=True)
_ONE, _TWO, _HALF = np.float32(1), np.float32(2), np.float32(0.5)
_TO_BITS = np.float32(1.4426950408889634)
_LEAST_POWER, _MOST_POWER = np.float32(-126), np.float32(126)
# 2 ** x for -1 < x < 1 to 2e-5, which is far within what a mass may miss 1 by.
_P1, _P2, _P3 = np.float32(0.69314718), np.float32(0.24022651), np.float32(0.05550411)
_P4, _P5, _P6 = np.float32(0.00961813), np.float32(0.00133336), np.float32(0.00015404)
_LEAST_NORMAL = np.int32(0x38800000)
"""Bits of 2^-14 in fp32, the least normal number of fp16."""
_TILE = 32
"""Rows that are transposed at once."""
_LONG_RUN = 24
"""Entries of one tie from which sorting by insertion costs more."""


@njit(
    types.boolean(_TABLE, _BITS, _ORDER, _BITS, _BITS, _FLOATS, types.int64, types.float32),
    nogil=True,
    cache=True,
    fastmath={"reassoc", "contract"},
)
def is_sound(ids_NK, logits_NK, count_N, logsumexp_NM, tail_NM, temperatures_M, vocab_size, tolerance):  # noqa: ANN001, ANN201
    seen = np.zeros((vocab_size >> 5) + 1, np.uint32)
    for row in range(np.uint64(len(ids_NK))):
        count = np.uint64(count_N[row])
        logits_K, ids_K = logits_NK[row, :count], ids_NK[row, :count]
        rises, beyond = np.int32(0), np.int32(0)
        for rank in range(np.uint64(1), count):
            rises += np.int32(not logits_K[rank] <= logits_K[rank - np.uint64(1)])
        for rank in range(count):
            beyond |= np.int32(np.uint32(ids_K[rank]) >= np.uint32(vocab_size))
        if rises or beyond or not (np.isfinite(logits_K[0]) and np.isfinite(logits_K[count - np.uint64(1)])):
            return False
        again = np.uint32(0)
        for rank in range(count):
            token = np.uint32(ids_K[rank])
            word, bit = token >> np.uint32(5), np.uint32(1) << (token & np.uint32(31))
            again |= seen[word] & bit
            seen[word] |= bit
        for rank in range(count):
            seen[np.uint32(ids_K[rank]) >> np.uint32(5)] = np.uint32(0)
        if again:
            return False
        for index in range(np.uint64(len(temperatures_M))):
            tail, logsumexp = tail_NM[row, index], logsumexp_NM[row, index]
            if not (tail <= np.float32(0) and np.isfinite(logsumexp)):
                return False
            scale, shift = _TO_BITS / temperatures_M[index], _TO_BITS * logsumexp
            mass = np.float32(np.exp(tail))
            for rank in range(count):
                power = min(max(logits_K[rank] * scale - shift, _LEAST_POWER), _MOST_POWER)
                whole = np.int32(power)
                x = power - np.float32(whole)
                part = _ONE + x * (_P1 + x * (_P2 + x * (_P3 + x * (_P4 + x * (_P5 + x * _P6)))))
                mass += np.int32(np.float32(part).view(np.int32) + np.int32(whole << np.int32(23))).view(
                    np.float32
                )
            if not abs(mass - _ONE) <= tolerance:
                return False
    return True


@njit(_INT32(types.float32), nogil=True, cache=True, inline="always")
def _half_bits(value):  # noqa: ANN001, ANN202
    """Bits of fp16, round to nearest even, of a number that is not negative; from INFINITE_HALF on none."""
    bits = np.float32(value).view(np.int32)
    small = np.int32(np.float32(value + _HALF).view(np.int32) - np.int32(0x3F000000))
    odd = np.int32((bits >> np.int32(13)) & np.int32(1))
    normal = np.int32((bits - np.int32(112 << 23) + np.int32(0xFFF) + odd) >> np.int32(13))
    return small if bits < _LEAST_NORMAL else normal


@njit(types.Tuple((_ROWS, types.int64))(_BITS, _ORDER), nogil=True, cache=True)
def gap_steps(logits_NK, count_N):  # noqa: ANN001, ANN201
    num_rows, width = np.uint64(logits_NK.shape[0]), np.uint64(logits_NK.shape[1])
    steps_NK = np.empty(logits_NK.shape, np.int32)
    halves_K = np.empty(logits_NK.shape[1], np.int32)
    for row in range(num_rows):
        top = logits_NK[row, 0]
        for rank in range(width):
            halves_K[rank] = _half_bits(np.float32(top - logits_NK[row, rank]))
        steps_NK[row, 0] = halves_K[0]
        for rank in range(np.uint64(1), width):
            steps_NK[row, rank] = halves_K[rank] - halves_K[rank - np.uint64(1)]
        if halves_K[np.uint64(count_N[row] - 1)] >= INFINITE_HALF:  # the widest, as logits descend
            return steps_NK, np.int64(row)
    return steps_NK, np.int64(-1)


@njit(types.Tuple((_ROWS, types.int64))(_BITS, _ORDER), nogil=True, cache=True)
def logit_steps(logits_NK, count_N):  # noqa: ANN001, ANN201
    num_rows, width = np.uint64(logits_NK.shape[0]), np.uint64(logits_NK.shape[1])
    steps_NK = np.empty(logits_NK.shape, np.int32)
    patterns_K = np.empty(logits_NK.shape[1], np.int32)
    wrong_K = np.empty(logits_NK.shape[1], np.int32)
    for row in range(num_rows):
        for rank in range(width):
            logit = logits_NK[row, rank]
            size = np.float32(abs(logit))
            half = _half_bits(size)
            back = np.float32(np.int32(half << np.int32(13)).view(np.float32) * HALF_TO_SINGLE)
            wrong_K[rank] = np.int32(half >= INFINITE_HALF) | np.int32(back != size)
            patterns_K[rank] = np.int32(0x8000) + half if logit < 0 else np.int32(0x7FFF) - half
        wrong = np.int32(0)
        for rank in range(np.uint64(count_N[row])):
            wrong |= wrong_K[rank]
        if wrong:
            return steps_NK, np.int64(row)
        steps_NK[row, 0] = patterns_K[0]
        for rank in range(np.uint64(1), width):
            steps_NK[row, rank] = patterns_K[rank] - patterns_K[rank - np.uint64(1)]
    return steps_NK, np.int64(-1)


@njit(types.void(_ROWS, _TABLE, _ORDER), nogil=True, cache=True)
def code_ties(positions_NK, steps_NK, count_N):  # noqa: ANN001, ANN201
    for row in range(len(positions_NK)):
        count, start = count_N[row], 0
        while start < count:
            end = start + 1
            while end < count and steps_NK[row, end] == 0:
                end += 1
            if end - start > _LONG_RUN:
                positions_NK[row, start:end] = np.sort(positions_NK[row, start:end])
            else:
                for at in range(start + 1, end):
                    position, place = positions_NK[row, at], at
                    while place > start and positions_NK[row, place - 1] > position:
                        positions_NK[row, place] = positions_NK[row, place - 1]
                        place -= 1
                    positions_NK[row, place] = position
            for at in range(end - 1, start, -1):
                positions_NK[row, at] -= positions_NK[row, at - 1] + 1
            start = end


@njit(nogil=True, cache=True)
def _joined(parts, end_G, room):  # noqa: ANN001, ANN202
    size = np.uint64(0)
    for rank in range(np.uint64(len(end_G))):
        size += np.uint64(end_G[rank]) - rank * room
    joined, at = np.empty(size, parts.dtype), np.uint64(0)
    for rank in range(np.uint64(len(end_G))):
        first = rank * room
        for place in range(first, np.uint64(end_G[rank])):
            joined[at + place - first] = parts[place]
        at += np.uint64(end_G[rank]) - first
    return joined


@njit(
    types.Tuple((types.uint8[::1], types.uint8[::1], types.uint16[::1]))(
        _TABLE, _ORDER, types.int64, types.int64, types.int64
    ),
    nogil=True,
    cache=True,
)
def split(values_NK, count_N, start, end, threshold):  # noqa: ANN001, ANN201
    # Each rank has room for all rows in the scratch arrays; what it used is moved together at the end.
    num_rows, num_ranks = len(values_NK), max(0, end - start)
    first_wide, first_low = np.int32(threshold + 256 * (WIDE_CLASS - threshold)), np.int32(threshold)
    room, one = np.uint64(num_rows + 1), np.uint64(1)
    size = num_ranks * (num_rows + 1)
    classes, low, wide = np.empty(size, np.uint8), np.empty(size, np.uint8), np.empty(size, np.uint16)
    end_G = np.arange(num_ranks) * (num_rows + 1)
    end_low_G, end_wide_G = end_G.copy(), end_G.copy()
    for first in range(0, num_rows, _TILE):
        last = np.uint64(min(first + _TILE, num_rows))
        for rank in range(np.uint64(num_ranks)):
            at, at_low = np.uint64(end_G[rank]), np.uint64(end_low_G[rank])
            column = np.uint64(start) + rank
            for row in range(np.uint64(first), last):
                if np.int32(column) >= count_N[row]:
                    continue
                value = values_NK[row, column]
                above = np.int32(value - first_low)
                is_large = np.int32(~(above >> np.int32(31)))  # all bits or none
                classes[at] = value - ((above - (above >> np.int32(8))) & is_large)
                low[at_low] = above
                at_low += np.uint64(is_large & np.int32(1))
                if value >= first_wide:
                    classes[at] = np.int32(WIDE_CLASS) + ((value - first_wide) >> np.int32(16))
                    at_low -= one
                    wide[end_wide_G[rank]] = value - first_wide
                    end_wide_G[rank] += 1
                at += one
            end_G[rank], end_low_G[rank] = at, at_low
    return _joined(classes, end_G, room), _joined(low, end_low_G, room), _joined(wide, end_wide_G, room)


@njit(types.uint8[::1](_TABLE, _ORDER, _ORDER, _BITS, _EXCESS), nogil=True, cache=True)
def choose(ids_NK, count_N, slot_V, bits_SC, excess_SC):  # noqa: ANN001, ANN201
    num_codebooks, one, eight = np.uint64(bits_SC.shape[1]), np.uint64(1), np.uint64(8)
    choice_N, sums_C = np.zeros(len(ids_NK), np.uint8), np.zeros(bits_SC.shape[1], np.uint16)
    slots_K, near_C = np.zeros(CHOICE_RANKS + 8, np.uint64), np.zeros(bits_SC.shape[1] + 1, np.uint64)
    for row in range(np.uint64(ids_NK.shape[0])):
        count = np.uint64(0)
        for rank in range(np.uint64(count_N[row])):
            slot = np.uint64(slot_V[np.uint64(ids_NK[row, rank])])
            slots_K[count] = slot
            count += np.uint64(slot > np.uint64(0))
        slots_K[count : count + eight] = 0  # slot 0 costs nothing
        sums_C[:] = 0
        for at in range(np.uint64(0), count, eight):
            s0, s1, s2, s3 = slots_K[at], slots_K[at + 1], slots_K[at + 2], slots_K[at + 3]
            s4, s5, s6, s7 = slots_K[at + 4], slots_K[at + 5], slots_K[at + 6], slots_K[at + 7]
            for book in range(num_codebooks):
                left = excess_SC[s0, book] + excess_SC[s1, book] + excess_SC[s2, book] + excess_SC[s3, book]
                right = excess_SC[s4, book] + excess_SC[s5, book] + excess_SC[s6, book] + excess_SC[s7, book]
                sums_C[book] += left + right
        least = sums_C[0]
        for book in range(num_codebooks):
            least = min(least, sums_C[book])
        # What is rounded may be wrong by half a step for each id, of both sums.
        most = np.uint64(least) + count + one
        num_near = np.uint64(0)
        for book in range(num_codebooks):
            near_C[num_near] = book
            num_near += np.uint64(np.uint64(sums_C[book]) <= most)
        best, cheapest = near_C[0], np.float32(np.inf)
        if num_near > one:
            for book in near_C[:num_near]:
                bits = np.float32(0)
                for rank in range(count):
                    bits += bits_SC[slots_K[rank], book]
                if bits < cheapest:
                    best, cheapest = book, bits
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
