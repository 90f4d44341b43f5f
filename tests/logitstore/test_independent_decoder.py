"""A second reader, written from FORMAT.md alone with numpy and zstandard, agrees bit for bit.

It shares no code with `logitstore` and favours plainness over speed.
Shape legend: N label rows, K stored entries, M temperatures.
"""

import io
import json
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard

from logitstore.codec.codebook_training import train_codebooks
from logitstore.rows.temperature import truncate
from logitstore.shard.reader import ShardReader
from logitstore.shard.writer import write_shard
from tests.logitstore.capture import load_capture


def streams_of(packed: bytes, count: int) -> list[np.ndarray]:
    assert zlib.crc32(packed[:-4]) == struct.unpack("<I", packed[-4:])[0]
    sizes = struct.unpack(f"<{2 * count}I", packed[: 8 * count])
    at, streams = 8 * count, []
    for raw, stored in zip(sizes[::2], sizes[1::2], strict=True):
        data = packed[at : at + stored]
        at += stored
        if raw != stored:
            assert zstandard.frame_content_size(data) == raw
            data = zstandard.ZstdDecompressor().decompress(data)
        streams.append(np.frombuffer(data, np.uint8))
    assert at == len(packed) - 4
    return streams


def planes(streams: list[np.ndarray]) -> np.ndarray:
    return np.sum([stream.astype(np.uint32) << (8 * place) for place, stream in enumerate(streams)], axis=0)


def float24(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.uint32) << 7).view(np.float32)


def integers(streams: list[np.ndarray]) -> np.ndarray:
    threshold, classes, low, wide = streams
    (t,) = threshold.astype(int)
    values = classes.astype(np.int64)
    is_low, is_wide = (values >= t) & (values < 224), values >= 224
    values[is_low] = t + 256 * (values[is_low] - t) + low
    values[is_wide] = t + 256 * (224 - t) + 65536 * (values[is_wide] - 224) + wide.view("<u2")
    return values


