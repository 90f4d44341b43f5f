"""The rules that label rows and sequences must keep, checked before writing and by `verify`.

Shape legend: T tokens, N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from logitstore.codec.writing_loops import WritingLoops
from logitstore.errors import InvalidLabelsError
from logitstore.manifest.fields import (
    MAX_TEMPERATURES,
    MAX_VOCAB_SIZE,
    SEGMENTS,
    STUDENT_PROMPTS,
    VALUE_KINDS,
    LabelSpec,
)
from logitstore.records import SEGMENT_NAMES, LabeledSequence, LabelRows, Segment
from logitstore.shard.segments import MAX_SEGMENTED_TOKENS

NORMALIZATION_TOLERANCE = 0.02
"""Most by which stored mass plus tail mass may miss 1."""
CHECKED_ROWS = 512
"""Rows that are looked at together, to stay in cache."""
_KINDS = {"integers": "iu", "booleans": "biu", "numbers": "iuf"}
"""Kinds of numpy's types. A fraction would be cut off without a word where the format has an integer."""
_INTEGERS = ("token_ids_T", "student_prompt_ids", "segments_T", "token_ids_NK", "count_N", "label_rank_N")
_NUMBERS = ("logits_NK", "logsumexp_NM", "log_tail_mass_NM", "label_logprob_N")
_WANTED = {
    **dict.fromkeys(_INTEGERS, "integers"),
    **dict.fromkeys(_NUMBERS, "numbers"),
    "loss_mask_N": "booleans",
}


def check_spec(labels: LabelSpec) -> None:
    """Raises InvalidLabelsError unless the format can hold such labels."""
    temperatures = labels.temperatures
    _require(
        1 <= labels.vocab_size <= MAX_VOCAB_SIZE, f"vocab_size {labels.vocab_size}", f"1..{MAX_VOCAB_SIZE}"
    )
    _require(1 <= labels.top_k <= labels.vocab_size, f"top_k {labels.top_k}", "1..vocab_size")
    _require(labels.value_kind in VALUE_KINDS, f"value_kind {labels.value_kind!r}", f"one of {VALUE_KINDS}")
    _require(
        labels.support in ("top", "given", "none"),
        f"support {labels.support!r}",
        '"top", "given" or "none"',
    )
    _require(labels.alignment == "label", f"alignment {labels.alignment!r}", '"label"')
    _require(
        0 < len(temperatures) <= MAX_TEMPERATURES
        and temperatures[0] == 1.0
        and all(low < high for low, high in pairwise(temperatures))
        and np.isfinite(temperatures[-1]),
        f"temperatures {temperatures}",
        f"at most {MAX_TEMPERATURES} finite numbers ascending from 1.0",
    )


def check_sequence(sequence: LabeledSequence, labels: LabelSpec) -> None:
    """Raises InvalidLabelsError, naming the record, unless the sequence keeps the rules of records.py."""
    check_frame(sequence, labels)
    try:
        _check_values(sequence.rows, labels)
    except InvalidLabelsError as error:
        raise InvalidLabelsError(f"record {sequence.record_id!r}: {error}") from error


def check_block(
    block: Sequence[LabeledSequence], rows: LabelRows, labels: LabelSpec, loops: WritingLoops
) -> None:
    """As `check_sequence` for sequences that passed `check_frame`; `rows` are those of all of them.

    A call of numpy costs more than its work on a sequence's rows, so many sequences are looked at together.
    """
    if not rows.num_rows:  # texts alone
        return
    if _is_sound(rows, labels, loops):
        _check_labels(rows, labels)
        return
    try:
        for start in range(0, rows.num_rows, CHECKED_ROWS):
            _check_values(rows.slice(start, min(start + CHECKED_ROWS, rows.num_rows)), labels)
    except InvalidLabelsError:
        for sequence in block:
            check_sequence(sequence, labels)  # the same error, with the record and its own row
        raise


def check_frame(sequence: LabeledSequence, labels: LabelSpec) -> None:
    """The rules of a sequence, and those of the shapes of its rows. Raises InvalidLabelsError."""
    try:
        _check_kinds(sequence)
        _check_shape(sequence)
        _require(
            labels.support != "none" or not sequence.rows.num_rows,
            f"{sequence.rows.num_rows} label rows in a store of texts alone",
            "none, or a store that is not of the feature 'texts_only'",
        )
        _check_student_prompt(sequence, labels)
        _check_segments(sequence, labels)
        _check_row_shapes(sequence.rows, labels)
    except InvalidLabelsError as error:
        raise InvalidLabelsError(f"record {sequence.record_id!r}: {error}") from error


def _check_kinds(sequence: LabeledSequence) -> None:
    for name, wanted in _WANTED.items():
        array = getattr(sequence.rows, name) if name in LabelRows.__slots__ else getattr(sequence, name)
        if isinstance(array, np.ndarray) and (array.dtype.kind in _KINDS[wanted] or not array.size):
            continue
        if array is not None or name not in ("student_prompt_ids", "segments_T"):
            found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise InvalidLabelsError(f"{name} of {found}; the format wants a numpy array of {wanted}")
    for name in ("sample_index", "prompt_length", "label_start"):
        value = getattr(sequence, name)
        _require(isinstance(value, int | np.integer), f"{name} {value!r:.80}", "an integer")


