"""The inner loops of reading: in numpy, the reference, and compiled where numba is installed.

numpy needs many passes over memory for what is one loop. Both forms give the same bits
(`tests/logitstore/codec/test_loops.py`), and the compiled one lets go of Python's lock. Loading numba takes
about a second, so a process does it once it has read or written so much that it is likely to do more.

Shape legend: N label rows, K stored entries, G ranks at once.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from logitstore.common.store_warning import StoreWarning

WIDE_CLASS = 224
"""First class with two low bytes (bytecodes.py)."""
LOAD_AFTER_ENTRIES = 1 << 26
"""Entries that a process reads before it loads the compiled loops: about a second of numpy's work."""
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
    """None where they cannot be had: see `import_compiled`."""
    compiled = import_compiled("compiled_loops")
    if compiled is None:
        return None
    return Loops(
        compiled.join, compiled.expand, compiled.look_up, compiled.subtract_gaps, compiled.read_label
    )


def import_compiled(name: str) -> ModuleType | None:
    """A module of compiled loops of this room; None where numba is not installed (the extra `fast`) or finds
    no place for what it compiles."""
    try:
        return importlib.import_module(f"logitstore.codec.{name}")
    except ImportError:
        return None
    except (RuntimeError, OSError) as error:
        warnings.warn(
            f"the codec's loops cannot be compiled, so numpy reads and writes, at half the speed ({error}); "
            "set NUMBA_CACHE_DIR to a folder that can be written and has room",
            StoreWarning,
            stacklevel=2,
        )
        return None


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


NUMPY_LOOPS = Loops(_join, _expand, _look_up, _subtract_gaps, _read_label)
_entries_read = 0
