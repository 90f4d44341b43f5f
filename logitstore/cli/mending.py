"""Commands that mend a store: rebuild-index, uncommit, delete, compact."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from logitstore.cli import context
from logitstore.errors import StoreChangedError, UnsupportedInputError
from logitstore.rows.where import read_ids
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from logitstore.tools.purge import purge
from logitstore.tools.record_ids import make_missing_ids
from logitstore.tools.verify import verify_store

MAX_SAID = 10
"""Things left out that are named; the others are counted."""


def rebuild_index(args: argparse.Namespace) -> int:
    with context.progress_bar(args) as progress:
        _, result = LogitStore.rebuild(
            args.store, storage_options=context.storage_options(args), progress=progress
        )
    if args.json:
        context.print_json(result)
    context.say(
        args,
        f"{result.num_units:,} units in the index: {result.num_from_records:,} as they were recorded, "
        f"{result.num_from_shards:,} from their shards alone, whose rejects are not known",
    )
    for reason in result.unread[:MAX_SAID]:
        context.warn("rebuild-index", f"left out: {' '.join(reason.split())}")
    if len(result.unread) > MAX_SAID:
        context.warn("rebuild-index", f"and {len(result.unread) - MAX_SAID:,} more")
    context.warn_of_ids("rebuild-index", result.not_indexed)
    if result.num_unreadable or result.num_rivals:
        context.say(
            args,
            f"left out, and left where they are: {context.count_text(result.num_unreadable, 'shard')} that "
            f"cannot be read, {result.num_rivals:,} of units that have another",
        )
    return context.OK


def uncommit(args: argparse.Namespace) -> int:
    if not args.bad:
        context.refuse_unused(args, ("most",), "is for --bad")
    store = context.open_store(args)
    names = _bad_shards(args, store) if args.bad else _shards_of_units(args, store)
    dropped = store.uncommit(names) if names else []
    if args.json:
        context.print_json({"uncommitted": dropped})
    context.say(
        args,
        f"{context.count_text(len(dropped), 'unit')} un-committed"
        + ("; the job that made the store labels them when it is run again" if dropped else ""),
    )
    return context.OK


def delete(args: argparse.Namespace) -> int:
    store = context.open_store(args)
    record_ids = read_ids(args.ids)
    with context.progress_bar(args) as progress:
        result = delete_records(store, record_ids, args.reason, progress=progress)
    if args.json:
        context.print_json(result)
    context.say(
        args,
        f"{context.count_text(result.num_sequences, 'sequence')} of "
        f"{context.count_text(result.num_records, 'record')} deleted "
        f"in {context.count_text(result.num_units, 'unit')}"
        + (f"; without labels here: {result.num_absent:,}" if result.num_absent else "")
        + (f"; deleted before: {result.num_before:,}" if result.num_before else "")
        + (f"; their bytes go by `penumbra store compact {args.store} --purge`" if result.num_units else ""),
    )
    if result.absent:
        context.warn(
            "delete",
            f"{context.count_text(result.num_absent, 'record')} have no labels here, such as "
            f"{result.absent[0]!a:.120}; they will get none",
        )
    if result.written_otherwise:
        names = ", ".join(ascii(one) for one in result.written_otherwise)
        context.warn(
            "delete",
            f"written otherwise, by spaces or the form of Unicode, these are here and not deleted: {names}; "
            "delete them too if they are meant",
        )
    return context.OK


def compact(args: argparse.Namespace) -> int:
    if args.purge:
        return _purge(args)
    store = context.open_store(args)
    result = store.compact()
    with context.progress_bar(args) as progress:
        made = make_missing_ids(store, progress)
    if args.json:
        context.print_json({**dataclasses.asdict(result), "num_ids_made": made.num_made})
    for reason in made.reasons:
        context.warn_of_ids("compact", reason)
    if result.not_removed:
        context.warn("compact", f"garbage stays until `verify --repair`: {result.not_removed}")
    context.say(
        args,
        f"{result.num_records:,} commit records moved, {result.num_late:,} late ones removed; "
        f"{result.num_entries:,} units in {result.num_segments} segments",
    )
    return context.OK


def _purge(args: argparse.Namespace) -> int:
    store = context.open_store(args)
    with context.progress_bar(args) as progress:
        result = purge(store, progress)
    if args.json:
        context.print_json(result)
    context.say(
        args,
        f"{context.count_text(result.num_shards, 'shard')} written anew; {result.num_plan_records:,} records "
        f"out of the plan, {result.num_rejects:,} out of lists of rejects",
    )
    if result.num_unread_lines:
        context.warn(
            "compact",
            f"{context.count_text(result.num_unread_lines, 'line')} of the lists of rejects cannot be read "
            "and stay; look whether they name deleted records",
        )
    context.warn_of_ids("compact", result.not_indexed)
    if result.not_removed:
        print(f"compact: deleted records are still in objects: {result.not_removed}", file=sys.stderr)
        return context.PROBLEMS
    return context.OK


def _bad_shards(args: argparse.Namespace, store: LogitStore) -> set[str]:
    with context.progress_bar(args) as progress:
        findings = verify_store(store, progress=progress)
    bad = findings.bad_shards
    if 2 * len(bad) > findings.num_units and not args.most:
        raise StoreChangedError(
            f"{store.uri}: {len(bad):,} of {findings.num_units:,} units have no sound shard, which looks "
            "like a copy that is not complete; restore the shards, or add --most"
        )
    return bad


def _shards_of_units(args: argparse.Namespace, store: LogitStore) -> set[str]:
    names = {entry.unit_id: entry.name for entry in store.shards() if entry.unit_id in set(args.units)}
    before = {dropped.unit_id for dropped in store.index_pointer()[0].dropped} - names.keys()
    for unit in sorted(before & set(args.units)):
        context.say(args, f"unit {unit} was un-committed before, and is not labeled again yet")
    if missing := [unit for unit in args.units if unit not in names and unit not in before]:
        raise UnsupportedInputError(f"{store.uri} has no unit {missing[0]!r:.140}; nothing was un-committed")
    if empty := [unit for unit, name in names.items() if not name]:
        raise UnsupportedInputError(
            f"unit {empty[0]} has no shard, since all its records were rejected; such units stay committed"
        )
    return set(names.values())
