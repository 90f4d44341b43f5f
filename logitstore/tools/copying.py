"""`copy`: a store at another address, safe beside a job that labels the one that is copied.

The order makes every moment of the copy one that readers judge rightly: shards and all that the index names
first, `index.json` last. Until then the copy is refused as a store without its index; repeating the command
goes on. What is copied is what was committed when the copy began.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from logitstore.codebook_objects import CURRENT_CODEBOOKS, codebook_name
from logitstore.common.store_warning import StoreWarning
from logitstore.errors import (
    NOT_THERE,
    AccessRefusedError,
    CorruptManifestError,
    CorruptShardError,
    ObjectNotFoundError,
    StoreExistsError,
)
from logitstore.index import segments as index_segments
from logitstore.index.absence import refuse_foreign_index
from logitstore.index.commits import shard_place
from logitstore.index.ids.id_index import IdIndex, ids_name
from logitstore.index.pointer import INDEX_NAME, encode_pointer
from logitstore.job_objects import JOB_NAME, PLAN_PREFIX, REJECTS_NAME, RETOKENIZED_NAME
from logitstore.manifest.folders import manifest_there, refuse_own_place
from logitstore.manifest.reading import MANIFEST_NAME, MAX_MANIFEST_BYTES, manifest_hash
from logitstore.objects.opening import Objects
from logitstore.objects.room import require_room
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import tokenizer_objects
from logitstore.tools.deletion import refuse_to_bring_back

SNAPSHOT_TRIES = 10
THREADS = 8
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a copy moved."""

    num_shards: int
    """Shards of the copy."""
    num_copied: int
    """Objects that were copied now; others were there from an earlier try."""
    num_bytes: int
    """Bytes copied now."""
    num_left: int
    """Shards of an earlier copy that the store names no more, as after a purge: they stay at the target."""
    num_unindexed: int
    """Units that only their commit records name, which a place that may not be listed does not show."""


