"""Sequences as lines of JSON, for people and for tools that read nothing else."""

from __future__ import annotations

import json
import math
from typing import IO, Any

from logitstore.exchange.tables.columns import JSONL_MANIFEST_KEY, STUDENT_PROMPT
from logitstore.manifest import strict_json
from logitstore.manifest.fields import SEGMENTS, Manifest
from logitstore.records import LabeledSequence


def write_head(manifest: Manifest, file: IO[str]) -> None:
    """The first line, by which `import` knows the store."""
    file.write(json.dumps({JSONL_MANIFEST_KEY: json.loads(strict_json.encode(manifest))}) + "\n")


def sequence_record(sequence: LabeledSequence) -> dict[str, Any]:
    """One row of the table, as plain values; entries beyond a row's count are left out."""
    rows = sequence.rows
    counts = rows.count_N.tolist()
    return {
        "record_id": sequence.record_id,
        "sample_index": sequence.sample_index,
        "token_ids": sequence.token_ids_T.tolist(),
        "prompt_length": sequence.prompt_length,
        "label_start": sequence.label_start,
        "loss_mask": sequence.loss_mask_N.tolist(),
        "finish_reason": sequence.finish_reason,
        "flags": list(sequence.flags),
        "top_ids": [ids[:count] for ids, count in zip(rows.token_ids_NK.tolist(), counts, strict=True)],
        "top_logits": [values[:count] for values, count in zip(rows.logits_NK.tolist(), counts, strict=True)],
        "logsumexp": rows.logsumexp_NM.tolist(),
        "log_tail_mass": rows.log_tail_mass_NM.tolist(),
        "label_logprob": rows.label_logprob_N.tolist(),
        "label_rank": rows.label_rank_N.tolist(),
        **(
            {}
            if sequence.student_prompt_ids is None
            else {STUDENT_PROMPT.name: sequence.student_prompt_ids.tolist()}
        ),
        **({} if sequence.segments_T is None else {SEGMENTS: sequence.segments_T.tolist()}),
    }


def write_json_line(sequence: LabeledSequence, file: IO[str]) -> None:
    """One sequence as a line of JSON; infinities and NaN, which JSON lacks, become null."""
    json.dump(_json_numbers(sequence_record(sequence)), file, ensure_ascii=False, separators=(",", ":"))
    file.write("\n")


def _json_numbers(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_json_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _json_numbers(item) for key, item in value.items()}
    return value
