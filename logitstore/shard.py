"""Shards: Arrow IPC files whose record batches are blocks of label rows (FORMAT.md).

Shape legend: T tokens, N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from logitstore.arrow_file import ArrowFile, BatchHeader
from logitstore.block import BlockCodec
from logitstore.codebooks import CodebookSet, identity_codebook
from logitstore.errors import InvalidLabelsError, UnsupportedFormatError
from logitstore.manifest import LabelSpec
from logitstore.records import LabeledSequence, LabelRows
from logitstore.schema import (
    BLOCK_ENTRIES,
    BLOCK_ROWS,
    KNOWN_FEATURES,
    MAX_BLOCK_ENTRIES,
    MAX_BLOCK_TOKENS,
    SEQUENCE_COLUMNS,
    SHARD_FORMAT,
    SHARD_VERSION,
    ids_column,
    packed_columns,
    rank_groups,
    shard_schema,
    values_column,
)
from logitstore.sequence_columns import (
    BlockBuffers,
    BlockLayout,
    Items,
    check_items,
    checksum,
    to_arrays,
    to_binary_array,
    to_flags,
    to_items,
)
from logitstore.streams import Unpacker, damaged, pack, stored_sizes, take_planes, to_planes
from logitstore.validation import check_sequence, check_spec


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
    _check_codebooks(codec.codebooks, labels)
    schema = shard_schema(labels, codec.codebooks.num_codebooks > 1)
    schema = schema.with_metadata(_metadata(labels, codebooks))
    sink = _HashingWriter(path_or_file)
    num_sequences = num_rows = num_tokens = 0
    with pa.ipc.new_file(pa.PythonFile(sink, "w"), schema) as writer:
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


def _metadata(labels: LabelSpec, codebooks: CodebookSet | None) -> dict[str, str]:
    """Schema metadata: everything that decoding needs beside the codebooks themselves."""
    return {
        "format": SHARD_FORMAT,
        "version": str(SHARD_VERSION),
        "features": json.dumps([]),
        "vocab_size": str(labels.vocab_size),
        "top_k": str(labels.top_k),
        "temperatures": json.dumps(list(labels.temperatures)),
        "value_kind": labels.value_kind,
        "codebooks": codebooks.hash if codebooks else "",
    }


def _check_codebooks(codebooks: CodebookSet, labels: LabelSpec) -> None:
    if codebooks.vocab_size != labels.vocab_size:
        raise InvalidLabelsError(
            f"the codebooks are of a vocabulary of {codebooks.vocab_size}, the labels of "
            f"{labels.vocab_size}; train codebooks on this teacher"
        )


def _blocks(sequences: Iterable[LabeledSequence], labels: LabelSpec) -> Iterator[list[LabeledSequence]]:
    """Checked sequences in blocks of BLOCK_ROWS rows and BLOCK_ENTRIES entries, or of one longer sequence."""
    target_rows = max(1, min(BLOCK_ROWS, BLOCK_ENTRIES // labels.top_k))
    block: list[LabeledSequence] = []
    block_rows = block_tokens = 0
    for sequence in sequences:
        check_sequence(sequence, labels)
        num_rows, num_tokens = sequence.rows.num_rows, len(sequence.token_ids_T)
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
    items = to_items(block)
    columns = codec.encode(_concatenate([sequence.rows for sequence in block], codec.labels))
    columns["loss_mask"] = pack([np.packbits(np.concatenate([sequence.loss_mask_N for sequence in block]))])
    columns["token_ids"] = pack(to_planes(np.concatenate([sequence.token_ids_T for sequence in block]), 3))
    arrays = to_arrays(items)
    arrays.append(pa.Array.from_buffers(pa.uint32(), 1, [None, pa.py_buffer(np.uint32(checksum(items)))]))
    arrays += [to_binary_array(columns[name]) for name in schema.names[len(arrays) :]]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _concatenate(parts: Sequence[LabelRows], labels: LabelSpec) -> LabelRows:
    """Label rows of a block, padded to the widest."""
    width = max([1, *(part.token_ids_NK.shape[1] for part in parts)])
    num_rows = sum(part.num_rows for part in parts)
    num_temperatures = len(labels.temperatures)
    logits_NK = np.full((num_rows, width), -np.inf, np.float32)
    token_ids_NK = np.zeros((num_rows, width), np.int32)
    start = 0
    for part in parts:
        span = slice(start, start + part.num_rows)
        logits_NK[span, : part.logits_NK.shape[1]] = part.logits_NK
        token_ids_NK[span, : part.token_ids_NK.shape[1]] = part.token_ids_NK
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


class ShardReader:
    """Reads the blocks of one shard, fetching only the bytes that a read needs.

    Usable as a context manager. The file is treated as hostile: anything that the format does not allow
    raises CorruptShardError or UnsupportedFormatError, and sizes are bounded before decompression.

    `codebooks` may be the store's set even for a shard that was written without one.
    """

    def __init__(
        self,
        file: BinaryIO | pa.NativeFile,
        labels: LabelSpec,
        codebooks: CodebookSet | None,
        *,
        verify_checksums: bool = True,
    ) -> None:
        check_spec(labels)
        self._file = file
        self._labels = labels
        self._verify = verify_checksums
        self._arrow = ArrowFile(file)
        books = _check_schema(self._arrow.schema(), labels, codebooks)
        self._codec = BlockCodec(labels, books)
        self._layout = BlockLayout.of(labels, books.num_codebooks > 1)
        self._packed = packed_columns(labels, books.num_codebooks > 1)
        self._headers: dict[int, BatchHeader] = {}
        self.num_blocks: int = len(self._arrow.blocks)

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file that the reader was given."""
        self._file.close()

    @cached_property
    def block_starts(self) -> list[int]:
        """Index of the first sequence of each block."""
        return self._cumulative[:-1]

    @cached_property
    def num_sequences(self) -> int:
        return self._cumulative[-1]

    @cached_property
    def _cumulative(self) -> list[int]:
        node = self._layout.first_node["record_id"] + 1
        starts = [0]
        for index in range(self.num_blocks):
            lengths = self._header(index).lengths
            starts.append(starts[-1] + (lengths[node] if node < len(lengths) else 0))
        return starts

    def record_ids(self, index: int) -> list[str]:
        """Record ids of the sequences of one block; reads only that column."""
        return self._buffers(index, ["record_id"]).items("record_id")

    def read_block(self, index: int, *, top_k: int | None = None) -> list[LabeledSequence]:
        """The sequences of one block, with the first `top_k` entries of their rows.

        Arrays of the sequences are views of the block's. For a prefix the tail masses are those of the
        prefix (FORMAT.md says how exact), and the rank groups beyond it are not fetched.
        """
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        top_k = self._labels.top_k if top_k is None else min(top_k, self._labels.top_k)
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1")
        skipped = {
            column(group)
            for group in rank_groups(self._labels.top_k)
            if group[0] >= top_k
            for column in (values_column, ids_column)
        }
        wanted = [name for name in self._packed if name not in skipped]
        buffers = self._buffers(index, wanted)
        items = {name: buffers.items(name) for name, _ in SEQUENCE_COLUMNS}
        if self._verify and checksum(items) != buffers.checksum():
            raise damaged(f"the sequence columns of block {index} do not match their CRC-32")
        check_items(items, index, self._labels)
        return self._decode(items, {name: buffers.packed(name) for name in wanted}, top_k)

    def iter_sequences(self, *, top_k: int | None = None) -> Iterator[LabeledSequence]:
        """All sequences of the shard, block after block."""
        for index in range(self.num_blocks):
            yield from self.read_block(index, top_k=top_k)

    def check_block(self, index: int) -> None:
        """Reads a block and checks every rule of the format, distinct ids and masses included.

        Slower than reading; `verify` does it. Raises CorruptShardError.
        """
        for sequence in self.read_block(index):
            try:
                check_sequence(sequence, self._labels)
            except InvalidLabelsError as error:
                raise damaged(f"block {index}: {error}") from error

    def column_bytes(self) -> dict[str, int]:
        """Stored bytes by column over all blocks; normalisers and tails also by temperature.

        Keys are column names, `normalizers[T]` and `tails[T]`, and "framing" for everything else in the
        file; they add up to the file's size.
        """
        sizes: dict[str, int] = {}
        for index in range(self.num_blocks):
            buffers = self._buffers(index, self._packed)
            for name, _ in SEQUENCE_COLUMNS:
                sizes[name] = sizes.get(name, 0) + buffers.plain_bytes(name)
            for name in self._packed:
                for key, size in self._stream_bytes(name, buffers.packed(name)).items():
                    sizes[key] = sizes.get(key, 0) + size
        sizes["framing"] = self._arrow.num_bytes - sum(sizes.values())
        return sizes

    def _stream_bytes(self, name: str, packed: memoryview) -> dict[str, int]:
        if name not in ("normalizers", "tails"):
            return {name: len(packed)}
        num_streams = 3 * len(self._labels.temperatures)
        stored = [size for _, size in stored_sizes(packed, num_streams, name)]
        return {
            f"{name}[{temperature:g}]": sum(stored[3 * place : 3 * place + 3]) + 24
            for place, temperature in enumerate(self._labels.temperatures)
        }

    def _header(self, index: int) -> BatchHeader:
        if index not in self._headers:
            self._headers[index] = self._arrow.batch_header(index)
        return self._headers[index]

    def _buffers(self, index: int, names: Sequence[str]) -> BlockBuffers:
        return BlockBuffers(self._arrow, self._header(index), self._layout, names)

    def _decode(self, items: Items, columns: dict[str, memoryview], top_k: int) -> list[LabeledSequence]:
        num_rows, num_tokens = sum(items["num_rows"]), sum(items["num_tokens"])
        mask = Unpacker(columns["loss_mask"], 1, "loss_mask", verify_checksum=self._verify)
        mask_N = np.unpackbits(mask.take((num_rows + 7) // 8), count=num_rows).view(bool)
        tokens = Unpacker(columns["token_ids"], 3, "token_ids", verify_checksum=self._verify)
        token_ids_T = take_planes(tokens, num_tokens, 3).astype(np.int32)
        rows = self._codec.decode(columns, num_rows, top_k, verify_checksums=self._verify)
        sequences: list[LabeledSequence] = []
        row = token = 0
        for values in zip(*(items[name] for name, _ in SEQUENCE_COLUMNS), strict=True):
            record_id, sample_index, tokens_here, prompt_length, label_start, rows_here, finish, flags = (
                values
            )
            span = slice(row, row + rows_here)
            sequences.append(
                LabeledSequence(
                    record_id=record_id,
                    sample_index=sample_index,
                    token_ids_T=token_ids_T[token : token + tokens_here],
                    prompt_length=prompt_length,
                    label_start=label_start,
                    rows=_slice_rows(rows, span),
                    loss_mask_N=mask_N[span],
                    finish_reason=finish,
                    flags=to_flags(flags),
                )
            )
            row += rows_here
            token += tokens_here
        return sequences


def _slice_rows(rows: LabelRows, span: slice) -> LabelRows:
    return LabelRows(
        rows.logits_NK[span],
        rows.token_ids_NK[span],
        rows.count_N[span],
        rows.logsumexp_NM[span],
        rows.log_tail_mass_NM[span],
        rows.label_logprob_N[span],
        rows.label_rank_N[span],
    )


def _check_schema(schema: pa.Schema, labels: LabelSpec, codebooks: CodebookSet | None) -> CodebookSet:
    """The codebooks that the shard was written with, after checking that this reader and store fit it."""
    try:
        metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        features = json.loads(metadata.get("features", "[]"))
    except (ValueError, RecursionError) as error:
        raise damaged(f"the schema's metadata cannot be read ({error})") from error
    if metadata.get("format") != SHARD_FORMAT or metadata.get("version") != str(SHARD_VERSION):
        raise UnsupportedFormatError(
            f"the file says format {metadata.get('format')!r} version {metadata.get('version')!r}; this "
            f"reader knows {SHARD_FORMAT!r} version {SHARD_VERSION}: update logitstore"
        )
    unknown = [feature for feature in features if feature not in KNOWN_FEATURES]
    if unknown:
        raise UnsupportedFormatError(f"the shard needs features {unknown}; update logitstore")
    if metadata.get("codebooks") == "":
        codebooks = None
    for name, value in _metadata(labels, codebooks).items():
        if metadata.get(name) != value:
            raise damaged(
                f"the shard says {name} {metadata.get(name)!r}, its store {value!r}: it is of another"
                " store, or damaged"
            )
    books = codebooks or identity_codebook(labels.vocab_size)
    _check_codebooks(books, labels)
    if not schema.equals(shard_schema(labels, books.num_codebooks > 1)):
        raise damaged("the shard's columns are not those of its format")
    return books
