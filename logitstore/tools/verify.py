"""Does a store hold what it says? Every object is read, and every problem found is one line."""

from __future__ import annotations

import hashlib
import io
import re
import time

import numpy as np

from logitstore.errors import CorruptShardError, ObjectNotFoundError, StoreError
from logitstore.index.commits import COMMITS_PREFIX, SHARDS_PREFIX, unit_id_of
from logitstore.index.committed import INDEX_NAME
from logitstore.index.segments import valid_segment_name
from logitstore.manifest import strict_json
from logitstore.manifest.fields import ShardEntry
from logitstore.manifest.reading import MANIFEST_NAME
from logitstore.objects.opening import ObjectInfo, Objects
from logitstore.records import LabeledSequence, Reject
from logitstore.shard.reader import ShardReader
from logitstore.shard.validation import check_sequence
from logitstore.store import CODEBOOKS_PREFIX, CURRENT_CODEBOOKS, LogitStore
from logitstore.tools.findings import Findings, Problem, Progress, digest_of

REJECTS_NAME = "rejects.jsonl"
MAX_REJECT_LINE_BYTES = 2**20
JOB_NAMES = frozenset({REJECTS_NAME, "status.json", "job.json", "driver.json"})
JOB_PREFIXES = ("plan/", "logs/")
"""What a labeling job keeps beside its labels; not the store's business."""
DEFAULT_GRACE_SEC = 3600.0
"""Uncommitted objects younger than this may belong to a writer that is alive."""
_CODEBOOK_NAME = re.compile(r"codebooks/[0-9a-f]{32}\.bin")
_SHARD_NAME = re.compile(r"shards/\d{8,}-(.+)-[0-9a-f]{16}\.arrow")


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
    objects = {info.name: info for info in store.objects.list_info()}  # before the commits: see below
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
    oldest_live = time.time() - grace_sec
    _check_codebooks(store, objects, findings, oldest_live)
    _check_repeats(store, findings)
    # Objects were listed first: a shard of the listing whose unit is committed by now, under another
    # name, can never become part of the store.
    _find_garbage(store, objects, findings, oldest_live)
    return findings


def repair(store: LogitStore, findings: Findings) -> int:
    """Remove the garbage that `verify_store` found; the number of objects removed.

    A committed shard is never among it, whatever its state: only labeling again can mend that.
    """
    live = {entry.name for entry in store.shards()}
    names = [info for info in findings.garbage if info.name not in live]
    store.objects.delete_many(info.name for info in names if "/.tmp-" not in f"/{info.name}")
    store.objects.delete_temporary(info for info in names if "/.tmp-" in f"/{info.name}")
    return len(names)


def read_rejects(objects: Objects, findings: Findings) -> list[Reject]:
    """`rejects.jsonl` as a job wrote it, with a problem for each line that is not a reject."""
    try:
        file = objects.open(REJECTS_NAME)
    except ObjectNotFoundError:
        return []
    rejects: list[Reject] = []
    with file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_REJECT_LINE_BYTES + 1), b""), start=1):
            where = f"{REJECTS_NAME}:{number}"
            try:
                value = strict_json.parse_object(line, what=where, max_bytes=MAX_REJECT_LINE_BYTES)
                rejects.append(strict_json.decode(Reject, value, what=where))
            except StoreError as error:
                findings.error("bad_reject", where, str(error))
    return rejects


def _check_shard(
    store: LogitStore, entry: ShardEntry, info: ObjectInfo | None, findings: Findings, *, quick: bool
) -> None:
    if info is None:
        # Listed before the commits, so look again: it may be younger than the listing.
        try:
            info = store.objects.stat(entry.name)
        except ObjectNotFoundError:
            findings.error(
                "missing_shard",
                entry.name,
                f"unit {entry.unit_id} is committed but its shard is gone; {_remedy(entry)}",
            )
            return
    if info.num_bytes != entry.num_bytes:
        findings.error(
            "wrong_size",
            entry.name,
            f"the shard has {info.num_bytes} bytes, its entry says {entry.num_bytes}; {_remedy(entry)}",
        )
        return
    if quick:
        return
    try:
        _read_shard(store, entry, findings)
    except StoreError as error:
        findings.error("corrupt_shard", entry.name, " ".join(str(error).split()))


