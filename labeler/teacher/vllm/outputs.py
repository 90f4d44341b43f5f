"""Keeps label rows as arrays in vLLM's front end. Imports vllm, so it is imported when an engine starts.

The stock `LogprobsProcessor` turns every entry of every row into Python objects. The one here keeps the
arrays that come from the engine; where vLLM's own class has changed, `flat_columns` reads the arrays back
out of the stock lists, slower but equal.

Shape legend: C columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import vllm.v1.engine.output_processor as output_processor
from vllm.logprobs import FlatLogprobs
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from labeler.teacher.known_vllm import keeps_arrays
from labeler.teacher.label_rows import CapturedColumns


class ArrayRows:
    """Rows of one request, in order. They are copied into arrays that double as they fill up: what comes with
    a step is a slice of its whole batch, or of a received message, that must not be kept alive."""

    def __init__(self, ids_NC: np.ndarray, values_NC: np.ndarray, ranks_N: np.ndarray) -> None:
        """The first rows, which are kept as they are."""
        self._ids_NC, self._values_NC, self._ranks_N = ids_NC, values_NC, ranks_N
        self._num_rows = len(ranks_N)

    def add(self, ids_NC: np.ndarray, values_NC: np.ndarray, ranks_N: np.ndarray) -> None:
        """Further rows."""
        begin, end = self._num_rows, self._num_rows + len(ranks_N)
        if end > len(self._ranks_N):
            self._ids_NC = _doubled(self._ids_NC, end)
            self._values_NC = _doubled(self._values_NC, end)
            self._ranks_N = _doubled(self._ranks_N, end)
        self._ids_NC[begin:end] = ids_NC
        self._values_NC[begin:end] = values_NC
        self._ranks_N[begin:end] = ranks_N
        self._num_rows = end

    @property
    def columns(self) -> CapturedColumns:
        """All rows so far."""
        whole = CapturedColumns(self._ids_NC, self._values_NC, self._ranks_N)
        return whole if self._num_rows == len(self._ranks_N) else whole.slice(0, self._num_rows)


def _doubled(rows_N: np.ndarray, num_rows: int) -> np.ndarray:
    """The rows at the beginning of an array with room for twice `num_rows`."""
    larger_N = np.empty((2 * num_rows, *rows_N.shape[1:]), rows_N.dtype)
    larger_N[: len(rows_N)] = rows_N
    return larger_N


class ArrayLogprobsProcessor(LogprobsProcessor):
    """Collects `ArrayRows` where the stock class makes lists; `cumulative_logprob` is not kept."""

    def _update_sample_logprobs(self, logprobs_lists: LogprobsLists) -> None:
        ids_NC, values_NC, ranks_N, _ = logprobs_lists
        if isinstance(self.logprobs, ArrayRows):
            self.logprobs.add(ids_NC, values_NC, ranks_N)
        else:
            rows = ArrayRows(np.array(ids_NC, np.int32), np.array(values_NC), np.array(ranks_N))
            self.logprobs = rows  # type: ignore[assignment]

    def _update_prompt_logprobs(self, prompt_logprobs_tensors: LogprobsTensors) -> None:
        ids_NC, values_NC, ranks_N, *_ = prompt_logprobs_tensors
        rows = ArrayRows(ids_NC.numpy(), values_NC.numpy(), ranks_N.numpy())
        self.prompt_logprobs = rows  # type: ignore[assignment]


def keep_arrays() -> bool:
    """Put `ArrayLogprobsProcessor` into vLLM's place for all engines of this process, if it fits."""
    if not keeps_arrays():
        return False
    output_processor.LogprobsProcessor = ArrayLogprobsProcessor  # type: ignore[misc]
    return True


def columns_of(rows: Any, num_columns: int) -> CapturedColumns:
    """The rows of a request's `logprobs` or `prompt_logprobs`, whichever class collected them."""
    if isinstance(rows, ArrayRows):
        return rows.columns
    if isinstance(rows, FlatLogprobs):
        return flat_columns(rows, num_columns)
    return _empty(num_columns)


def flat_columns(flat: FlatLogprobs, num_columns: int) -> CapturedColumns:
    """Rows of equal width out of vLLM's flat lists. A prompt's first position has no entries."""
    count = len(flat.token_ids)
    ids_NC = np.fromiter(flat.token_ids, np.int64, count).reshape(-1, num_columns)
    values_NC = np.fromiter(flat.logprobs, np.float32, count).reshape(-1, num_columns)
    ranks_N = np.fromiter((rank or 0 for rank in flat.ranks[::num_columns]), np.int64, len(ids_NC))
    return CapturedColumns(ids_NC, values_NC, ranks_N)


def _empty(num_columns: int) -> CapturedColumns:
    return CapturedColumns(
        np.empty((0, num_columns), np.int32), np.empty((0, num_columns), np.float32), np.empty(0, np.int32)
    )