def read_codebooks(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Global order and heads."""
    magic = b"logitstore-codebooks-1\n"
    assert data.startswith(magic)
    vocab, _, books, head = struct.unpack_from("<4I", data, len(magic))
    streams = streams_of(data[len(magic) + 16 :], 8)

    def unband(steps: np.ndarray, first: int) -> list[int]:
        values: list[int] = []
        for index, step in enumerate(steps.tolist()):
            position = first + index
            starts = index == 0 or position < 128 or (position - 128) % 256 == 0
            values.append(step if starts else values[-1] + 1 + step)
        return values

    order = unband(integers(streams[:4]), head)
    order += sorted(set(range(vocab)) - set(order))
    ranks = integers(streams[4:]).reshape(books, head)
    heads = [[order[rank] for rank in unband(row, 0)] for row in ranks]
    return np.array(order), np.array(heads).reshape(books, head)


def read_block(
    batch: pa.RecordBatch, metadata: dict[str, Any], order: np.ndarray, heads: np.ndarray
) -> dict[str, Any]:
    num_rows = sum(batch.column("num_rows")[0].as_py())
    top_k, temperatures = int(metadata["top_k"]), json.loads(metadata["temperatures"])
    gap = metadata["value_kind"] == "gap_f16"

    def column(name: str, count: int) -> list[np.ndarray]:
        return streams_of(batch.column(name)[0].as_py(), count)

    flag, *count_planes = column("counts", 4)
    count_N = np.full(num_rows, top_k) if flag[0] else planes(count_planes).astype(int)
    choice_N = column("codebook_choice", 1)[0] if len(heads) > 1 else np.zeros(num_rows, int)
    pattern_NK = np.zeros((num_rows, top_k), np.int64)
    position_NK = np.zeros((num_rows, top_k), np.int64)
    bounds = [0, 8]
    while bounds[-1] < top_k:
        bounds.append(2 * bounds[-1])
    for start, end in zip(bounds, [*bounds[1:-1], top_k], strict=False):
        steps = iter(integers(column(f"values_{start}_{end}", 4)))
        codes = iter(integers(column(f"ids_{start}_{end}", 4)))
        for rank in range(start, end):
            for row in np.flatnonzero(count_N > rank):
                step, code = next(steps), next(codes)
                tied = not gap and rank > 0 and step == 0
                before = (pattern_NK[row, rank - 1], position_NK[row, rank - 1]) if rank else (0, 0)
                pattern_NK[row, rank] = before[0] + step
                position_NK[row, rank] = before[1] + 1 + code if tied else code
    table = [np.concatenate([head, order]) for head in heads]
    ids_NK = np.stack([table[choice][row] for choice, row in zip(choice_N, position_NK, strict=True)])
    if gap:
        top_N = planes(column("top_logits", 4)).astype(np.uint32).view(np.float32)
        logits_NK = top_N[:, None] - pattern_NK.astype(np.uint16).view(np.float16).astype(np.float32)
    else:
        bits = np.where(pattern_NK < 0x8000, 0x7FFF - pattern_NK, pattern_NK).astype(np.uint16)
        logits_NK = bits.view(np.float16).astype(np.float32)
    real = np.arange(top_k) < count_N[:, None]
    lse, tail = column("normalizers", 3 * len(temperatures)), column("tails", 3 * len(temperatures))
    tails = [planes(tail[3 * m : 3 * m + 3]) for m in range(len(temperatures))]
    source, *explicit = column("label", 7)
    rank_N, logprob_N = source.astype(np.int32), np.full(num_rows, np.nan, np.float32)
    rank_N[source == 255], logprob_N[source == 255] = planes(explicit[:3]), -float24(planes(explicit[3:]))
    logsumexp = [
        logits_NK[:, 0] / np.float32(temperature) + float24(planes(lse[3 * m : 3 * m + 3]))
        for m, temperature in enumerate(temperatures)
    ]
    for row in np.flatnonzero((source > 0) & (source < 255)):
        logprob_N[row] = min(np.float32(0), logits_NK[row, rank_N[row] - 1] - logsumexp[0][row])
    return {
        "logits_NK": np.where(real, logits_NK, -np.inf).astype(np.float32),
        "token_ids_NK": np.where(real, ids_NK, 0).astype(np.int32),
        "count_N": count_N.astype(np.int32),
        "logsumexp_NM": np.stack(logsumexp, axis=1),
        "log_tail_mass_NM": np.stack(
            [np.where(t == 0xFFFFFF, -np.inf, t * np.float32(-1 / 1024)) for t in tails], axis=1
        ).astype(np.float32),
        "label_logprob_N": logprob_N,
        "label_rank_N": rank_N,
    }


@pytest.mark.parametrize("value_kind", ["gap_f16", "logit_f16"])
@pytest.mark.parametrize("num_codebooks", [0, 1, 8])
def test_it_agrees_bit_for_bit(value_kind, num_codebooks):
    spec, sequences = load_capture(20, value_kind)
    cut = truncate(sequences[1].rows, spec, 11)  # a ragged sequence
    sequences = [sequences[0], replace(sequences[1], rows=cut), sequences[3]]
    books = None
    if num_codebooks:
        rows = (sequence.rows for sequence in sequences)
        books = train_codebooks(rows, spec, max_codebooks=num_codebooks, expected_rows=10**6)
        assert books.num_codebooks == num_codebooks
    buffer = io.BytesIO()
    write_shard(buffer, sequences, spec, books)
    file = pa.ipc.open_file(buffer)
    metadata = {key.decode(): value.decode() for key, value in file.schema.metadata.items()}
    order, heads = np.arange(spec.vocab_size), np.zeros((1, 0), int)
    if books is not None:
        order, heads = read_codebooks(books.to_bytes())
    blocks = [read_block(file.get_batch(i), metadata, order, heads) for i in range(file.num_record_batches)]
    ours = list(ShardReader(buffer, spec, books).iter_sequences())
    for name in blocks[0]:
        theirs = np.concatenate([block[name] for block in blocks])
        np.testing.assert_array_equal(
            np.concatenate([getattr(sequence.rows, name) for sequence in ours]), theirs, err_msg=name
        )
