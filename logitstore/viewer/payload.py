"""What the page is given: JSON values of a store, of a page of sequences and of one sequence.

Shape legend: T tokens of one sequence, N label rows, K stored entries per row, M temperatures.
Arrays travel as base64 of their little-endian bytes, so that 8,192 rows of 128 entries stay quick; the
page computes probabilities at any temperature from them (assets/temperature.js), exactly like
`logitstore.rows.temperature`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from logitstore.decoding.tokens import TokenTexts
from logitstore.manifest.fields import LabelSpec, Manifest
from logitstore.records import SEGMENT_NAMES, LabeledSequence, LabelRows, Reject
from logitstore.shard.segments import runs_of
from logitstore.viewer.conversation import Conversations
from logitstore.viewer.encoding import Json, encode
from logitstore.viewer.pages import Line
from logitstore.viewer.student_view import StudentView


def manifest_payload(manifest: Manifest) -> Json:
    """Who labeled what: the facts a reader sees above the sequences. The job's config is left out."""
    teacher, labels = manifest.teacher, manifest.labels
    return {
        "created": manifest.created,
        "teacher": teacher.model,
        "revision": teacher.revision,
        "dtype": teacher.dtype,
        "quantization": teacher.quantization,
        "engine": f"{teacher.engine} {teacher.engine_version}",
        "capture": teacher.capture,
        "vocab_size": labels.vocab_size,
        "top_k": labels.top_k,
        "temperatures": list(labels.temperatures),
        "mode": labels.mode,
        "positions": labels.positions,
        "value_kind": labels.value_kind,
        "input": manifest.input.uri,
    }


def summary_payload(index: int, sequence: Line, conversations: Conversations) -> Json:
    """One row of the list of sequences."""
    conversation = conversations.of(sequence.token_ids_T, sequence.prompt_length, sequence.segments_T)
    return {
        "index": index,
        "record_id": sequence.record_id,
        "sample_index": sequence.sample_index,
        "num_tokens": len(sequence.token_ids_T),
        "num_rows": sequence.num_rows,
        "finish_reason": sequence.finish_reason,
        "flags": list(sequence.flags),
        "asked": conversation.asked,
        "answer": conversation.answer,
        "num_turns": conversation.num_turns,
    }


def sequence_payload(
    index: int,
    sequence: LabeledSequence,
    spec: LabelSpec,
    texts: TokenTexts,
    student: StudentView | None = None,
) -> Json:
    """Everything of one sequence: its texts, its label rows and the text of every id that occurs.

    `spec` gives the temperatures and V; K is the rows' own, so that truncated rows are shown as such.
    """
    rows = sequence.rows
    own = np.zeros(0, np.int32) if student is None else student.own_ids(sequence, spec)
    ids = np.unique(np.concatenate([sequence.token_ids_T, rows.token_ids_NK.reshape(-1), own])).tolist()
    return {
        "index": index,
        "record_id": sequence.record_id,
        "sample_index": sequence.sample_index,
        "prompt_length": sequence.prompt_length,
        "label_start": sequence.label_start,
        "finish_reason": sequence.finish_reason,
        "flags": list(sequence.flags),
        "texts": texts.sequence(sequence.token_ids_T.tolist()),
        "token_ids": sequence.token_ids_T.tolist(),
        "pieces": {str(token_id): texts.piece(token_id) for token_id in ids},
        "student_prompt": None
        if sequence.student_prompt_ids is None
        else texts.sequence(sequence.student_prompt_ids.tolist()),
        "segments": _segments_payload(sequence.segments_T),
        "vocab_size": spec.num_outcomes,  # what the page interpolates tails by
        "temperatures": list(spec.temperatures),
        "rows": _rows_payload(rows, sequence.loss_mask_N),
        "student": None if student is None else student.payload(sequence, spec),
    }


def _segments_payload(segments_T: np.ndarray | None) -> list[tuple[str, int]] | None:
    """(name, tokens) of each run; None where they are not known."""
    if segments_T is None:
        return None
    segments_R, lengths_R = runs_of(segments_T)
    return [
        (SEGMENT_NAMES[number], length)
        for number, length in zip(segments_R.tolist(), lengths_R.tolist(), strict=True)
    ]


def reject_payload(reject: Reject) -> Json:
    return {
        "file": reject.file,
        "line": reject.line,
        "record_id": reject.record_id,
        "kind": reject.kind,
        "reason": reject.reason,
    }


def rejects_payload(rejects: Sequence[Reject], start: int, count: int) -> Json:
    """Rejects `start` to `start + count`, and how many there are of each kind."""
    kinds: dict[str, int] = {}
    for reject in rejects:
        kinds[reject.kind] = kinds.get(reject.kind, 0) + 1
    return {
        "total": len(rejects),
        "kinds": kinds,
        "rejects": [reject_payload(reject) for reject in rejects[start : start + count]],
    }


def _rows_payload(rows: LabelRows, loss_mask_N: np.ndarray) -> Json:
    num_rows, top_k = rows.token_ids_NK.shape
    return {
        "num_rows": num_rows,
        "top_k": top_k,
        "logits_NK": encode(rows.logits_NK, "<f4"),
        "token_ids_NK": encode(rows.token_ids_NK, "<i4"),
        "count_N": encode(rows.count_N, "<i4"),
        "logsumexp_NM": encode(rows.logsumexp_NM, "<f4"),
        "log_tail_mass_NM": encode(rows.log_tail_mass_NM, "<f4"),
        "label_logprob_N": encode(rows.label_logprob_N, "<f4"),
        "label_rank_N": encode(rows.label_rank_N, "<i4"),
        "loss_mask_N": encode(loss_mask_N, "|u1"),
    }
