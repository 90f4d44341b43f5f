"""Does a store hold what it says? Every object is read, and every problem found is one line."""

from __future__ import annotations

import hashlib
import time

import numpy as np

from logitstore.codebook_objects import CURRENT_CODEBOOKS
from logitstore.errors import (
    NOT_THERE,
    AccessRefusedError,
    CorruptShardError,
    ObjectNotFoundError,
    ObjectStoreError,
    StoreError,
    UnsafeObjectError,
)
from logitstore.index.absence import LIVE_SHARD_SEC
from logitstore.inputs.identity import digest_of
from logitstore.job_objects import REJECTS_NAME
from logitstore.manifest import strict_json
from logitstore.manifest.fields import ShardEntry
from logitstore.objects.opening import ObjectInfo, Objects
from logitstore.records import LabeledSequence, Reject
from logitstore.shard.validation import check_sequence
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import FILES_NAME, read_file, stored_tokenizer
from logitstore.tools.findings import Findings, Progress
from logitstore.tools.garbage import find_codebook_garbage, find_garbage
from logitstore.tools.record_ids import check_ids

MAX_REJECT_LINE_BYTES = 2**20
DEFAULT_GRACE_SEC = LIVE_SHARD_SEC
"""Uncommitted objects younger than this may belong to a writer that is alive."""


def verify_store(
    store: LogitStore,
    *,
    quick: bool = False,
    grace_sec: float = DEFAULT_GRACE_SEC,
    progress: Progress | None = None,
) -> Findings:
    """Check all objects of a store; `quick` compares sizes and reads no shard.

    Problems are returned, not raised; only a store whose units cannot be listed at all raises.
    """
    findings = Findings()
    objects = _listed(store, findings)  # before the commits: see below
    store.refresh()
    entries = store.shards()
    for done, entry in enumerate(entries):
        if progress:
            progress("shards", done, len(entries))
        findings.num_units += 1
        if entry.name:
            _check_shard(store, entry, objects.get(entry.name), findings, quick=quick)
    if progress:
        progress("shards", len(entries), len(entries))
    _check_rejects(store, findings)
    if not quick:
        check_ids(store, findings)
    oldest_live = time.time() - grace_sec
    _check_codebooks(store, objects, findings, oldest_live)
    _check_repeats(store, findings)
    _check_tokenizer(store, findings)
    if not any(problem.kind == "unlisted" for problem in findings.problems):
        find_garbage(store, objects, findings, oldest_live)
    return findings


def _listed(store: LogitStore, findings: Findings) -> dict[str, ObjectInfo]:
    """All objects; none where listing is refused: then what the index names is looked for by name."""
    try:
        return {info.name: info for info in store.objects.list_info()}
    except AccessRefusedError:
        findings.note("unlisted", store.uri, "may not be listed, so garbage was not looked for")
        return {}


def read_rejects(objects: Objects, findings: Findings) -> list[Reject]:
    """`rejects.jsonl` as a job wrote it, with a problem for each line that is not a reject."""
    try:
        file = objects.open(REJECTS_NAME)
    except NOT_THERE:
        return []
    rejects: list[Reject] = []
    with file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_REJECT_LINE_BYTES + 1), b""), start=1):
            where = f"{REJECTS_NAME}:{number}"
            try:
                value = strict_json.parse_object(line, what=where, max_bytes=MAX_REJECT_LINE_BYTES)
                rejects.append(strict_json.decode(Reject, value, what=where))
            except StoreError as error:
                remedy = "remove the file: the next run of the job writes it again"
                findings.error("bad_reject", where, f"{error}; {remedy}")
            if len(line) > MAX_REJECT_LINE_BYTES:
                break  # no list of lines: what follows need not end
    return rejects


def _check_tokenizer(store: LogitStore, findings: Findings) -> None:
    try:
        for file in found.files if (found := stored_tokenizer(store.objects)) is not None else ():
            read_file(store.objects, file)
    except ObjectStoreError:
        raise
    except StoreError as error:
        findings.error("bad_tokenizer", FILES_NAME, " ".join(str(error).split()))


def _check_rejects(store: LogitStore, findings: Findings) -> None:
    try:
        store.rejects()
    except ObjectStoreError:
        raise
    except StoreError as error:
        findings.error("corrupt_rejects", "index", " ".join(str(error).split()))


def _check_shard(
    store: LogitStore, entry: ShardEntry, info: ObjectInfo | None, findings: Findings, *, quick: bool
) -> None:
    if info is None:
        # Listed before the commits, so look again: it may be younger than the listing.
        try:
            info = store.objects.stat(entry.name)
        except AccessRefusedError:
            findings.error(
                "missing_shard",
                entry.name,
                f"the server refuses the shard of unit {entry.unit_id}, as one that lists nothing may do for "
                f"what is not there; correct its rights or restore it from a copy, or {_without(entry)}",
            )
            return
        except ObjectNotFoundError:
            findings.error(
                "missing_shard",
                entry.name,
                f"unit {entry.unit_id} is committed but its shard is gone; {_remedy(entry)}",
            )
            findings.bad_shards.add(entry.name)
            return
    if info.num_bytes != entry.num_bytes:
        findings.error(
            "wrong_size",
            entry.name,
            f"the shard has {info.num_bytes} bytes, its entry says {entry.num_bytes}; {_remedy(entry)}",
        )
        findings.bad_shards.add(entry.name)
        return
    if quick:
        return
    try:
        _read_shard(store, entry, findings)
    except ObjectStoreError:
        raise  # that storage fails now says nothing of the shard
    except StoreError as error:
        if isinstance(error, UnsafeObjectError) and not _is_regular(store, entry):
            findings.bad_shards.add(entry.name)
        findings.error("corrupt_shard", entry.name, " ".join(str(error).split()))


