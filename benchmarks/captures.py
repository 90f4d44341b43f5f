"""Labeled sequences of a capture file, and the plain layouts that the format is measured against.

Shape legend: N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zstandard

from logitstore.codebooks import CodebookSet
from logitstore.exchange.npz import read_npz
from logitstore.manifest import LabelSpec
from logitstore.records import LabeledSequence
from logitstore.shard import ShardReader, write_shard

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "capture_sample.npz"


def load_sequences(path: Path, top_k: int) -> tuple[LabelSpec, list[LabeledSequence]]:
    """The capture's sequences cut to `top_k` entries, with the tails that belong to them."""
    source = read_npz(path, top_k=top_k)
    return source.labels, list(source.sequences)


def encode(labels: LabelSpec, sequences: Sequence[LabeledSequence], books: CodebookSet | None) -> bytes:
    """One shard."""
    buffer = io.BytesIO()
    write_shard(buffer, sequences, labels, books)
    return buffer.getvalue()


def needed_bytes(data: bytes, labels: LabelSpec, books: CodebookSet | None) -> int:
    """Bytes that ids, values and the T=1 normaliser need: all but tokens, tails, labels and T > 1."""
    sizes = ShardReader(io.BytesIO(data), labels, books).column_bytes()
    beside = [key for key in sizes if key.startswith(("tails", "normalizers")) and key != "normalizers[1]"]
    return len(data) - sum(sizes[key] for key in (*beside, "label", "token_ids", "loss_mask"))


def entries(sequences: Sequence[LabeledSequence]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids int32 [N, K], gaps to the top float16 [N, K], logsumexp at T=1 float32 [N]."""
    logits_NK = np.concatenate([sequence.rows.logits_NK for sequence in sequences])
    ids_NK = np.concatenate([sequence.rows.token_ids_NK for sequence in sequences])
    logsumexp_N = np.concatenate([sequence.rows.logsumexp_NM[:, 0] for sequence in sequences])
    return ids_NK, (logits_NK[:, :1] - logits_NK).astype(np.float16), logsumexp_N


def to_parquet(sequences: Sequence[LabeledSequence]) -> bytes:
    """Plain Parquet: zstd, list<int32> and list<float16> columns, and the normaliser."""
    ids_NK, gaps_NK, logsumexp_N = entries(sequences)
    offsets = pa.array(np.arange(ids_NK.shape[0] + 1, dtype=np.int32) * ids_NK.shape[1])
    table = pa.table(
        {
            "ids": pa.ListArray.from_arrays(offsets, pa.array(ids_NK.reshape(-1))),
            "gaps": pa.ListArray.from_arrays(offsets, pa.array(gaps_NK.reshape(-1))),
            "logsumexp": pa.array(logsumexp_N),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def from_parquet(data: bytes, top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of `to_parquet`, read on one thread."""
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    flat = [table[name].combine_chunks().values for name in ("ids", "gaps")]
    ids, gaps = (values.to_numpy(zero_copy_only=False).reshape(-1, top_k) for values in flat)
    return ids, gaps, table["logsumexp"].to_numpy()


def layout_bytes(sequences: Sequence[LabeledSequence]) -> dict[str, int]:
    """Sizes of the same labels in layouts that people use."""
    ids_NK, gaps_NK, logsumexp_N = entries(sequences)
    lines = (
        json.dumps({"ids": ids.tolist(), "gaps": [round(float(gap), 4) for gap in gaps]})
        for ids, gaps in zip(ids_NK, gaps_NK, strict=True)
    )
    saved = io.BytesIO()
    tensors = {"ids": torch.from_numpy(ids_NK), "gaps": torch.from_numpy(gaps_NK)}
    torch.save({**tensors, "logsumexp": torch.from_numpy(logsumexp_N)}, saved)
    return {
        "plain Parquet, zstd": len(to_parquet(sequences)),
        "JSONL, 4 decimals": sum(len(line) + 1 for line in lines),
        "raw numpy, i32 + f16": ids_NK.nbytes + gaps_NK.nbytes + logsumexp_N.nbytes,
        "torch.save, zstd": len(zstandard.ZstdCompressor(level=3).compress(saved.getvalue())),
    }