def copy_store(
    source: LogitStore, target: Objects, *, with_job: bool = False, progress: Progress | None = None
) -> CopyResult:
    """Copy all committed labels, and `with_job` the plan by which the job can go on there.

    The target may be any place that objects can be put to. Every shard is compared with its checksum on the
    way. Raises StoreExistsError where another store lies, or a copy that has more, CorruptShardError for a
    damaged shard, UnsupportedInputError where a local disk has no room.
    """
    target.require_puts()
    refuse_own_place(source.objects, target, "copy")
    _refuse_another(source, target)
    there = _sizes_there(target)
    small = _snapshot(source)  # fixes what is copied: compaction may replace these objects at any time
    if target.exists(INDEX_NAME):
        _refuse_newer(source, target)
    entries = [entry for entry in source.shards() if entry.name]
    missing = [entry for entry in entries if there.get(entry.name) != entry.num_bytes]
    require_room(target.uri, sum(entry.num_bytes for entry in missing), "the copy")
    manifest = source.objects.get(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
    if there.get(MANIFEST_NAME) != len(manifest):
        target.put(MANIFEST_NAME, manifest)
    checksums = {entry.name: entry.checksum for entry in missing}
    num_bytes = 0
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = pool.map(lambda entry: _copy_shard(source.objects, target, entry.name, checksums), missing)
        for done, size in enumerate(sizes, start=1):
            num_bytes += size
            if progress:
                progress("shards", done, len(missing))
    extras = _id_indexes(source)
    for name in _beside(source, with_job=with_job):
        with contextlib.suppress(*NOT_THERE):
            extras[name] = source.objects.get(name)
    small = {**extras, **small}
    for name, data in small.items():  # `index.json` is the last
        target.put(name, data)
        num_bytes += len(data)
    left = {name for name in there if shard_place(name) is not None} - {entry.name for entry in entries}
    num_unindexed = len(source.record_names())
    return CopyResult(len(entries), len(missing) + len(small), num_bytes, len(left), num_unindexed)


def _sizes_there(target: Objects) -> dict[str, int]:
    """What an earlier copy left; nothing where the target may not be listed, and all is put again: a
    StoreWarning says so."""
    try:
        return {info.name: info.num_bytes for info in target.list_info()}
    except AccessRefusedError as error:
        warnings.warn(
            f"{error}; what an earlier copy put there is put again, and shards that the store names no more "
            "are not seen",
            StoreWarning,
            stacklevel=2,
        )
        return {}


def _refuse_another(source: LogitStore, target: Objects) -> None:
    found = manifest_there(target)
    if found is None:
        refuse_foreign_index(target, manifest_hash(source.manifest))
    elif manifest_hash(found) != manifest_hash(source.manifest):
        raise StoreExistsError(f"{target.uri} already holds another store; copy to another place")


def _refuse_newer(source: LogitStore, target: Objects) -> None:
    """Raise StoreExistsError where the copy would take units out, or bring deleted records back: a store and
    its copy were given the wrong way round.
    """
    try:
        found = LogitStore(target, source.manifest)
    except (CorruptManifestError, ObjectNotFoundError):
        return  # a damaged copy is mended by copying again
    dropped = {one.unit_id for one in source.index_pointer()[0].dropped}
    if units := found.committed_units() - source.committed_units() - dropped:
        raise StoreExistsError(
            f"{target.uri} has units that {source.uri} has not ({len(units):,}, such as {min(units)!r}), and "
            "would lose them; copy the other way round, or to another place"
        )
    refuse_to_bring_back(source, found)


def _snapshot(source: LogitStore) -> dict[str, bytes]:
    """Everything but shards that one state of the source consists of, `index.json` as the last."""
    gone = ""
    for _ in range(SNAPSHOT_TRIES):
        source.refresh()
        codebooks = source.codebooks()
        names = [*sorted(source.index_names() - {""}), *source.record_names()]
        names += [info.name for info in source.deletion_infos()]
        names += [codebook_name(codebooks.hash), CURRENT_CODEBOOKS] if codebooks else []
        found = source.objects.get_many(names, max_bytes=2**32)
        if None not in found:
            content = {name: data for name, data in zip(names, found, strict=True) if data is not None}
            return {**content, INDEX_NAME: encode_pointer(source.index_pointer()[0])}
        gone = names[found.index(None)]
    raise ObjectNotFoundError(f"{source.uri}: {gone} is named and not there; run `verify` on the source")


def _id_indexes(source: LogitStore) -> dict[str, bytes]:
    """Those of the index's segments, as far as they are whole: readers do without."""
    found: dict[str, bytes] = {}
    for info, entries in source.index_segments():
        name, num_sequences = ids_name(info.name), int(entries.column("num_sequences").to_numpy().sum())
        with contextlib.suppress(*NOT_THERE):
            try:
                ids = IdIndex.open(source.objects, info)
                if ids is None:
                    continue
                if ids.num_entries != num_sequences:
                    raise ids.damaged()
                found[name] = source.objects.get(name, max_bytes=ids.num_bytes)[: ids.num_bytes]
            except CorruptManifestError as error:
                warnings.warn(f"{error}; it is not copied", StoreWarning, stacklevel=2)
    return found


def _copy_shard(source: Objects, target: Objects, name: str, checksums: dict[str, str]) -> int:
    try:
        data = source.get(name)
    except ObjectNotFoundError:
        raise ObjectNotFoundError(
            f"{source.uri}: {name} was named when the copy began and is gone, as a purge or new labels of "
            "its unit remove it; repeat the copy, and where it fails again run `verify` on the source"
        ) from None
    if index_segments.checksum(data) != checksums[name]:
        raise CorruptShardError(
            f"{source.uri}: {name} does not have the checksum of its entry; run `verify` on the source, then "
            "repeat the copy"
        )
    target.put(name, data)
    return len(data)


def _beside(source: LogitStore, *, with_job: bool) -> Iterable[str]:
    """Objects beside the labels: tokenizer, rejects of planning, and with the job its settings and plan."""
    names = [*tokenizer_objects(source.objects), REJECTS_NAME, RETOKENIZED_NAME]
    return [*names, JOB_NAME, *source.objects.list(PLAN_PREFIX)] if with_job else names
