"""The segments that `index.json` names, read whole and compared with what it says of them."""

from __future__ import annotations

import os

import pyarrow as pa

from logitstore.errors import CorruptManifestError, ObjectNotFoundError
from logitstore.index import segments as index_segments
from logitstore.index.pointer import INDEX_NAME, SegmentInfo
from logitstore.objects.opening import Objects


def load_entries(objects: Objects, info: SegmentInfo) -> pa.Table:
    """The entries of a segment as they lie there. Raises ObjectNotFoundError, CorruptManifestError."""
    data = _read_checked(objects, info.name, info.num_bytes, info.checksum)
    return index_segments.read_entries(data, what=info.name, num_entries=info.num_entries)


def load_rejects(objects: Objects, info: SegmentInfo) -> pa.Table:
    """The rejects of a segment that has some. Raises ObjectNotFoundError, CorruptManifestError."""
    data = _read_checked(objects, info.rejects_name, info.rejects_bytes, info.rejects_checksum)
    return index_segments.read_rejects(data, what=info.rejects_name, num_rejects=info.num_rejects)


def _read_checked(objects: Objects, name: str, num_bytes: int, checksum: str) -> pa.Buffer:
    try:
        if objects.is_local:
            objects.open(name, num_bytes=num_bytes).close()  # refuses what is no regular file
            data = pa.memory_map(os.fsencode(objects.local_path(name))).read_buffer()
        else:
            data = pa.py_buffer(objects.get(name, max_bytes=num_bytes))
    except FileNotFoundError as error:
        raise ObjectNotFoundError(
            f"{objects.uri}: {name} does not exist, which {INDEX_NAME} names; restore it from a "
            f"copy, or run `penumbra store rebuild-index {objects.uri}`"
        ) from error
    if data.size != num_bytes or index_segments.checksum(data) != checksum:
        raise CorruptManifestError(
            f"{name} has {data.size} bytes and does not match its size or checksum in {INDEX_NAME}; "
            "restore it from a copy of the store"
        )
    return data