def _check_shape(sequence: LabeledSequence) -> None:
    texts = [("record_id", sequence.record_id), ("finish_reason", sequence.finish_reason)]
    for name, text in texts + [("a flag,", flag) for flag in sequence.flags]:
        _require(isinstance(text, str), f"{name} {text!r:.80}", "text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidLabelsError(
                f"{name} {text!r:.80}; the format wants Unicode text ({error})"
            ) from error
    _require(
        sequence.token_ids_T.ndim == 1, f"token_ids_T of shape {sequence.token_ids_T.shape}", "one dimension"
    )
    num_tokens, num_rows = len(sequence.token_ids_T), sequence.rows.num_rows
    start = sequence.label_start
    _require(start >= 1, f"label_start {start}", "at least 1 (position 0 has no label)")
    _require(
        start + num_rows <= num_tokens + 1,
        f"{num_rows} label rows from position {start} of {num_tokens} tokens",
        "at most one row past the last token",
    )
    _require(
        0 <= sequence.prompt_length <= num_tokens,
        f"prompt_length {sequence.prompt_length}",
        f"0..{num_tokens}, the tokens of the sequence",
    )
    _require(
        sequence.loss_mask_N.shape == (num_rows,),
        f"loss_mask of shape {sequence.loss_mask_N.shape}",
        f"one entry for each of the {num_rows} label rows",
    )
    if num_tokens:
        _require(int(sequence.token_ids_T.min()) >= 0, "a negative token id", "ids of the tokenizer")
        _require(int(sequence.token_ids_T.max()) < 1 << 24, "a token id", "below 2^24")
    _require(0 <= sequence.sample_index < 1 << 31, f"sample_index {sequence.sample_index}", "0..2^31-1")


def _check_student_prompt(sequence: LabeledSequence, labels: LabelSpec) -> None:
    prompt = sequence.student_prompt_ids
    if prompt is None:
        return
    _require(
        STUDENT_PROMPTS in labels.extra_columns,
        "a prompt of the student's in a store without such",
        f"the feature {STUDENT_PROMPTS!r} in the manifest",
    )
    _require(len(prompt) >= 1, "an empty prompt of the student's", "at least one token, or none of its own")
    low, high = int(prompt.min()), int(prompt.max())
    _require(
        0 <= low <= high < labels.vocab_size, f"ids {low}..{high} in the student's prompt", "ids below V"
    )
    _require(
        sequence.label_start >= max(1, sequence.prompt_length),
        f"label rows from position {sequence.label_start} of a prompt of {sequence.prompt_length} tokens",
        "rows of the response only where the student has a prompt of its own",
    )


def _check_segments(sequence: LabeledSequence, labels: LabelSpec) -> None:
    segments_T, num_tokens = sequence.segments_T, len(sequence.token_ids_T)
    if segments_T is None:
        return
    _require(
        SEGMENTS in labels.extra_columns,
        "segments in a store without such",
        f"the feature {SEGMENTS!r} in the manifest",
    )
    _require(
        segments_T.shape == (num_tokens,),
        f"segments of shape {segments_T.shape}",
        f"one for each of the {num_tokens} tokens",
    )
    _require(num_tokens <= MAX_SEGMENTED_TOKENS, f"{num_tokens} tokens", f"at most {MAX_SEGMENTED_TOKENS}")
    if not num_tokens:
        return
    low, high = int(segments_T.min()), int(segments_T.max())
    _require(
        0 <= low <= high < len(SEGMENT_NAMES),
        f"segments {low}..{high}",
        f"0..{len(SEGMENT_NAMES) - 1}, {', '.join(SEGMENT_NAMES)}",
    )
    is_context_T = segments_T == Segment.CONTEXT
    _require(
        bool(is_context_T[: sequence.prompt_length].all()),
        "another segment in the prompt",
        "context in the first prompt_length tokens",
    )
    if labels.positions == "response":
        is_context_N = is_context_T[sequence.label_start : sequence.label_start + sequence.rows.num_rows]
        counted_N = sequence.loss_mask_N[: len(is_context_N)]
        _require(
            not bool((counted_N & is_context_N).any()),
            "a loss mask that counts a token of the context",
            "counted rows of what the assistant wrote only",
        )


def _check_row_shapes(rows: LabelRows, labels: LabelSpec) -> None:
    num_rows, width = rows.token_ids_NK.shape
    num_temperatures = len(labels.temperatures)
    shapes = {
        "logits_NK": (num_rows, width),
        "count_N": (num_rows,),
        "logsumexp_NM": (num_rows, num_temperatures),
        "log_tail_mass_NM": (num_rows, num_temperatures),
        "label_logprob_N": (num_rows,),
        "label_rank_N": (num_rows,),
    }
    for name, shape in shapes.items():
        found = getattr(rows, name).shape
        _require(found == shape, f"{name} of shape {found}", f"{shape} here")
    if num_rows == 0:
        return
    _require(1 <= width <= labels.top_k, f"{width} entries per row", f"1..{labels.top_k}, the store's top_k")
    low, high = int(rows.count_N.min()), int(rows.count_N.max())
    _require(1 <= low <= high <= width, f"entry counts {low}..{high}", f"1..{width}")
    if not np.can_cast(rows.token_ids_NK.dtype, np.int32):
        low, high = int(rows.token_ids_NK.min()), int(rows.token_ids_NK.max())
        _require(-(1 << 31) <= low <= high < 1 << 31, f"ids {low}..{high}", "ids of 32 bits")


