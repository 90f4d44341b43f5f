"""Record batches, and lines of JSON as such, back into sequences, from whole arrays.

Tools that a table passed through have lists and texts of other widths (large lists, dictionaries, int64):
columns are cast to the types that `export` writes.

Shape legend: S sequences, T tokens, N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from logitstore.errors import UnsupportedInputError
from logitstore.exchange.tables.columns import SEGMENTS_OF_TOKENS, STUDENT_PROMPT, TABLE_SCHEMA
from logitstore.records import LabeledSequence, LabelRows

_OF_ROWS = ("top_ids", "top_logits", "logsumexp", "log_tail_mass")
_ALL_NAMES = (*TABLE_SCHEMA.names, STUDENT_PROMPT.name, SEGMENTS_OF_TOKENS.name)


def batch_of(record: Mapping[str, Any], file: str, line: int) -> pa.RecordBatch:
    """One row, of a line of JSON, by the types that its values have there.

    Raises UnsupportedInputError.
    """
    columns: dict[str, pa.Array] = {}
    for name in (name for name in _ALL_NAMES if name in record):
        try:
            columns[name] = pa.array([record[name]])
        except (pa.ArrowException, OverflowError) as error:
            raise _wrong(file, line, f"{name}: {error}") from error
    return pa.RecordBatch.from_pydict(columns)


def sequences_of(
    batch: pa.RecordBatch, num_temperatures: int, file: str, first_line: int
) -> Iterator[LabeledSequence]:
    """The sequences of a batch whose first row is row `first_line` of the file, counted from 1.

    Raises UnsupportedInputError for what is no table of a store.
    """
    columns = _Columns(batch, file, first_line)
    rows = _Rows(columns, num_temperatures)
    tokens, masks = columns.numbers("token_ids"), columns.numbers("loss_mask")
    prompts = columns.numbers_or_none(STUDENT_PROMPT)
    segments = columns.numbers_or_none(SEGMENTS_OF_TOKENS)
    columns.values("flags", columns.column("flags"))  # refuses a null
    names = ("record_id", "sample_index", "prompt_length", "label_start", "finish_reason", "flags")
    values = zip(*(columns.column(name).to_pylist() for name in names), strict=True)
    for place, (record_id, sample, prompt_length, label_start, finish, flags) in enumerate(values):
        yield LabeledSequence(
            record_id=record_id,
            sample_index=sample,
            token_ids_T=tokens[place],
            prompt_length=prompt_length,
            label_start=label_start,
            rows=rows.of(place),
            loss_mask_N=masks[place],
            finish_reason=finish,
            flags=tuple(flags),
            student_prompt_ids=prompts[place],
            segments_T=segments[place],
        )


class _Columns:
    """The columns of a batch, as they were exported."""

    def __init__(self, batch: pa.RecordBatch, file: str, first_line: int) -> None:
        self._batch, self._file, self._first_line = batch, file, first_line

    def column(self, name: str) -> pa.Array:
        """The column, in the type that it was exported with and without nulls."""
        return self._without_nulls(name, self._cast(TABLE_SCHEMA.field(name)))

    def numbers(self, name: str) -> list[np.ndarray]:
        """One array of each sequence."""
        return self._apart(self.values(name, self.column(name)), self.lengths(name))

    def numbers_or_none(self, field: pa.Field) -> Sequence[np.ndarray | None]:
        """The values of a column that may be missing, from the table or from single sequences."""
        if field.name not in self._batch.schema.names:
            return [None] * self._batch.num_rows
        column = self._cast(field)
        lengths = pc.call_function("list_value_length", [column]).fill_null(0).to_numpy(zero_copy_only=False)
        parts = self._apart(self.values(field.name, column), lengths)
        known = column.is_valid().to_numpy(zero_copy_only=False)
        return [part if is_known else None for part, is_known in zip(parts, known, strict=True)]

    def lengths(self, name: str) -> np.ndarray:
        """int [S]: items of each sequence's list."""
        return pc.call_function("list_value_length", [self.column(name)]).to_numpy(zero_copy_only=False)

    def values(self, name: str, column: pa.Array, *, null: float | None = None) -> np.ndarray:
        """The items of all lists; `null` stands for a null, which there may be none of without it."""
        items = column.flatten()
        if null is not None:
            items = items.fill_null(null)
        elif items.null_count:
            raise self.wrong(0, f"an item of {name} is null")
        return items.to_numpy(zero_copy_only=False)

    def wrong(self, place: int, reason: str) -> UnsupportedInputError:
        return _wrong(self._file, self._first_line + place, reason)

    def _cast(self, field: pa.Field) -> pa.Array:
        if field.name not in self._batch.schema.names:
            raise self.wrong(0, f"there is no column {field.name!r}")
        column = self._batch.column(field.name)
        try:
            return column if column.type.equals(field.type) else column.cast(field.type)
        except pa.ArrowException as error:
            raise self.wrong(0, f"{field.name}: {error}") from error

    def _without_nulls(self, name: str, column: pa.Array) -> pa.Array:
        if column.null_count:
            first = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise self.wrong(first, f"{name} is null")
        return column

    @staticmethod
    def _apart(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _wrong(file: str, line: int, reason: str) -> UnsupportedInputError:
    return UnsupportedInputError(f"{file}:{line} is not a sequence of a store's table ({reason})")


class _Rows:
    """The label rows of a batch."""

    def __init__(self, columns: _Columns, num_temperatures: int) -> None:
        lengths_S = columns.lengths("top_ids")
        for name in _OF_ROWS[1:]:
            _need_equal(columns, name, columns.lengths(name), lengths_S)
        self._ends = np.cumsum(lengths_S)
        self._starts = self._ends - lengths_S
        ids, logits = (columns.column(name).flatten() for name in _OF_ROWS[:2])
        self._count_N = _counts(columns, "top_ids", ids, lengths_S)
        if not np.array_equal(self._count_N, _counts(columns, "top_logits", logits, lengths_S)):
            raise columns.wrong(0, "a row has not as many top_logits as top_ids")
        self._ids_NK = _padded(columns.values("top_ids", ids), self._count_N, np.int32(0))
        self._logits_NK = _padded(columns.values("top_logits", logits), self._count_N, np.float32(-np.inf))
        self._masses = []
        for name in _OF_ROWS[2:]:
            inner = columns.column(name).flatten()
            if not (_counts(columns, name, inner, lengths_S) == num_temperatures).all():
                raise columns.wrong(0, f"{name} has not a value for each of {num_temperatures} temperatures")
            null = -np.inf if name == "log_tail_mass" else None
            self._masses.append(columns.values(name, inner, null=null).reshape(-1, num_temperatures))
        label_logprob = columns.column("label_logprob")
        self._label_logprob_N = columns.values("label_logprob", label_logprob, null=np.nan)
        self._label_rank_N = columns.values("label_rank", columns.column("label_rank"))
        for name in ("label_logprob", "label_rank"):
            _need_equal(columns, name, columns.lengths(name), lengths_S)

    def of(self, place: int) -> LabelRows:
        span = slice(int(self._starts[place]), int(self._ends[place]))
        width = max(1, int(self._count_N[span].max(initial=0)))
        return LabelRows(
            logits_NK=self._logits_NK[span, :width],
            token_ids_NK=self._ids_NK[span, :width],
            count_N=self._count_N[span],
            logsumexp_NM=self._masses[0][span],
            log_tail_mass_NM=self._masses[1][span],
            label_logprob_N=self._label_logprob_N[span],
            label_rank_N=self._label_rank_N[span],
        )


def _need_equal(columns: _Columns, name: str, found_S: np.ndarray, wanted_S: np.ndarray) -> None:
    unlike = np.flatnonzero(found_S != wanted_S)
    if len(unlike):
        first = int(unlike[0])
        reason = f"{wanted_S[first]} rows of top_ids and {found_S[first]} of {name}"
        raise columns.wrong(first, reason)


def _counts(columns: _Columns, name: str, inner: pa.Array, lengths_S: np.ndarray) -> np.ndarray:
    """int32 [N]: entries of each row."""
    if inner.null_count:
        row = int(np.flatnonzero(inner.is_null().to_numpy(zero_copy_only=False))[0])
        place = int(np.searchsorted(np.cumsum(lengths_S), row, side="right"))
        raise columns.wrong(place, f"a row of {name} is null")
    return pc.call_function("list_value_length", [inner]).to_numpy(zero_copy_only=False).astype(np.int32)


def _padded(values: np.ndarray, count_N: np.ndarray, padding: np.generic) -> np.ndarray:
    """[N, K] of the entries of all rows, one after the other."""
    width = max(1, int(count_N.max(initial=0)))
    if (count_N == width).all():
        return values.reshape(-1, width)
    found_NK = np.full((len(count_N), width), padding)
    found_NK[np.arange(width) < count_N[:, None]] = values
    return found_NK
