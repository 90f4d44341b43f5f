"""`publish`: a store as a folder, or prefix, that others can have, with a dataset card of the Hub.

What is published holds labels, codebooks and the tokenizer, and nothing of the machines: no plan, log,
status, worker's name or path. Shards come first, each with an index segment of its own that no `index.json`
names, by which an interrupted publication goes on; until `index.json` is there, as the last object, readers
refuse it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from logitstore.codebook_objects import CURRENT_CODEBOOKS, codebook_name
from logitstore.codec.codebooks import CodebookSet
from logitstore.errors import AccessRefusedError, ObjectNotFoundError, ObjectStoreError, StoreExistsError
from logitstore.index import segments as index_segments
from logitstore.index.absence import refuse_foreign_index
from logitstore.index.changes.compaction import write_segment_objects
from logitstore.index.commits import SHARDS_PREFIX, CommitRecord, place_of, shard_place
from logitstore.index.ids.building import IdBuilder
from logitstore.index.ids.id_index import ids_name, segment_of
from logitstore.index.pointer import (
    INDEX_NAME,
    INDEX_PREFIX,
    MAX_INDEX_BYTES,
    MAX_SEGMENT_BYTES,
    IndexPointer,
    decode_pointer,
    encode_pointer,
)
from logitstore.job_objects import CARD_NAME
from logitstore.manifest.fields import Manifest, ShardEntry
from logitstore.manifest.folders import manifest_there, refuse_own_place
from logitstore.manifest.reading import MANIFEST_NAME, encode_manifest, manifest_hash
from logitstore.objects.opening import Objects
from logitstore.objects.room import require_room
from logitstore.publishing.card import CardSettings, Contents, dataset_card
from logitstore.publishing.joining import (
    SHARD_BYTES,
    UNIT_PREFIX,
    Joined,
    joined_shard,
    plan_shards,
    record_ids_in,
)
from logitstore.publishing.local_paths import PlaceFinder
from logitstore.publishing.privacy import public_manifest, public_tokenizer
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import read_file, replace_tokenizer, stored_tokenizer, tokenizer_objects
from logitstore.tools.deletion import refuse_running_job, refuse_to_bring_back
from logitstore.tools.findings import Findings
from logitstore.tools.verify import read_rejects

THREADS = 4
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What was published."""

    num_sequences: int
    num_shards: int
    """Shards of what is published now."""
    num_written: int
    """Shards that were written now; others were there from an earlier try."""
    num_bytes: int
    """Bytes of all shards."""
    num_rejects: int
    """Records without labels, of planning too; they are counted on the card and their texts left out."""
    wrote_card: bool
    """False where a README.md lay there, which is left alone."""
    not_removed: str
    """Why objects of an earlier publication could not be removed; "" if they were."""
    not_indexed: str
    """Why there is no index of record ids, which readers do without; "" if there is one."""


