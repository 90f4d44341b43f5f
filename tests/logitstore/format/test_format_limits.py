"""The limits that FORMAT.md states are those that readers keep."""

from __future__ import annotations

from pathlib import Path

import logitstore
from logitstore.codebook_objects import MAX_CODEBOOK_BYTES
from logitstore.index.changes.uncommit import MAX_DROPPED
from logitstore.index.commits import MAX_COMMIT_BYTES, MAX_UNIT_INDEX
from logitstore.index.deletions import MAX_TOMBSTONE_BYTES
from logitstore.index.ids.id_index import MAX_BUCKET_BITS, MAX_ENTRIES
from logitstore.index.pointer import MAX_INDEX_BYTES, MAX_SEGMENT_BYTES, MAX_SEGMENT_ENTRIES
from logitstore.manifest.reading import MAX_MANIFEST_BYTES
from logitstore.shard.schema import MAX_SHARD_BYTES
from logitstore.tokenizer_objects import MAX_FILE_BYTES


def power(limit: int) -> str:
    exponent = limit.bit_length() - 1
    assert limit == 2**exponent
    return f"2^{exponent}"


def test_limits() -> None:
    text = " ".join(Path(logitstore.__file__).with_name("FORMAT.md").read_text().split())
    stated = [
        f"a shard of {power(MAX_SHARD_BYTES)} bytes",
        f"`manifest.json` {power(MAX_MANIFEST_BYTES)} bytes",
        f"`index.json` {power(MAX_INDEX_BYTES)},",
        f"a commit record {power(MAX_COMMIT_BYTES)},",
        f"a segment {power(MAX_SEGMENT_BYTES)} and {power(MAX_SEGMENT_ENTRIES)} rows",
        f"a tombstone {power(MAX_TOMBSTONE_BYTES)},",
        f"a codebook file {power(MAX_CODEBOOK_BYTES)},",
        f"a file of a tokenizer {power(MAX_FILE_BYTES)};",
        f"`unit_index` below {power(MAX_UNIT_INDEX)};",
        f"n <= {power(MAX_ENTRIES)} and b <= {MAX_BUCKET_BITS}.",
        f"at most {MAX_DROPPED:,} dropped attempts",
    ]
    assert [one for one in stated if one not in text] == []