def _check_values(rows: LabelRows, labels: LabelSpec) -> None:
    if rows.num_rows == 0:
        return
    width = rows.token_ids_NK.shape[1]
    # Rows that are all full, as engines make them, need no masks.
    is_full = int(rows.count_N.min()) == width
    real_NK = None if is_full else np.arange(width)[None, :] < rows.count_N[:, None]
    _check_entries(rows, labels, real_NK)
    _check_masses(rows, labels, real_NK)
    _check_labels(rows, labels)


def _is_sound(rows: LabelRows, labels: LabelSpec, loops: WritingLoops) -> bool:
    """True if entries and masses are valid by far; else `_check_values` decides and says what is wrong."""
    return loops.is_sound(
        np.ascontiguousarray(rows.token_ids_NK, np.int32),
        np.ascontiguousarray(rows.logits_NK, np.float32),
        np.ascontiguousarray(rows.count_N, np.int32),
        np.ascontiguousarray(rows.logsumexp_NM, np.float32),
        np.ascontiguousarray(rows.log_tail_mass_NM, np.float32),
        np.asarray(labels.temperatures, np.float32),
        labels.vocab_size,
        NORMALIZATION_TOLERANCE / 2,
    )


def _check_labels(rows: LabelRows, labels: LabelSpec) -> None:
    rank_low, rank_high = int(rows.label_rank_N.min()), int(rows.label_rank_N.max())
    _require(
        0 <= rank_low <= rank_high <= labels.vocab_size,
        f"label ranks {rank_low}..{rank_high}",
        f"0 (unknown) or 1..{labels.vocab_size}",
    )
    _require(
        not bool((rows.label_logprob_N > 1e-3).any()), "a label log-probability above 0", "at most 0, or NaN"
    )


def _check_entries(rows: LabelRows, labels: LabelSpec, real_NK: np.ndarray | None) -> None:
    logits_NK, ids_NK = rows.logits_NK, rows.token_ids_NK
    finite, descending = np.isfinite(logits_NK), logits_NK[:, 1:] <= logits_NK[:, :-1]
    given_ids = ids_NK if real_NK is None else ids_NK[real_NK]
    low, high = int(given_ids.min()), int(given_ids.max())
    if real_NK is not None:
        finite |= ~real_NK
        descending |= ~real_NK[:, 1:]
        ids_NK = np.where(real_NK, ids_NK, -1 - np.arange(logits_NK.shape[1]))
    _require(bool(finite.all()), "an infinite or NaN logit", "finite logits")
    _require(bool(descending.all()), "logits that rise along a row", "entries in descending order")
    _require(0 <= low <= high < labels.vocab_size, f"ids {low}..{high}", f"0..{labels.vocab_size - 1}")
    ordered_NK = np.sort(ids_NK, axis=1)
    twice = (ordered_NK[:, 1:] == ordered_NK[:, :-1]).any(axis=1)
    _require(not twice.any(), f"an id twice in row {int(twice.argmax())}", "distinct ids in a row")


def _check_masses(rows: LabelRows, labels: LabelSpec, real_NK: np.ndarray | None) -> None:
    _require(
        bool(np.isfinite(rows.logsumexp_NM).all()), "a logsumexp that is not finite", "finite normalisers"
    )
    tail_NM = rows.log_tail_mass_NM
    _require(not bool(np.isnan(tail_NM).any()), "a NaN log tail mass", "-inf where there is no tail")
    _require(bool((tail_NM <= 1e-6).all()), f"log tail mass {tail_NM.max()}", "at most 0")
    masked_NK = rows.logits_NK if real_NK is None else np.where(real_NK, rows.logits_NK, -np.inf)
    for index, temperature in enumerate(labels.temperatures):
        scaled_NK = masked_NK / np.float32(temperature)
        scaled_NK -= rows.logsumexp_NM[:, index, None]
        with np.errstate(over="ignore"):
            mass_N = np.exp(scaled_NK, out=scaled_NK).sum(axis=1) + np.exp(tail_NM[:, index])
        worst = int(np.abs(mass_N - 1).argmax())
        _require(
            abs(float(mass_N[worst]) - 1) <= NORMALIZATION_TOLERANCE,
            f"mass {float(mass_N[worst]):.4f} in row {worst} at temperature {temperature}, entries and "
            "tail together",
            f"1 within {NORMALIZATION_TOLERANCE}; logsumexp, logits and tail must be of one distribution",
        )


def _require(holds: bool, found: str, rule: str) -> None:
    if not holds:
        raise InvalidLabelsError(f"{found}; the format wants {rule}")
