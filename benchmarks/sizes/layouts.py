"""The layouts that the format is measured against: bytes, and what a reader gets back from them.

All hold the same K ids and values per row. The plain ones keep what their users keep: fp16 values, and one
normaliser or log-probabilities at T=1. So they know the tail at T=1 only, by subtraction, and at another
temperature a reader can but renormalise the K entries.

Shape legend: N label rows, K stored entries.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zstandard

from logitstore.codec.codebooks import CodebookSet
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence
from logitstore.shard.reader import ShardReader
from logitstore.shard.writer import write_shard

MICROBATCH_ROWS = 4096
"""Rows of a member of Megatron-LM's tar files, where its layout is smallest."""


@dataclass(frozen=True, slots=True)
class Entries:
    """The rows of some sequences as plain arrays; every row has K entries."""

    ids_NK: np.ndarray
    """int32."""
    gaps_NK: np.ndarray
    """float16, how far each logit lies below the row's highest."""
    normaliser_N: np.ndarray
    """float32, logsumexp at T=1 less the highest logit: minus the highest log-probability."""
    logprobs_NK: np.ndarray
    """float32, at T=1, not rounded."""

    @classmethod
    def of(cls, sequences: Sequence[LabeledSequence]) -> Entries:
        logits_NK = np.concatenate([sequence.rows.logits_NK for sequence in sequences])
        logsumexp_N = np.concatenate([sequence.rows.logsumexp_NM[:, 0] for sequence in sequences])
        return cls(
            ids_NK=np.concatenate([sequence.rows.token_ids_NK for sequence in sequences]),
            gaps_NK=(logits_NK[:, :1] - logits_NK).astype(np.float16),
            normaliser_N=logsumexp_N - logits_NK[:, 0],
            logprobs_NK=logits_NK - logsumexp_N[:, None],
        )


@dataclass(frozen=True, slots=True)
class PlainValues:
    """How layouts keep the values of a row, and so what their readers get."""

    name: str
    slug: str
    """Its part in the names of figures."""
    logprobs: Callable[[Entries], np.ndarray]
    """float32 [N, K], the log-probabilities at T=1 that a reader gets."""


@dataclass(frozen=True, slots=True)
class PlainLayout:
    """A way to keep labels without this project."""

    name: str
    slug: str
    """Its part in the names of figures."""
    num_bytes: Callable[[Entries], int]


def encode_shard(
    labels: LabelSpec, sequences: Sequence[LabeledSequence], codebooks: CodebookSet | None
) -> bytes:
    """One shard of this format."""
    buffer = io.BytesIO()
    write_shard(buffer, sequences, labels, codebooks)
    return buffer.getvalue()


def column_bytes(data: bytes, labels: LabelSpec, codebooks: CodebookSet | None) -> dict[str, int]:
    """Bytes of a shard by what they hold, in a fixed order; they add up to the file."""
    sizes = ShardReader(io.BytesIO(data), labels, codebooks).column_bytes()
    parts: dict[str, int] = dict.fromkeys(COLUMN_PARTS, 0)
    for column, size in sizes.items():
        parts[_part_of(column)] += size
    return parts


COLUMN_PARTS = ("ids", "values", "normaliser, T=1", "other temperatures and tails", "tokens, labels, framing")
NEEDED_PARTS = COLUMN_PARTS[:3]
"""What the plain layouts hold too."""


def _part_of(column: str) -> str:
    if column.startswith("ids_") or column == "codebook_choice":
        return "ids"
    if column.startswith("values_") or column == "top_logits":
        return "values"
    if column == "normalizers[1]":
        return "normaliser, T=1"
    return (
        "other temperatures and tails"
        if column.startswith(("normalizers", "tails"))
        else "tokens, labels, framing"
    )


def to_parquet(entries: Entries) -> bytes:
    """Plain Parquet: zstd, list<int32> and list<float16> columns, and the normaliser."""
    return _parquet(entries, compression="zstd")


def to_tuned_parquet(entries: Entries) -> bytes:
    """The same with the options that make it smallest here: every byte of a number in a stream of its own, no
    dictionaries, more work for zstd. Whoever writes plain Parquet does not set them."""
    return _parquet(
        entries,
        compression="zstd",
        compression_level=9,
        use_dictionary=False,
        use_byte_stream_split=["ids.list.element", "gaps.list.element"],
    )