def publish_store(
    source: LogitStore,
    target: Objects,
    card: CardSettings,
    *,
    new_card: bool = False,
    beside_job: bool = False,
    allow_paths: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> PublishResult:
    """Write the store of all living sequences to `target`, or go on with it, or bring it up to date.

    Raises StoreChangedError while a job labels the source, unless `beside_job`; StoreExistsError where
    another store lies; CorruptShardError for a damaged shard; UnsupportedInputError where a local disk has no
    room, and for places on machines in what would be published, unless `allow_paths`.
    """
    target.require_puts()
    if not beside_job:
        with contextlib.suppress(AccessRefusedError):  # of a status that is not there, as NOT_THERE says
            refuse_running_job(source)
    source.refresh()
    manifest = public_manifest(source.manifest)
    generation = _refuse_another(source, target, manifest)
    stored = stored_tokenizer(source.objects)
    tokenizer = public_tokenizer(source.objects, stored) if stored is not None else {}
    card = replace(card, licence=card.licence or (stored.licence if stored is not None else ""))
    finder = None if allow_paths else _place_finder(source, manifest, card, tokenizer)
    target.put(MANIFEST_NAME, encode_manifest(manifest))
    joined = plan_shards(source, shard_bytes)
    known = _known_entries(target)
    missing = [entry for one in joined if one.name not in known for entry in one.entries]
    require_room(target.uri, sum(entry.num_bytes for entry in missing), "the publication")
    entries = _put_shards(source, target, joined, known, finder, manifest_hash(manifest), progress)
    _put_codebooks(source, target)
    if stored is not None:
        _put_tokenizer(target, tokenizer, stored.licence)
    num_rejects = _count_rejects(source)
    contents = Contents.of(entries, num_rejects)
    wrote_card = new_card or not target.exists(CARD_NAME)
    if wrote_card:
        target.put(CARD_NAME, dataset_card(manifest, contents, card).encode())
    not_removed, not_indexed = _put_index(target, entries, manifest, source.codebooks(), generation)
    return PublishResult(
        num_sequences=contents.num_sequences,
        num_shards=len(entries),
        num_written=sum(one.name not in known for one in joined),
        num_bytes=contents.num_bytes,
        num_rejects=num_rejects,
        wrote_card=wrote_card,
        not_removed=not_removed,
        not_indexed=not_indexed,
    )


def _refuse_another(source: LogitStore, target: Objects, manifest: Manifest) -> int:
    """The generation of what was published there, 0 for nothing. Raises StoreExistsError."""
    refuse_own_place(source.objects, target, "publish")
    found = manifest_there(target)
    if found is None:
        refuse_foreign_index(target, manifest_hash(manifest))
        return 0
    published = LogitStore(target, found)
    if manifest_hash(found) != manifest_hash(manifest) or any(
        not unit_id.startswith(UNIT_PREFIX) for unit_id in published.committed_units()
    ):
        raise StoreExistsError(f"{target.uri} already holds another store; publish to another place")
    refuse_to_bring_back(source, published)
    try:
        return decode_pointer(target.get(INDEX_NAME, max_bytes=MAX_INDEX_BYTES)).generation
    except ObjectNotFoundError:
        return 0


def _place_finder(
    source: LogitStore, manifest: Manifest, card: CardSettings, tokenizer: Mapping[str, bytes]
) -> PlaceFinder:
    """What finds the places that the source names; the head, the card and the tokenizer say none of them.

    Raises UnsupportedInputError.
    """
    finder = PlaceFinder(source.manifest, source.uri)
    without_counts = dataset_card(manifest, Contents.of([], 0), card).encode()
    finder.refuse_in_files({MANIFEST_NAME: encode_manifest(manifest), CARD_NAME: without_counts, **tokenizer})
    return finder


def _known_entries(target: Objects) -> dict[str, ShardEntry]:
    """Shards that lie there whole, by name, and what segments, named or not, say of them."""
    sizes = {info.name: info.num_bytes for info in target.list_info(SHARDS_PREFIX)}
    known: dict[str, ShardEntry] = {}
    for name in target.list(INDEX_PREFIX):
        table = (
            index_segments.read_unnamed_entries(target, name, max_bytes=MAX_SEGMENT_BYTES)
            if index_segments.is_entries_name(name)
            else None
        )
        for entry in index_segments.table_to_entries(table) if table is not None else ():
            if sizes.get(entry.name) == entry.num_bytes:
                known[entry.name] = entry
    return known


def _put_shards(
    source: LogitStore,
    target: Objects,
    joined: list[Joined],
    known: Mapping[str, ShardEntry],
    finder: PlaceFinder | None,
    manifest: str,
    progress: Progress | None,
) -> list[ShardEntry]:
    def put(one: Joined) -> ShardEntry:
        if one.name in known:
            return known[one.name]
        data, entry = joined_shard(source, one)
        if finder is not None:
            finder.refuse_in_ids(record_ids_in(data, source))
        target.put(entry.name, data)
        # Named by nothing: what an interrupted publication goes on by.
        write_segment_objects(target, [CommitRecord(one.key, manifest, entry)], one.key)
        return entry

    entries: list[ShardEntry] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for entry in pool.map(put, joined):
            entries.append(entry)
            if progress:
                progress("shards", len(entries), len(joined))
    return entries


def _count_rejects(source: LogitStore) -> int:
    """Records without labels: of engines, which the index has, and of planning, which a job lists beside."""
    findings = Findings()
    everywhere = [*source.rejects(), *read_rejects(source.objects, findings)]
    return len({(one.file, one.line, one.record_id) for one in everywhere}) + len(findings.problems)


def _put_tokenizer(target: Objects, files: Mapping[str, bytes], licence: str) -> None:
    """In place of the one of an earlier publication, if it is another."""
    found = stored_tokenizer(target)
    if found is not None and {file.name: read_file(target, file) for file in found.files} != files:
        target.delete_many(reversed(tokenizer_objects(target)))
    replace_tokenizer(target, files, licence)


def _put_codebooks(source: LogitStore, target: Objects) -> None:
    codebooks = source.codebooks()
    if codebooks is not None:
        for name in (codebook_name(codebooks.hash), CURRENT_CODEBOOKS):
            target.put(name, source.objects.get(name))


def _is_of_a_store(name: str) -> bool:
    """Whether a shard, or a part of an index, is called so: what else lies there is somebody's own."""
    is_of_index = index_segments.valid_segment_name(name) or segment_of(name) is not None
    return is_of_index or shard_place(name) is not None


def _put_index(
    target: Objects,
    entries: list[ShardEntry],
    manifest: Manifest,
    codebooks: CodebookSet | None,
    generation: int,
) -> tuple[str, str]:
    """Replace `index.json` and remove what it no longer names; why objects stay, why ids have no index."""
    hash_of_manifest = manifest_hash(manifest)
    records: list[CommitRecord] = []
    for entry in entries:
        records.append(CommitRecord(place_of(entry).attempt, hash_of_manifest, entry))
    segments = (write_segment_objects(target, records, secrets.token_hex(8)),) if records else ()
    builder = IdBuilder(target, manifest.labels, lambda: codebooks)
    table = index_segments.entries_to_table(records)
    not_indexed = "".join(builder.build(info, table) for info in segments)
    target.put(INDEX_NAME, encode_pointer(IndexPointer(generation + 1, hash_of_manifest, segments)))
    living = {entry.name for entry in entries}
    living |= {name for info in segments for name in (info.name, ids_name(info.name))}
    old = [name for prefix in (SHARDS_PREFIX, INDEX_PREFIX) for name in target.list(prefix)]
    try:
        target.delete_many(name for name in old if name not in living and _is_of_a_store(name))
    except ObjectStoreError as error:
        return str(error), not_indexed
    return "", not_indexed
