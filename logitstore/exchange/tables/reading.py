"""Tables back into sequences: one file, or a folder of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.errors import UnsupportedInputError
from logitstore.exchange.importing import Source
from logitstore.exchange.tables.columns import METADATA_KEY, TABLE_SCHEMA, table_schema
from logitstore.exchange.tables.from_arrow import batch_of, sequences_of
from logitstore.inputs.listing import form_of, list_files, open_file
from logitstore.inputs.raw_record import MANIFEST_KEY
from logitstore.inputs.reading import iter_records
from logitstore.inputs.table_files import arrow_batches, open_arrow, parquet_batches
from logitstore.manifest.fields import Manifest
from logitstore.manifest.reading import decode_manifest
from logitstore.records import LabeledSequence

SEQUENCES_AT_ONCE = 256
_BATCHES = {"parquet": parquet_batches, "arrow": arrow_batches}


def read_table(path: Path, like: Manifest | None = None) -> Source:
    """A table that `export_table` wrote, as a source. Raises UnsupportedInputError.

    `like` is the manifest of a table that has lost it, as through tools that drop a schema's metadata.
    """
    manifest = _read_manifest(path) if like is None else like
    sequences = (
        sequence
        for file, name in list_files(str(path))
        for sequence in _sequences_of_file(file, name, manifest)
    )
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


def _sequences_of_file(path: str, name: str, manifest: Manifest) -> Iterator[LabeledSequence]:
    num_temperatures = len(manifest.labels.temperatures)
    read = _BATCHES.get(form_of(path) or "")
    if read is None:
        for raw in iter_records(path, manifests=True):
            if raw.record is None:
                raise UnsupportedInputError(f"{raw.file}:{raw.line}: {raw.error}")
            if not raw.is_manifest:
                row = batch_of(raw.record, raw.file, raw.line)
                yield from sequences_of(row, num_temperatures, raw.file, raw.line)
        return
    line = 1
    try:
        with open_file(path, {}) as file:
            for batch in read(file, SEQUENCES_AT_ONCE):
                _refuse_lost_columns(batch, manifest, name)
                yield from sequences_of(batch, num_temperatures, name, line)
                line += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise UnsupportedInputError(
            f"{name}: the file cannot be read beyond row {line - 1} ({type(error).__name__}: {error}); it is "
            "damaged, cut off or out of reach"
        ) from error


def _refuse_lost_columns(batch: pa.RecordBatch, manifest: Manifest, name: str) -> None:
    """Without its column a student would see the teacher's prompt, and no token's segment be known."""
    lost = [one for one in table_schema(manifest).names if one not in batch.schema.names]
    if lost and lost[0] not in TABLE_SCHEMA.names:
        raise UnsupportedInputError(
            f"{name} has no column {lost[0]!r}, which the store has that it was exported from; export it "
            "again, or add the column (null where a sequence has none)"
        )


def _read_manifest(path: Path) -> Manifest:
    metadata: dict[bytes, bytes] = {}
    if path.is_dir():
        path = Path(list_files(str(path))[0][0].removeprefix("file://"))
    form = form_of(path.name)
    try:
        if form == "parquet":
            metadata = pq.read_schema(path).metadata or {}
        elif form == "arrow":
            with path.open("rb") as file:
                metadata = open_arrow(file).schema.metadata or {}
        else:
            first = next(iter_records(str(path), manifests=True), None)
            if first is not None and first.is_manifest and first.record is not None:
                return decode_manifest(json.dumps(first.record[MANIFEST_KEY]).encode(), what=str(path))
        if METADATA_KEY in metadata:
            return decode_manifest(base64.b64decode(metadata[METADATA_KEY]), what=str(path))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnsupportedInputError(f"{path} cannot be read as a table of a store: {error}") from error
    raise UnsupportedInputError(
        f"{path} carries no manifest of a store; only tables that `export` wrote can be imported. Where "
        "another tool has dropped it, name the store that was exported: --like STORE (a capture goes in as "
        "--from npz)"
    )
