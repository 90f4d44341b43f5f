"""The optional column of segments: written, read, selected, mapped, refused."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard

from logitstore.common.store_warning import StoreWarning
from logitstore.errors import (
    CorruptShardError,
    InvalidLabelsError,
    UnsupportedFormatError,
    UnsupportedInputError,
)
from logitstore.exchange.importing import Origin, import_source
from logitstore.exchange.merge import merge_stores
from logitstore.exchange.npz.export import export_npz
from logitstore.exchange.tables.export import export_table
from logitstore.exchange.tables.reading import read_table
from logitstore.manifest import reading
from logitstore.manifest.fields import SEGMENTS, STUDENT_PROMPTS, Manifest
from logitstore.records import SEGMENT_NAMES, LabeledSequence, Segment
from logitstore.rows.where import parse_selection
from logitstore.shard import metadata
from logitstore.shard.reader import ShardReader
from logitstore.shard.segments import decode_segments
from logitstore.shard.writer import write_shard
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import make_manifest, make_sequence
from tests.logitstore.shard.test_student_prompts import prompted

REASONED = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 4]
CALLED = [0, 0, 0, 0, 3, 3, 3, 3, 3, 3, 3, 4]


def manifest(features: tuple[str, ...] = (SEGMENTS,), positions: str = "response") -> Manifest:
    plain = make_manifest()
    return replace(
        plain, features=features, labels=replace(plain.labels, extra_columns=features, positions=positions)
    )


def segmented(name: str, segments: list[int] | None) -> LabeledSequence:
    """A sequence of 12 tokens of which the first 4 are the prompt."""
    return replace(
        prompted(name, None), segments_T=None if segments is None else np.array(segments, np.uint8)
    )


SEQUENCES = [segmented("a", REASONED), segmented("b", None), segmented("c", CALLED)]


def make_store(place: Path, features: tuple[str, ...] = (SEGMENTS,)) -> LogitStore:
    store = LogitStore.create(place, manifest(features))
    store.commit_unit("unit", 0, SEQUENCES, seconds=0.0, worker="test")
    return store


def lists(sequences: list[LabeledSequence]) -> list[list[int] | None]:
    return [None if one.segments_T is None else one.segments_T.tolist() for one in sequences]


def test_a_shard_gives_the_segments_of_every_token_back(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    assert not verify_store(store).errors
    assert lists(list(store.iter_sequences())) == [REASONED, None, CALLED]
    assert lists(list(store.iter_sequences(top_k=2))) == [REASONED, None, CALLED]
    (entry,) = store.shards()
    with store.open_shard(entry) as reader:
        found = [None if one is None else one.tolist() for one in reader.segments(0)]
        assert sum(reader.column_bytes().values()) == entry.num_bytes
    assert found == [REASONED, None, CALLED]
    assert SEGMENT_NAMES == ("context", "reasoning", "answer", "tool", "end")


def test_the_bytes_are_those_of_the_page(tmp_path: Path) -> None:
    """Read with struct and zstandard alone, as FORMAT.md says."""
    (entry,) = make_store(tmp_path / "store").shards()
    store = LogitStore.open(tmp_path / "store")
    with store.open_shard(entry) as reader:
        packed = bytes(reader._buffers(0, [SEGMENTS]).packed(SEGMENTS))
    assert zlib.crc32(packed[:-4]) == struct.unpack("<I", packed[-4:])[0]
    sizes, at, streams = struct.unpack("<14I", packed[:56]), 56, []
    for raw, stored in zip(sizes[::2], sizes[1::2], strict=True):
        part, at = packed[at : at + stored], at + stored
        streams.append(list(part if raw == stored else zstandard.ZstdDecompressor().decompress(part)))
    assert streams == [
        [4, 0, 3],
        [0] * 3,
        [0] * 3,
        [0, 1, 2, 4, 0, 3, 4],
        [3, 2, 3, 0, 3, 6, 0],
        [0] * 7,
        [0] * 7,
    ]


def test_stores_without_the_feature_have_the_bytes_that_they_had() -> None:
    with_it, without = io.BytesIO(), io.BytesIO()
    write_shard(without, [segmented("a", None)], make_manifest().labels, None)
    write_shard(with_it, [segmented("a", REASONED)], manifest().labels, None)
    assert SEGMENTS.encode() not in without.getvalue()
    with pytest.raises(InvalidLabelsError, match="feature 'segments'"):
        write_shard(io.BytesIO(), [segmented("a", REASONED)], make_manifest().labels, None)


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (segmented("a", REASONED[1:]), "one for each of the 12 tokens"),
        (segmented("a", [*REASONED[:11], 5]), "0..4, context, reasoning, answer, tool, end"),
        (segmented("a", [2, *REASONED[1:]]), "context in the first prompt_length tokens"),
        (segmented("a", [*REASONED[:6], 0, *REASONED[7:]]), "what the assistant wrote only"),
    ],
)
def test_segments_that_no_sequence_can_have_are_refused(bad: LabeledSequence, rule: str) -> None:
    with pytest.raises(InvalidLabelsError, match=rule):
        write_shard(io.BytesIO(), [bad], manifest().labels, None)


def test_a_masked_row_may_be_one_of_the_context() -> None:
    sequence = segmented("a", [*REASONED[:6], 0, *REASONED[7:]])
    mask_N = sequence.loss_mask_N.copy()
    mask_N[2] = False
    write_shard(io.BytesIO(), [replace(sequence, loss_mask_N=mask_N)], manifest().labels, None)
    everywhere = manifest(positions="all").labels
    write_shard(io.BytesIO(), [sequence], everywhere, None)


def packed_streams(streams: list[list[int]]) -> memoryview:
    table = b"".join(struct.pack("<II", len(stream), len(stream)) for stream in streams)
    body = table + b"".join(map(bytes, streams))
    return memoryview(body + struct.pack("<I", zlib.crc32(body)))


@pytest.mark.parametrize(
    ("streams", "error"),
    [
        ([[1, 0], [0] * 2, [0] * 2, [0], [4], [0], [0]], "do not add up"),
        ([[1, 0], [0] * 2, [0] * 2, [5], [2], [0], [0]], "segment 5"),
        ([[0, 0], [0] * 2, [1, 0], [0], [2], [0], [0]], "65536 runs over 6 tokens"),
        ([[1, 0], [0] * 2, [0] * 2, [0, 0], [2], [0], [0]], "declares 2 bytes"),
    ],
)
def test_damaged_segments_are_named(streams: list[list[int]], error: str) -> None:
    with pytest.raises(CorruptShardError, match=error):
        decode_segments(packed_streams(streams), np.array([3, 3], np.int32), verify_checksum=True)


def test_older_readers_refuse_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store")
    (entry,) = store.shards()
    data = store.objects.get(entry.name)
    monkeypatch.setattr(metadata, "KNOWN_FEATURES", frozenset())
    with pytest.raises(UnsupportedFormatError, match="segments"):
        ShardReader(io.BytesIO(data), manifest().labels, None)
    monkeypatch.setattr(reading, "KNOWN_FEATURES", frozenset())
    with pytest.raises(UnsupportedFormatError, match="segments"):
        LogitStore.open(store.uri)


@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl"])
def test_tables_carry_the_segments(tmp_path: Path, form: str) -> None:
    export_table(make_store(tmp_path / "store"), tmp_path / f"table.{form}", form)
    back = import_source(read_table(tmp_path / f"table.{form}"), str(tmp_path / "back"), origin=Origin())
    assert back.manifest.features == (SEGMENTS,)
    assert lists(list(back.iter_sequences())) == [REASONED, None, CALLED]


def test_merging_keeps_the_segments_beside_those_that_have_none(tmp_path: Path) -> None:
    one = make_store(tmp_path / "one")
    other = LogitStore.create(tmp_path / "other", manifest(()))
    other.commit_unit("unit", 0, [make_sequence("plain")], seconds=0.0, worker="test")
    merged = merge_stores([one, other], str(tmp_path / "merged"))
    assert {found.record_id: lists([found])[0] for found in merged.iter_sequences()} == {
        "a": REASONED,
        "b": None,
        "c": CALLED,
        "plain": None,
    }
    assert not verify_store(merged).errors


def test_where_selects_by_segments(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")

    def selected(where: str) -> list[str]:
        return [found.record_id for found in parse_selection(where).sequences(store)]

    assert selected("segments has tool") == ["c"]
    assert selected("segments lacks reasoning") == ["b", "c"]
    with pytest.raises(UnsupportedInputError, match="a token is one of context, reasoning"):
        parse_selection("segments has thinking")
    with pytest.raises(UnsupportedInputError, match="'has' and 'lacks'"):
        parse_selection("segments = tool")


def test_a_student_with_its_own_prompt_has_it_as_context(tmp_path: Path) -> None:
    both = (STUDENT_PROMPTS, SEGMENTS)
    store = LogitStore.create(tmp_path / "store", manifest(both))
    sequence = replace(prompted("a", [7, 8]), segments_T=np.array(REASONED, np.uint8))
    store.commit_unit("unit", 0, [sequence], seconds=0.0, worker="test")
    (found,) = store.iter_sequences()
    assert lists([found, found.for_student()]) == [REASONED, [Segment.CONTEXT] * 2 + REASONED[4:]]


def test_a_capture_leaves_segments_out_and_says_so(tmp_path: Path) -> None:
    """`label run --out x.npz` ends with this export, and jobs with a chat template make segments."""
    store = make_store(tmp_path / "store")
    with pytest.warns(StoreWarning, match=r"x\.npz: an npz capture has no place .* segments of sequences"):
        num_rows = export_npz(store, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        expected = np.concatenate([sequence.rows.token_ids_NK for sequence in store.iter_sequences()])
        np.testing.assert_array_equal(arrays["token_ids_NK"], expected)
    assert num_rows == len(expected) > 0


def test_a_capture_of_labels_that_mean_less_without_a_feature_is_refused(tmp_path: Path) -> None:
    store = LogitStore.create(tmp_path / "store", manifest((STUDENT_PROMPTS,)))
    with pytest.raises(UnsupportedInputError, match="has the features student_prompts"):
        export_npz(store, tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
