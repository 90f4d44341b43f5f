"""Writing shards: sequences in blocks, each block a record batch of an Arrow IPC file (FORMAT.md).

Shape legend: N label rows, K stored entries.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from logitstore.codec.block import BlockCodec
from logitstore.codec.codebooks import CodebookSet, identity_codebook
from logitstore.codec.streams import pack, to_planes
from logitstore.codec.writing_loops import writing_loops_for
from logitstore.errors import InvalidLabelsError
from logitstore.manifest.fields import SEGMENTS, STUDENT_PROMPTS, LabelSpec
from logitstore.records import LabeledSequence, LabelRows
from logitstore.shard.metadata import check_codebooks, schema_to_write
from logitstore.shard.schema import (
    BLOCK_ENTRIES,
    BLOCK_ROWS,
    MAX_BLOCK_ENTRIES,
    MAX_BLOCK_TOKENS,
)
from logitstore.shard.segments import encode_segments
from logitstore.shard.sequence_columns import PlainColumns, to_binary_array
from logitstore.shard.student_prompts import encode_student_prompts
from logitstore.shard.validation import check_block, check_frame, check_spec

WRITE_BYTES = 1 << 18
"""Bytes that are handed on at once: Arrow writes each buffer of a block, a hundred or so, by itself."""


@dataclass(frozen=True)
class ShardStats:
    """What a commit record says of a written shard."""

    num_sequences: int
    num_rows: int
    num_tokens: int
    num_bytes: int
    checksum: str
    """"blake2b-128:<hex>" of the whole file."""


def write_shard(
    path_or_file: str | BinaryIO,
    sequences: Iterable[LabeledSequence],
    labels: LabelSpec,
    codebooks: CodebookSet | None,
) -> ShardStats:
    """Writes sequences as one shard. The same sequences always give the same bytes.

    Raises:
        InvalidLabelsError: a sequence breaks the rules of records.py, or does not fit the format.
    """
    check_spec(labels)
    if isinstance(path_or_file, str):
        with open(path_or_file, "wb") as file:
            return write_shard(file, sequences, labels, codebooks)
    codec = BlockCodec(labels, codebooks or identity_codebook(labels.vocab_size))
    check_codebooks(codec.codebooks, labels)
    schema = schema_to_write(labels, codebooks.hash if codebooks else "", codec.codebooks.num_codebooks > 1)
    sink = _HashingWriter(path_or_file)
    num_sequences = num_rows = num_tokens = 0
    with (
        pa.BufferedOutputStream(pa.PythonFile(sink, "w"), WRITE_BYTES) as stream,
        pa.ipc.new_file(stream, schema) as writer,
    ):
        for block in _blocks(sequences, labels):
            writer.write_batch(_encode_block(block, codec, schema))
            num_sequences += len(block)
            num_rows += sum(sequence.rows.num_rows for sequence in block)
            num_tokens += sum(len(sequence.token_ids_T) for sequence in block)
    return ShardStats(num_sequences, num_rows, num_tokens, sink.num_bytes, sink.checksum)


class _HashingWriter(io.RawIOBase):
    """Passes bytes on, counting and hashing them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.blake2b(digest_size=16)
        self.num_bytes = 0

    @property
    def checksum(self) -> str:
        return "blake2b-128:" + self._hash.hexdigest()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.num_bytes

    def write(self, data: bytes) -> int:  # type: ignore[override]
        view = memoryview(data)
        self._file.write(view)
        self._hash.update(view)
        self.num_bytes += view.nbytes
        return view.nbytes

    def close(self) -> None:
        """Leaves the file below open: it belongs to the caller."""


