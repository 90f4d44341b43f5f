"""A shard's download: continued where it stopped, and the checksum of what came."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, BinaryIO

from logitstore.errors import CorruptShardError
from logitstore.manifest.fields import ShardEntry

if TYPE_CHECKING:
    from logitstore.objects.opening import Objects

CHUNK_BYTES = 8 * 2**20
"""Bytes asked for at a time: what a cut connection can cost."""
READ_ATTEMPTS = 5
"""Tries in a row without a single new byte before a download is given up."""
BACKOFF_SEC = 0.2


def continue_download(objects: Objects, entry: ShardEntry, partial: BinaryIO) -> None:
    """Append to the partial copy until it has all bytes; a failed read is repeated where it stopped."""
    position = partial.seek(0, os.SEEK_END)
    if position > entry.num_bytes:
        position = partial.truncate(0)
    failures = 0
    while position < entry.num_bytes:
        try:
            stop = min(position + CHUNK_BYTES, entry.num_bytes)
            data = objects.get_range(entry.name, position, stop)
            if not data:
                raise CorruptShardError(
                    f"{entry.name} of {objects.uri} ends after {position:,} bytes of {entry.num_bytes:,}"
                )
        except OSError as error:
            failures += 1
            if isinstance(error, FileNotFoundError) or failures == READ_ATTEMPTS:
                raise
            time.sleep(BACKOFF_SEC * 2**failures)
            continue
        failures = 0
        partial.seek(position)
        partial.write(data)
        partial.flush()
        position += len(data)


def checksum_of(file: BinaryIO) -> str:
    """As in the commit record. Leaves the file at its start."""
    file.seek(0)
    digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))  # type: ignore[arg-type]
    file.seek(0)
    return f"blake2b-128:{digest.hexdigest()}"
