"""Stores as tables, one row per sequence with list columns: Parquet, Arrow IPC and JSONL.

The columns are the fields of `LabeledSequence` and `LabelRows`. Parquet and Arrow files carry the
manifest in their schema's metadata, JSONL in its first line, so that a table imports without being told
anything.

Shape legend: T tokens, N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.errors import UnsupportedInputError
from logitstore.exchange.importing import Source
from logitstore.inputs.raw_record import RawRecord
from logitstore.inputs.reading import iter_records
from logitstore.manifest import strict_json
from logitstore.manifest.fields import SEGMENTS, STUDENT_PROMPTS, Manifest
from logitstore.manifest.reading import decode_manifest
from logitstore.records import LabeledSequence, LabelRows
from logitstore.rows.selection import Selection
from logitstore.rows.temperature import cut_labels, cut_sequences
from logitstore.store import LogitStore

Progress = Callable[[str, int, int], None]
METADATA_KEY = b"logitstore_manifest"
JSONL_MANIFEST_KEY = "logitstore_manifest"
ROWS_PER_BATCH = 64
"""Sequences per record batch or row group."""

TABLE_SCHEMA = pa.schema(
    {
        "record_id": pa.utf8(),
        "sample_index": pa.int32(),
        "token_ids": pa.list_(pa.int32()),
        "prompt_length": pa.int32(),
        "label_start": pa.int32(),
        "loss_mask": pa.list_(pa.bool_()),
        "finish_reason": pa.utf8(),
        "flags": pa.list_(pa.utf8()),
        "top_ids": pa.list_(pa.list_(pa.int32())),
        "top_logits": pa.list_(pa.list_(pa.float32())),
        "logsumexp": pa.list_(pa.list_(pa.float32())),
        "log_tail_mass": pa.list_(pa.list_(pa.float32())),
        "label_logprob": pa.list_(pa.float32()),
        "label_rank": pa.list_(pa.int32()),
    }
)


STUDENT_PROMPT = pa.field("student_prompt_ids", pa.list_(pa.int32()))
"""A further column of stores with the feature `student_prompts`; null where a sequence has none."""
SEGMENTS_OF_TOKENS = pa.field(SEGMENTS, pa.list_(pa.uint8()))
"""A further column of stores with the feature `segments`: the number of each token's `Segment`; null where
they are not known."""


def export_table(
    store: LogitStore,
    path: Path,
    form: str,
    *,
    selection: Selection | None = None,
    top_k: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the selected sequences as "parquet", "arrow" or "jsonl"; the number of sequences."""
    selection = selection or Selection()
    temporary = path.with_name(f".{path.name}.part")
    try:
        manifest = dataclasses.replace(store.manifest, labels=cut_labels(store.manifest.labels, top_k))
        sequences = cut_sequences(_counted(store, selection, progress), store.manifest.labels, top_k)
        count = _write(manifest, temporary, form, sequences)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def read_table(path: Path, like: Manifest | None = None) -> Source:
    """A table that `export_table` wrote, as a source. Raises UnsupportedInputError.

    `like` is the manifest of a table that has lost it, as through tools that drop a schema's metadata.
    """
    manifest = _read_manifest(path) if like is None else like
    records = (raw for raw in iter_records(str(path)) if not _is_head(raw))
    sequences = (_from_record(raw, manifest) for raw in records)
    return Source(
        "table",
        path.name,
        manifest.labels,
        sequences,
        None,
        manifest.teacher,
        manifest.tokenizer,
        manifest.features,
        manifest.retokenized,
    )


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


def _counted(store: LogitStore, selection: Selection, progress: Progress | None) -> Iterator[LabeledSequence]:
    total = int(store.shards().column("num_sequences").sum())
    for done, sequence in enumerate(selection.sequences(store), start=1):
        yield sequence
        if progress:
            progress("sequences", done, total)


def _write(head: Manifest, path: Path, form: str, sequences: Iterator[LabeledSequence]) -> int:
    manifest = strict_json.encode(head)
    if form == "jsonl":
        return _write_jsonl(path, manifest, sequences)
    schema = TABLE_SCHEMA
    if STUDENT_PROMPTS in head.features:
        schema = schema.append(STUDENT_PROMPT)
    if SEGMENTS in head.features:
        schema = schema.append(SEGMENTS_OF_TOKENS)
    schema = schema.with_metadata({METADATA_KEY: base64.b64encode(manifest)})
    count = 0
    opened = (
        pq.ParquetWriter(path, schema, compression="zstd")
        if form == "parquet"
        else pa.ipc.new_file(path, schema)
    )
    with opened as writer:
        for batch in _batches(sequences, schema):
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _write_jsonl(path: Path, manifest: bytes, sequences: Iterator[LabeledSequence]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({JSONL_MANIFEST_KEY: json.loads(manifest)}) + "\n")
        for sequence in sequences:
            write_json_line(sequence, file)
            count += 1
    return count


