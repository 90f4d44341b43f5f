"""The id index of a segment: where the sequences of a record lie, found without reading a shard.

An object `index/<token>-ids.bin` beside the segment `index/<token>.arrow`. It may be absent, and is of use
only with the segment whose checksum it names: it says in which row of the segment, and where in that row's
shard, a record has a sequence. Entries are sorted by a hash of the record id and lie in buckets of equal
width, so that few bytes are read of a large one.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from logitstore.errors import NOT_THERE, CorruptManifestError
from logitstore.index.pointer import SegmentInfo
from logitstore.objects.opening import Objects

MAGIC = b"logitstore-ids-1\n".ljust(24, b"\0")
HEADER = struct.Struct("<24s16sQII")
"""Magic, the segment's blake2b-128, number of entries, log2 of the number of buckets, CRC-32 of these."""
BUCKET = np.dtype([("start", "<u8"), ("crc", "<u4")])
"""First entry of the bucket, and CRC-32 of its entries; one more says where the last one ends."""
ENTRY = np.dtype([("hash", "<u8"), ("row", "<u4"), ("place", "<u4")])
"""Hash of the record id, row of the segment, place in the shard of that row, deleted sequences counted."""
ENTRIES_PER_BUCKET = 64
MAX_BUCKET_BITS = 26
MAX_ENTRIES = 2**26
"""A segment with more sequences gets none: readers then read the ids of its shards."""
GAP_BYTES = 16 * 1024
"""Ranges that are so close are read as one."""
THREADS = 16
_NAME = re.compile(r"index/([0-9a-f]{16})-ids\.bin")


def ids_name(segment_name: str) -> str:
    """The object beside this segment."""
    return segment_name.removesuffix(".arrow") + "-ids.bin"