def _read_shard(store: LogitStore, entry: ShardEntry, findings: Findings) -> None:
    data = store.objects.get(entry.name, max_bytes=entry.num_bytes)
    checksum = "blake2b-128:" + hashlib.blake2b(data, digest_size=16).hexdigest()
    if checksum != entry.checksum:
        raise CorruptShardError(
            f"the shard's checksum is {checksum}, its entry says {entry.checksum}; {_remedy(entry)}"
        )
    labels = store.manifest.labels
    reader = ShardReader(io.BytesIO(data), labels, store.codebooks())
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
    findings.labeled.add(entry.unit_index, names)
    findings.num_sequences += len(names)
    findings.num_rows += num_rows


def _remedy(entry: ShardEntry) -> str:
    return (
        "restore it from a copy of the store, or go on without the unit: "
        f"`merge STORE --out NEW --where 'unit_index != {entry.unit_index}'`"
    )


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
    current = None
    if CURRENT_CODEBOOKS in objects:
        try:
            codebooks = store.codebooks()
            current = codebooks.hash.removeprefix("blake2b-128:") if codebooks else None
        except StoreError as error:
            findings.error("corrupt_codebooks", CURRENT_CODEBOOKS, str(error))
            return
    for name, info in objects.items():
        if not _CODEBOOK_NAME.fullmatch(name) or name == f"{CODEBOOKS_PREFIX}{current}.bin":
            continue
        if current is not None:
            _note_garbage(findings, info, "a codebook set that lost to the store's own")
        elif info.modified_sec < oldest_live:  # otherwise perhaps of a writer about to name it
            _note_garbage(findings, info, "a codebook set that the store does not name")


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
    names = (sequence.record_id for sequence in store.open_shard(entry).iter_sequences(top_k=1))
    return next(name for name in names if digest_of(name) == digest)


def _find_garbage(
    store: LogitStore, objects: dict[str, ObjectInfo], findings: Findings, oldest_live: float
) -> None:
    live = {entry.name for entry in store.shards()}
    committed = store.committed_units()
    late = set(store.late_records())
    for name, info in objects.items():
        reason = _garbage_reason(name, info.modified_sec < oldest_live, live, committed, late, store)
        if reason:
            _note_garbage(findings, info, reason)
        elif reason is None and name not in live and not _is_known(name):
            findings.problems.append(
                Problem("garbage", "foreign_object", name, "no part of a store; it is left alone")
            )
    for info in store.objects.list_temporary():
        if info.modified_sec < oldest_live:
            _note_garbage(findings, info, "an unfinished write of a process that died")


def _garbage_reason(
    name: str, is_old: bool, live: set[str], committed: set[str], late: set[str], store: LogitStore
) -> str | None:
    if name.startswith(SHARDS_PREFIX) and name not in live:
        match = _SHARD_NAME.fullmatch(name)
        if match and match[1] in committed:
            return "the shard of a writer that lost its unit to another"
        if match and is_old:
            return "a shard that no record names, left by a writer that died"
        return "" if match else None  # young: perhaps of a writer about to commit
    if name.startswith(COMMITS_PREFIX):
        return "a record of a unit that the index already has" if name in late else None
    if valid_segment_name(name) and name not in store.index_names():
        return "an index segment that is not in use" if is_old else ""
    return None


def _is_known(name: str) -> bool:
    if name.startswith(COMMITS_PREFIX):
        return unit_id_of(name) is not None
    return (
        name in (MANIFEST_NAME, INDEX_NAME, CURRENT_CODEBOOKS)
        or name in JOB_NAMES
        or name.startswith(JOB_PREFIXES)
        or valid_segment_name(name)
        or _CODEBOOK_NAME.fullmatch(name) is not None
    )


def _note_garbage(findings: Findings, info: ObjectInfo, reason: str) -> None:
    findings.garbage.append(info)
    message = f"{reason} ({info.num_bytes} bytes); `verify --repair` removes it"
    findings.problems.append(Problem("garbage", "garbage", info.name, message))