def _parquet(entries: Entries, **options: Any) -> bytes:
    offsets = pa.array(np.arange(len(entries.ids_NK) + 1, dtype=np.int32) * entries.ids_NK.shape[1])
    table = pa.table(
        {
            "ids": pa.ListArray.from_arrays(offsets, pa.array(entries.ids_NK.reshape(-1))),
            "gaps": pa.ListArray.from_arrays(offsets, pa.array(entries.gaps_NK.reshape(-1))),
            "normaliser": pa.array(entries.normaliser_N),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def to_fixed_parquet(entries: Entries) -> bytes:
    """Parquet tuned for reading: LZ4, and a row's numbers are one value of fixed size, without the levels of
    lists. A reader must know what these bytes are, and they are more."""
    columns: dict[str, pa.Array] = {"normaliser": pa.array(entries.normaliser_N)}
    for name, values_NK in (("ids", entries.ids_NK), ("gaps", entries.gaps_NK)):
        width = values_NK.shape[1] * values_NK.itemsize
        data = pa.py_buffer(np.ascontiguousarray(values_NK))
        columns[name] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values_NK), [None, data])
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="lz4", use_dictionary=False)
    return buffer.getvalue()


def from_fixed_parquet(data: bytes, entries: Entries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, gaps and normaliser as `entries` has them, read on one thread."""
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    ids_NK, gaps_NK = (
        np.frombuffer(table[name].combine_chunks().buffers()[1], values_NK.dtype).reshape(values_NK.shape)
        for name, values_NK in (("ids", entries.ids_NK), ("gaps", entries.gaps_NK))
    )
    return ids_NK, gaps_NK, table["normaliser"].to_numpy()


def from_parquet(data: bytes, top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, gaps and normaliser of either Parquet, read on one thread."""
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    flat = [table[name].combine_chunks().values for name in ("ids", "gaps")]
    ids, gaps = (values.to_numpy(zero_copy_only=False).reshape(-1, top_k) for values in flat)
    return ids, gaps, table["normaliser"].to_numpy()


def _json_lines_bytes(entries: Entries) -> int:
    return sum(
        len(json.dumps({"ids": ids.tolist(), "logprobs": [round(float(value), 4) for value in values]})) + 1
        for ids, values in zip(entries.ids_NK, entries.logprobs_NK, strict=True)
    )


def _raw_bytes(entries: Entries) -> int:
    return entries.ids_NK.nbytes + entries.gaps_NK.nbytes + entries.normaliser_N.nbytes


def _torch_bytes(entries: Entries) -> int:
    """One torch.save of everything, zstd level 3."""
    tensors = {"ids": entries.ids_NK, "gaps": entries.gaps_NK, "normaliser": entries.normaliser_N}
    return _saved_bytes({name: torch.from_numpy(array) for name, array in tensors.items()})


def _megatron_bytes(entries: Entries) -> int:
    """Megatron-LM's cached logits: by microbatch fp16 logprobs, the 16 low bits of the ids, and the 17th."""
    num_bytes = 0
    for start in range(0, len(entries.ids_NK), MICROBATCH_ROWS):
        part = slice(start, start + MICROBATCH_ROWS)
        ids_NK = entries.ids_NK[part]
        num_bytes += _saved_bytes(
            {
                "values": [torch.from_numpy(entries.logprobs_NK[part].astype(np.float16))],
                "indices_low": [torch.from_numpy((ids_NK & 0xFFFF).astype(np.uint16))],
                "bit_17": [torch.from_numpy(ids_NK >= 1 << 16)],
            }
        )
    return num_bytes


def _saved_bytes(tensors: object) -> int:
    saved = io.BytesIO()
    torch.save(tensors, saved)
    return len(zstandard.ZstdCompressor(level=3).compress(saved.getvalue()))


GAPS = PlainValues(
    "Parquet, numpy, torch.save: fp16 gaps and a normaliser",
    "gaps",
    lambda entries: -entries.gaps_NK.astype(np.float32) - entries.normaliser_N[:, None],
)
PLAIN_VALUES = (
    GAPS,
    PlainValues("JSONL: logprobs of 4 decimals", "decimals", lambda entries: entries.logprobs_NK.round(4)),
    PlainValues(
        "Megatron-LM's: fp16 logprobs",
        "logprobs",
        lambda entries: entries.logprobs_NK.astype(np.float16).astype(np.float32),
    ),
)
PLAIN_LAYOUTS = (
    PlainLayout("plain Parquet, zstd", "parquet", lambda entries: len(to_parquet(entries))),
    PlainLayout("tuned Parquet, zstd", "tuned_parquet", lambda entries: len(to_tuned_parquet(entries))),
    PlainLayout("JSONL, 4 decimals", "jsonl", _json_lines_bytes),
    PlainLayout("raw numpy, i32 + f16", "numpy", _raw_bytes),
    PlainLayout("torch.save, zstd", "torch", _torch_bytes),
    PlainLayout("Megatron-LM's, zstd", "megatron", _megatron_bytes),
)
