"""Reading shards: Arrow IPC files whose record batches are blocks of label rows (FORMAT.md).

Shape legend: T tokens, N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import compress
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa

from logitstore.codec.block import BlockCodec
from logitstore.codec.codebooks import CodebookSet
from logitstore.codec.loops import loops_for
from logitstore.codec.streams import Unpacker, damaged, stored_sizes, take_planes
from logitstore.errors import InvalidLabelsError, UnsafeObjectError
from logitstore.manifest.fields import SEGMENTS, STUDENT_PROMPTS, LabelSpec
from logitstore.records import LabeledSequence, Segment
from logitstore.rows.temperature import refuse_prefix
from logitstore.shard.arrow_file import ArrowFile, BatchHeader
from logitstore.shard.assembling import BlockSequences
from logitstore.shard.living import LivingSequences
from logitstore.shard.metadata import check_schema
from logitstore.shard.schema import (
    MAX_BLOCK_ENTRIES,
    SEQUENCE_COLUMNS,
    ids_column,
    packed_columns,
    rank_groups,
    values_column,
)
from logitstore.shard.segments import decode_segments
from logitstore.shard.sequence_columns import BlockBuffers, BlockLayout, PlainColumns
from logitstore.shard.student_prompts import decode_student_prompts
from logitstore.shard.validation import check_sequence, check_spec


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
        max_block_entries: int = MAX_BLOCK_ENTRIES,
        deleted: np.ndarray | None = None,
    ) -> None:
        """`max_block_entries`, of rows times K, bounds the memory that decoding a block takes.

        `deleted` are the places of sequences that were taken down, ascending: the reader has no such
        sequences, and counts without them.
        """
        check_spec(labels)
        self._max_block_entries = max_block_entries
        self._file = file
        self._labels = labels
        self._verify = verify_checksums
        self._arrow = ArrowFile(file)
        books = check_schema(self._arrow.schema(), labels, codebooks)
        self._codec = BlockCodec(labels, books)
        self._layout = BlockLayout.of(labels, books.num_codebooks > 1)
        self._packed = packed_columns(labels, books.num_codebooks > 1)
        self._headers: dict[int, BatchHeader] = {}
        self._deleted = np.zeros(0, np.int64) if deleted is None else deleted
        self.num_blocks: int = len(self._arrow.blocks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file that the reader was given."""
        self._file.close()

    @cached_property
    def block_starts(self) -> list[int]:
        """Index of the first sequence of each block."""
        return self._living.before[:-1]

    @cached_property
    def num_sequences(self) -> int:
        return self._living.before[-1]

    @cached_property
    def _living(self) -> LivingSequences:
        node = self._layout.first_node["record_id"] + 1
        lengths = (self._header(index).lengths for index in range(self.num_blocks))
        return LivingSequences.of([one[node] if node < len(one) else 0 for one in lengths], self._deleted)

    def _kept(self, index: int) -> np.ndarray | None:
        """bool, of the sequences of a block: which are not deleted; None where none is."""
        return self._living.kept(index) if len(self._deleted) else None  # which reads the head of every block

    def plain_columns(self, index: int) -> PlainColumns:
        """What one block says of its sequences, one item each: ids, lengths, flags. No labels are fetched."""
        plain = self._checked_plain(index, self._buffers(index, ["sequences_checksum"]))
        kept = self._kept(index)
        return plain if kept is None else plain.filter(kept)

    def read_block(self, index: int, *, top_k: int | None = None) -> list[LabeledSequence]:
        """The sequences of one block, as `read_columns` has them; their arrays are views of the block's."""
        sequences = self._read(index, top_k).sequences()
        kept = self._kept(index)
        return sequences if kept is None else list(compress(sequences, kept))

    def read_columns(self, index: int, *, top_k: int | None = None) -> BlockSequences:
        """The sequences of one block as whole columns, with the first `top_k` entries of their rows.

        For a prefix the tail masses are those of the prefix (FORMAT.md says how exact), and the rank groups
        beyond it are not fetched.
        """
        block = self._read(index, top_k)
        kept = self._kept(index)
        return block if kept is None else block.filter(kept)

    def _read(self, index: int, top_k: int | None) -> BlockSequences:
        """A block with its deleted sequences."""
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        top_k = self._labels.top_k if top_k is None else min(top_k, self._labels.top_k)
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1")
        refuse_prefix(self._labels, top_k)
        skipped = {
            column(group)
            for group in rank_groups(self._labels.top_k)
            if group[0] >= top_k
            for column in (values_column, ids_column)
        }
        wanted = [name for name in self._packed if name not in skipped]
        buffers = self._buffers(index, wanted)
        plain = self._checked_plain(index, buffers)
        self._check_room(index, int(plain.num_rows.sum()))
        return self._decode(plain, {name: buffers.packed(name) for name in wanted}, top_k)

    def _check_room(self, index: int, num_rows: int) -> None:
        entries = num_rows * self._labels.top_k
        if entries > self._max_block_entries:
            raise UnsafeObjectError(
                f"block {index} has {num_rows:,} rows of {self._labels.top_k} entries, {entries:,} in all; "
                f"at most {self._max_block_entries:,} are decoded at once here, some 60 bytes each. "
                "It is of one very long sequence, or hostile; allow it with "
                f"--max-block-entries {entries}"
            )

    def student_shifts(self, index: int) -> np.ndarray:
        """int64, of each sequence of a block: by how many tokens its student's prompt is the longer one.

        Zeros in a store without prompts of the student's; else one column more is fetched than for
        `plain_columns`.
        """
        if STUDENT_PROMPTS not in self._labels.extra_columns:
            return np.zeros(len(self.plain_columns(index).record_id), np.int64)
        buffers = self._buffers(index, ["sequences_checksum", STUDENT_PROMPTS])
        plain = self._checked_plain(index, buffers)
        columns = {STUDENT_PROMPTS: buffers.packed(STUDENT_PROMPTS)}
        pairs = zip(self._student_prompts(columns, plain), plain.prompt_length.tolist(), strict=True)
        shifts = np.array([0 if ids is None else len(ids) - length for ids, length in pairs], np.int64)
        kept = self._kept(index)
        return shifts if kept is None else shifts[kept]

    def _student_prompts(
        self, columns: dict[str, memoryview], plain: PlainColumns
    ) -> Sequence[np.ndarray | None]:
        if STUDENT_PROMPTS not in columns:
            return [None] * len(plain.record_id)
        found = decode_student_prompts(
            columns[STUDENT_PROMPTS], len(plain.record_id), verify_checksum=self._verify
        )
        own = np.array([prompt is not None for prompt in found], bool)
        if any(prompt is not None and not len(prompt) for prompt in found) or bool(
            (own & (plain.label_start < np.maximum(plain.prompt_length, 1))).any()
        ):
            raise damaged("a student's prompt is empty, or label rows lie in the prompt that it stands for")
        return found

    def segments(self, index: int) -> Sequence[np.ndarray | None]:
        """uint8 [T] of each sequence of a block, None where not known: one column is fetched, no labels."""
        if SEGMENTS not in self._labels.extra_columns:
            return [None] * len(self.plain_columns(index).record_id)
        buffers = self._buffers(index, ["sequences_checksum", SEGMENTS])
        found = self._segments({SEGMENTS: buffers.packed(SEGMENTS)}, self._checked_plain(index, buffers))
        kept = self._kept(index)
        return found if kept is None else list(compress(found, kept))

    def token_ids(self, index: int) -> list[np.ndarray]:
        """int32 [T] of each sequence of a block: one column is fetched, no labels."""
        buffers = self._buffers(index, ["sequences_checksum", "token_ids"])
        plain = self._checked_plain(index, buffers)
        tokens = Unpacker(buffers.packed("token_ids"), 3, "token_ids", verify_checksum=self._verify)
        num_tokens = int(plain.num_tokens.sum())
        ids_T = take_planes(tokens, num_tokens, loops_for(num_tokens)).view(np.int32)
        found = np.split(ids_T, np.cumsum(plain.num_tokens)[:-1])
        kept = self._kept(index)
        return found if kept is None else list(compress(found, kept))

    def _segments(self, columns: dict[str, memoryview], plain: PlainColumns) -> Sequence[np.ndarray | None]:
        if SEGMENTS not in columns:
            return [None] * len(plain.record_id)
        found = decode_segments(columns[SEGMENTS], plain.num_tokens, verify_checksum=self._verify)
        for segments_T, length in zip(found, plain.prompt_length.tolist(), strict=True):
            if segments_T is not None and bool((segments_T[:length] != Segment.CONTEXT).any()):
                raise damaged("a token of a prompt has another segment than context")
        return found

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

    def _checked_plain(self, index: int, buffers: BlockBuffers) -> PlainColumns:
        plain = buffers.plain()
        if self._verify and plain.checksum() != buffers.checksum():
            raise damaged(f"the sequence columns of block {index} do not match their CRC-32")
        plain.check(index, self._labels)
        return plain

    def _header(self, index: int) -> BatchHeader:
        if index not in self._headers:
            self._headers[index] = self._arrow.batch_header(index)
        return self._headers[index]

    def _buffers(self, index: int, names: Sequence[str]) -> BlockBuffers:
        return BlockBuffers(self._arrow, self._header(index), self._layout, names)

    def _decode(self, plain: PlainColumns, columns: dict[str, memoryview], top_k: int) -> BlockSequences:
        num_rows, num_tokens = int(plain.num_rows.sum()), int(plain.num_tokens.sum())
        mask = Unpacker(columns["loss_mask"], 1, "loss_mask", verify_checksum=self._verify)
        mask_N = np.unpackbits(mask.take((num_rows + 7) // 8), count=num_rows).view(bool)
        tokens = Unpacker(columns["token_ids"], 3, "token_ids", verify_checksum=self._verify)
        loops = loops_for(num_rows * top_k)
        token_ids_T = take_planes(tokens, num_tokens, loops).view(np.int32)
        rows = self._codec.decode(columns, num_rows, top_k, loops, verify_checksums=self._verify)
        prompts, segments = self._student_prompts(columns, plain), self._segments(columns, plain)
        return BlockSequences(plain, token_ids_T, rows, mask_N, prompts, segments)