def _is_regular(store: LogitStore, entry: ShardEntry) -> bool:
    try:
        store.objects.get_range(entry.name, 0, 1)
    except UnsafeObjectError:
        return False
    return True


def _read_shard(store: LogitStore, entry: ShardEntry, findings: Findings) -> None:
    file = store.open_whole(entry)
    digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))  # type: ignore[arg-type]
    checksum = "blake2b-128:" + digest.hexdigest()
    if checksum != entry.checksum:
        findings.bad_shards.add(entry.name)
        raise CorruptShardError(
            f"the shard's checksum is {checksum}, its entry says {entry.checksum}; {_remedy(entry)}"
        )
    labels = store.manifest.labels
    reader = store.reader_of(file, entry)
    names: list[tuple[str, int]] = []
    num_rows = num_tokens = 0
    for sequence in reader.iter_sequences():
        check_sequence(sequence, labels)  # ids distinct, masses of one distribution
        names.append((sequence.record_id, sequence.sample_index))
        num_rows += sequence.rows.num_rows
        num_tokens += len(sequence.token_ids_T)
        _check_tokens(sequence, labels.vocab_size, entry, findings)
    found = (len(names), num_rows, num_tokens)
    said = (entry.num_sequences, entry.num_rows, entry.num_tokens)
    if found != said:
        raise CorruptShardError(
            f"the shard holds (sequences, rows, tokens) {found}, its entry says {said}; {_remedy(entry)}"
        )
    _check_deleted(store, entry, names, findings)
    findings.labeled.add(entry.unit_index, names)
    findings.num_sequences += len(names)
    findings.num_rows += num_rows


def _check_deleted(
    store: LogitStore, entry: ShardEntry, names: list[tuple[str, int]], findings: Findings
) -> None:
    """A writer that died right after its record was put may have left sequences of deleted records."""
    deleted = store.deleted_records
    shown = sorted({name for name, _ in names if name in deleted})
    if shown:
        findings.error(
            "deleted_shown",
            entry.name,
            f"hands out {len(shown)} records that were deleted, as {shown[0]!r:.100}, since it was committed "
            "while they were being deleted; delete them again: `penumbra store delete`",
        )


def _remedy(entry: ShardEntry) -> str:
    return (
        "restore it from a copy of the store, or let the job label the unit again after "
        f"`penumbra store uncommit STORE --bad`, or {_without(entry)}"
    )


def _without(entry: ShardEntry) -> str:
    where = f"unit_index != {entry.unit_index}"
    return f"go on without the unit: `merge STORE --out NEW --where '{where}'`"


def _check_tokens(sequence: LabeledSequence, vocab_size: int, entry: ShardEntry, findings: Findings) -> None:
    if len(sequence.token_ids_T) and int(sequence.token_ids_T.max()) >= vocab_size:
        findings.error(
            "token_outside_vocabulary",
            entry.name,
            f"record {sequence.record_id!r:.100} holds token id {int(sequence.token_ids_T.max())}, but the "
            f"teacher's vocabulary ends at {vocab_size - 1}",
        )


def _check_codebooks(
    store: LogitStore, objects: dict[str, ObjectInfo], findings: Findings, oldest_live: float
) -> None:
    try:
        codebooks = store.codebooks()
        current = codebooks.hash.removeprefix("blake2b-128:") if codebooks else None
    except ObjectStoreError:
        raise
    except StoreError as error:
        findings.error("corrupt_codebooks", CURRENT_CODEBOOKS, str(error))
        return
    find_codebook_garbage(objects, findings, current, oldest_live)


def _check_repeats(store: LogitStore, findings: Findings) -> None:
    """(record id, sample index) must be unique in the store."""
    labeled = findings.labeled
    if not labeled.digests:
        return
    keys = np.empty(sum(map(len, labeled.digests)), [("digest", "V16"), ("sample", "<i4")])
    keys["digest"] = np.concatenate(labeled.digests)
    keys["sample"] = np.concatenate(labeled.samples)
    units = np.concatenate(labeled.units)
    flat = keys.view(f"V{keys.dtype.itemsize}")
    order = np.argsort(flat, kind="stable")
    again = np.flatnonzero(flat[order][1:] == flat[order][:-1])
    for first, second in zip(order[again], order[again + 1], strict=True):
        name = _name_of(store, int(units[second]), bytes(keys["digest"][second]))
        findings.error(
            "labeled_twice",
            f"record {name!r:.120}",
            f"sample {keys['sample'][second]} is in unit {units[first]} and in unit {units[second]}; it must "
            "be labeled once",
        )


def _name_of(store: LogitStore, unit_index: int, digest: bytes) -> str:
    """The record id behind a digest, from the unit's shard: problems are rare, memory is not."""
    entry = next(entry for entry in store.shards() if entry.unit_index == unit_index)
    with store.open_shard(entry) as reader:
        blocks = [reader.plain_columns(block).record_id for block in range(reader.num_blocks)]
    names = (name for block in blocks for name in block)
    return next(name for name in names if digest_of(name) == digest)