def _batches(sequences: Iterator[LabeledSequence], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    part: list[dict[str, Any]] = []
    for sequence in sequences:
        part.append(sequence_record(sequence))
        if len(part) == ROWS_PER_BATCH:
            yield pa.RecordBatch.from_pylist(part, schema=schema)
            part = []
    if part:
        yield pa.RecordBatch.from_pylist(part, schema=schema)


def _is_head(raw: RawRecord) -> bool:
    return raw.record is not None and JSONL_MANIFEST_KEY in raw.record


def _read_manifest(path: Path) -> Manifest:
    metadata: dict[bytes, bytes] = {}
    try:
        if path.suffix == ".parquet":
            metadata = pq.read_schema(path).metadata or {}
        elif path.suffix == ".arrow":
            with pa.ipc.open_file(path) as reader:
                metadata = reader.schema.metadata or {}
        else:
            first = next(iter_records(str(path)), None)
            if first is not None and _is_head(first) and first.record is not None:
                return decode_manifest(json.dumps(first.record[JSONL_MANIFEST_KEY]).encode(), what=str(path))
        if METADATA_KEY in metadata:
            return decode_manifest(base64.b64decode(metadata[METADATA_KEY]), what=str(path))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnsupportedInputError(f"{path} cannot be read as a table of a store: {error}") from error
    raise UnsupportedInputError(
        f"{path} carries no manifest of a store; only tables that `export` wrote can be imported. Where "
        "another tool has dropped it, name the store that was exported: --like STORE (a capture goes in as "
        "--from npz)"
    )


def _from_record(raw: RawRecord, manifest: Manifest) -> LabeledSequence:
    if raw.record is None:
        raise UnsupportedInputError(f"{raw.file}:{raw.line}: {raw.error}")
    record = raw.record
    try:
        return LabeledSequence(
            record_id=record["record_id"],
            sample_index=record["sample_index"],
            token_ids_T=np.array(record["token_ids"], np.int32),
            prompt_length=record["prompt_length"],
            label_start=record["label_start"],
            rows=_from_lists(record, len(manifest.labels.temperatures)),
            loss_mask_N=np.array(record["loss_mask"], bool),
            finish_reason=record["finish_reason"],
            flags=tuple(record["flags"]),
            student_prompt_ids=_student_prompt(record),
            segments_T=_segments(record),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedInputError(
            f"{raw.file}:{raw.line} is not a sequence of a store's table ({type(error).__name__}: {error})"
        ) from error


def _student_prompt(record: dict[str, Any]) -> np.ndarray | None:
    ids = record.get(STUDENT_PROMPT.name)
    return None if ids is None else np.array(ids, np.int32)


def _segments(record: dict[str, Any]) -> np.ndarray | None:
    segments = record.get(SEGMENTS)
    return None if segments is None else np.array(segments, np.uint8)


def _from_lists(record: dict[str, Any], num_temperatures: int) -> LabelRows:
    count_N = np.array([len(ids) for ids in record["top_ids"]], np.int32)
    width = max(1, int(count_N.max(initial=0)))
    ids_NK = np.zeros((len(count_N), width), np.int32)
    logits_NK = np.full((len(count_N), width), -np.inf, np.float32)
    for row, (ids, values) in enumerate(zip(record["top_ids"], record["top_logits"], strict=True)):
        ids_NK[row, : len(ids)] = ids
        logits_NK[row, : len(ids)] = values
    tail = [[-np.inf if value is None else value for value in row] for row in record["log_tail_mass"]]
    logprob = [np.nan if value is None else value for value in record["label_logprob"]]
    return LabelRows(
        logits_NK=logits_NK,
        token_ids_NK=ids_NK,
        count_N=count_N,
        logsumexp_NM=np.array(record["logsumexp"], np.float32).reshape(-1, num_temperatures),
        log_tail_mass_NM=np.array(tail, np.float32).reshape(-1, num_temperatures),
        label_logprob_N=np.array(logprob, np.float32),
        label_rank_N=np.array(record["label_rank"], np.int32),
    )