def are_among(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """bool, which of these uint64 are wanted. By sorting: numpy 2.0.0 fails at its table of such numbers."""
    return np.isin(values, wanted, kind="sort")


def segment_of(name: str) -> str | None:
    """The segment beside which an id index of this name lies; None for another object."""
    match = _NAME.fullmatch(name)
    return None if match is None else f"index/{match[1]}.arrow"


def encode_ids(segment: SegmentInfo, entries: np.ndarray) -> bytes:
    """The object for `entries`, of dtype ENTRY in any order."""
    entries = entries[np.argsort(entries["hash"], kind="stable")]
    bits = min(MAX_BUCKET_BITS, max(0, (len(entries) // ENTRIES_PER_BUCKET).bit_length()))
    starts = np.searchsorted(_bucket_of(entries["hash"], bits), np.arange(2**bits + 1), side="left")
    buckets = np.zeros(2**bits + 1, BUCKET)
    buckets["start"] = starts
    data = entries.tobytes()
    size = ENTRY.itemsize
    buckets["crc"][:-1] = [
        zlib.crc32(data[start * size : end * size])
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]
    head = HEADER.pack(MAGIC, _digest(segment), len(entries), bits, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head)) + buckets.tobytes() + data


@dataclass(frozen=True)
class IdIndex:
    """The id index of one segment, of which a read fetches the buckets that it needs."""

    objects: Objects
    name: str
    num_entries: int
    bits: int

    @classmethod
    def open(cls, objects: Objects, segment: SegmentInfo) -> IdIndex | None:
        """That of the segment; None where there is none, or one of other content.

        Raises CorruptManifestError for a damaged one.
        """
        name = ids_name(segment.name)
        try:
            head = objects.get_range(name, 0, HEADER.size)
        except NOT_THERE:
            # A key that may not list gets a refusal for what is not there.
            return None
        if len(head) < HEADER.size:
            raise _damaged(objects, name)
        magic, digest, num_entries, bits, crc = HEADER.unpack(head)
        bounded = bits <= MAX_BUCKET_BITS and num_entries <= MAX_ENTRIES
        if magic != MAGIC or crc != zlib.crc32(head[:-4]) or not bounded:
            raise _damaged(objects, name)
        return cls(objects, name, num_entries, bits) if digest == _digest(segment) else None

    @property
    def num_bytes(self) -> int:
        """Size of the whole object."""
        return HEADER.size + (2**self.bits + 1) * BUCKET.itemsize + self.num_entries * ENTRY.itemsize

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """The entries, of dtype ENTRY, with one of these hashes (uint64, ascending, distinct).

        Raises CorruptManifestError for damaged buckets.
        """
        wanted = np.unique(_bucket_of(hashes, self.bits))
        spans = self._spans(wanted)
        parts = [self._checked(bucket) for bucket in self._buckets(spans)]
        entries = np.concatenate(parts) if parts else np.zeros(0, ENTRY)
        return entries[are_among(entries["hash"], hashes)]

    def check_places(self, entries: np.ndarray, lengths: np.ndarray) -> None:
        """Raises CorruptManifestError for entries beyond the segment's rows or their shards' sequences.

        `lengths` are the sequences of each row's shard.
        """
        rows = entries["row"].astype(np.int64)
        if np.any(rows >= len(lengths)) or np.any(entries["place"] >= lengths[rows]):
            raise self.damaged()

    def damaged(self) -> CorruptManifestError:
        return _damaged(self.objects, self.name)

    def all(self) -> np.ndarray:
        """Every entry. Raises CorruptManifestError."""
        spans = self._spans(np.arange(2**self.bits))
        parts = [self._checked(bucket) for bucket in self._buckets(spans)]
        entries = np.concatenate(parts) if parts else np.zeros(0, ENTRY)
        if len(entries) != self.num_entries:
            raise self.damaged()
        return entries

    def _spans(self, buckets: np.ndarray) -> np.ndarray:
        """int64 [buckets, 3]: first entry, end, and CRC-32 of each bucket."""
        starts = HEADER.size + buckets.astype(np.int64) * BUCKET.itemsize
        found = self._read(list(zip(starts.tolist(), (starts + 2 * BUCKET.itemsize).tolist(), strict=True)))
        if any(len(one) != 2 * BUCKET.itemsize for one in found):
            raise self.damaged()
        rows = np.frombuffer(b"".join(found), BUCKET).reshape(-1, 2)
        firsts, ends = rows["start"][:, 0].astype(np.int64), rows["start"][:, 1].astype(np.int64)
        if np.any((firsts < 0) | (ends < firsts) | (ends > self.num_entries)):
            raise self.damaged()
        return np.stack([firsts, ends, rows["crc"][:, 0].astype(np.int64)], axis=1)

    def _buckets(self, spans: np.ndarray) -> list[tuple[bytes, int]]:
        base = self.num_bytes - self.num_entries * ENTRY.itemsize
        ranges = base + spans[:, :2] * ENTRY.itemsize
        found = self._read([(start, end) for start, end in ranges.tolist()])
        return list(zip(found, spans[:, 2].tolist(), strict=True))

    def _checked(self, bucket: tuple[bytes, int]) -> np.ndarray:
        data, crc = bucket
        if len(data) % ENTRY.itemsize or zlib.crc32(data) != crc:
            raise self.damaged()
        return np.frombuffer(data, ENTRY)

    def _read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of ascending ranges; close ones by one request."""
        joined: list[list[int]] = []
        for start, end in ranges:
            if joined and start - joined[-1][1] <= GAP_BYTES:
                joined[-1][1] = max(end, joined[-1][1])
            else:
                joined.append([start, end])
        if len(joined) == 1:
            parts = [self._range(joined[0])]
        else:
            with ThreadPoolExecutor(THREADS) as pool:
                parts = list(pool.map(self._range, joined))
        found: list[bytes] = []
        at = 0
        for start, end in ranges:
            while end > joined[at][1]:
                at += 1
            first = joined[at][0]
            found.append(parts[at][start - first : end - first])
        return found

    def _range(self, span: Sequence[int]) -> bytes:
        return self.objects.get_range(self.name, span[0], span[1])


def _bucket_of(hashes: np.ndarray, bits: int) -> np.ndarray:
    """int64, ascending with the hash."""
    return (hashes >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(hashes), np.int64)


def _digest(segment: SegmentInfo) -> bytes:
    return bytes.fromhex(segment.checksum.removeprefix("blake2b-128:"))


def _damaged(objects: Objects, name: str) -> CorruptManifestError:
    return CorruptManifestError(
        f"{objects.uri}: {name}, which says where the sequences of a record are, is damaged; remove it, and "
        "ids are looked up in the shards"
    )