def _blocks(sequences: Iterable[LabeledSequence], labels: LabelSpec) -> Iterator[list[LabeledSequence]]:
    """Sequences in blocks of BLOCK_ROWS rows and BLOCK_ENTRIES entries, or of one longer sequence."""
    target_rows = max(1, min(BLOCK_ROWS, BLOCK_ENTRIES // labels.top_k))
    block: list[LabeledSequence] = []
    block_rows = block_tokens = 0
    for sequence in sequences:
        check_frame(sequence, labels)
        num_rows, num_tokens = sequence.rows.num_rows, len(sequence.token_ids_T)
        if sequence.student_prompt_ids is not None:
            num_tokens += len(sequence.student_prompt_ids)
        if num_rows * labels.top_k > MAX_BLOCK_ENTRIES or num_tokens > MAX_BLOCK_TOKENS:
            raise InvalidLabelsError(
                f"record {sequence.record_id!r} has {num_rows} label rows of up to {labels.top_k} entries "
                f"and {num_tokens} tokens; a block holds at most {MAX_BLOCK_ENTRIES} entries and "
                f"{MAX_BLOCK_TOKENS} tokens: shorten sequences or lower top_k"
            )
        full = block_rows + num_rows > target_rows or block_tokens + num_tokens > 8 * BLOCK_ROWS
        if block and full:
            yield block
            block, block_rows, block_tokens = [], 0, 0
        block.append(sequence)
        block_rows += num_rows
        block_tokens += num_tokens
    if block:
        yield block


def _encode_block(block: Sequence[LabeledSequence], codec: BlockCodec, schema: pa.Schema) -> pa.RecordBatch:
    plain = PlainColumns.of(block)
    rows = _concatenate([sequence.rows for sequence in block], codec.labels)
    loops = writing_loops_for(rows.token_ids_NK.size)
    check_block(block, rows, codec.labels, loops)
    columns = codec.encode(rows, loops)
    columns["loss_mask"] = pack([np.packbits(np.concatenate([sequence.loss_mask_N for sequence in block]))])
    columns["token_ids"] = pack(to_planes(np.concatenate([sequence.token_ids_T for sequence in block]), 3))
    if STUDENT_PROMPTS in codec.labels.extra_columns:
        columns[STUDENT_PROMPTS] = encode_student_prompts(block)
    if SEGMENTS in codec.labels.extra_columns:
        columns[SEGMENTS] = encode_segments(block)
    arrays = plain.to_arrays()
    checksum = np.uint32(plain.checksum())
    arrays.append(pa.Array.from_buffers(pa.uint32(), 1, [None, pa.py_buffer(checksum)]))
    arrays += [to_binary_array(columns[name]) for name in schema.names[len(arrays) :]]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _concatenate(parts: Sequence[LabelRows], labels: LabelSpec) -> LabelRows:
    """Label rows of a block, padded to the widest."""
    width = max([1, *(part.token_ids_NK.shape[1] for part in parts)])
    num_rows = sum(part.num_rows for part in parts)
    num_temperatures = len(labels.temperatures)
    logits_NK = np.empty((num_rows, width), np.float32)
    token_ids_NK = np.empty((num_rows, width), np.int32)
    start = 0
    for part in parts:
        span = slice(start, start + part.num_rows)
        own = part.token_ids_NK.shape[1]
        logits_NK[span, :own], logits_NK[span, own:] = part.logits_NK, -np.inf
        token_ids_NK[span, :own], token_ids_NK[span, own:] = part.token_ids_NK, 0
        start += part.num_rows
    return LabelRows(
        logits_NK=logits_NK,
        token_ids_NK=token_ids_NK,
        count_N=np.concatenate([part.count_N for part in parts]),
        logsumexp_NM=np.concatenate([part.logsumexp_NM.reshape(-1, num_temperatures) for part in parts]),
        log_tail_mass_NM=np.concatenate(
            [part.log_tail_mass_NM.reshape(-1, num_temperatures) for part in parts]
        ),
        label_logprob_N=np.concatenate([part.label_logprob_N for part in parts]),
        label_rank_N=np.concatenate([part.label_rank_N for part in parts]),
    )
