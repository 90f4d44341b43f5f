"""Commands that only read: inspect, verify, head, cat."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator

from logitstore.cli import context
from logitstore.cli.contamination import (
    Compared,
    check_for_contamination,
    compared_text,
    contamination_of,
)
from logitstore.cli.rendering import print_head, print_inspection
from logitstore.cli.selecting import selection_of, warn_of_top_k, warn_of_unmet
from logitstore.common.console import Console
from logitstore.errors import (
    NOT_THERE,
    StoreChangedError,
    StoreError,
    StoreNotFoundError,
    UnsupportedInputError,
)
from logitstore.exchange.tables.arrays import TEXT_NUMBERS, bounded_groups
from logitstore.exchange.tables.columns import table_schema
from logitstore.exchange.tables.json_lines import json_lines
from logitstore.inputs.proofs import read_proofs
from logitstore.inputs.reading import iter_records
from logitstore.job_objects import JOB_NAME
from logitstore.manifest.fields import InputInfo
from logitstore.objects.opening import ObjectInfo
from logitstore.shard.assembling import BlockSequences
from logitstore.store import LogitStore
from logitstore.tools.findings import MAX_LISTED, Findings
from logitstore.tools.garbage import repair
from logitstore.tools.head import head_rows
from logitstore.tools.inspection import inspect_store
from logitstore.tools.verify import read_rejects, verify_store
from logitstore.tools.verify_input import InputCheck

MAX_SHOWN = 10
"""Problems of each kind that `verify` prints; --json has them all, of records MAX_LISTED."""


def inspect(args: argparse.Namespace) -> int:
    store = context.open_store(args)
    with context.progress_bar(args) as progress:
        found = inspect_store(store, max_rows=args.max_rows, target_mass=args.mass, progress=progress)
    if args.json:
        context.print_json(found)
    else:
        print_inspection(found, Console())
    return context.OK


def _refuse_unlike_options(args: argparse.Namespace) -> None:
    """Raises UnsupportedInputError for options of `verify` of which one would do nothing."""
    if args.repair and args.quick:
        raise UnsupportedInputError(
            "--repair reads every shard before it removes another of the same unit; leave --quick out"
        )
    if args.against is not None and args.quick:
        raise UnsupportedInputError(
            "--against compares the input with the records of every shard, which --quick does not read; "
            "leave one of the two out"
        )
    if args.against is None:
        context.refuse_unused(args, ("limit",), "is of the input that --against names")
    if not args.repair:
        context.refuse_unused(args, ("remove_most",), "is for --repair")


def verify(args: argparse.Namespace) -> int:
    _refuse_unlike_options(args)
    contamination = contamination_of(args)
    findings, store = Findings(), None
    removed = num_records = num_unproven = num_deleted = 0
    try:
        store = context.open_store(args)
        with context.progress_bar(args) as progress:
            findings = verify_store(store, quick=args.quick, grace_sec=args.grace_sec, progress=progress)
            rejects = read_rejects(store.objects, findings)
            if args.against is not None:
                info = _input_info(store, args)
                proofs, deleted = read_proofs(store.objects), store.deletions.records
                check = InputCheck(findings, [*rejects, *store.rejects()], info, proofs, deleted)
                options = context.storage_options(args)
                check.run(iter_records(args.against, storage_options=options), progress)
                num_records = check.num_records
                num_unproven = check.num_unproven
                num_deleted = check.num_deleted
        if args.repair:
            removed = repair(
                store,
                findings,
                remove_most=args.remove_most,
                announce=lambda infos: context.say(args, f"removing {_bytes_text(infos)}"),
            )
    except (StoreNotFoundError, StoreChangedError, UnsupportedInputError):
        raise
    except (StoreError, RecursionError) as error:
        # A store that cannot even be listed has one problem, and it is a finding, not a failure.
        if isinstance(error, OSError) and not isinstance(error, ValueError):
            raise
        findings.error("unreadable", args.store, " ".join(str(error).split()))
    compared = None
    if contamination is not None and store is not None:
        compared = check_for_contamination(args, store, contamination, findings)
    _report(args, findings, num_records, num_unproven, num_deleted, removed, compared)
    return context.PROBLEMS if findings.errors else context.OK


def head(args: argparse.Namespace) -> int:
    from logitstore.decoding.tokenizer_choice import choose_texts

    store = context.open_store(args)
    texts, reason = choose_texts(store, args.tokenizer)
    rows = head_rows(
        store,
        num_rows=args.rows,
        num_alternatives=args.alternatives,
        temperature=args.temperature,
        decode=texts.piece,
    )
    if args.json:
        for row in rows:
            print(json.dumps(dataclasses.asdict(row), ensure_ascii=False))
        return context.OK
    if reason:
        context.say(args, f"Token ids are shown: {reason}")
    print_head(list(rows), args.temperature, Console())
    return context.OK


def cat(args: argparse.Namespace) -> int:
    selection = selection_of(args)
    stores = [context.open_store(args, uri) for uri in args.stores]
    warn_of_top_k("cat", args.top_k, stores)
    left, num_written = args.limit, 0
    for store in stores:
        schema = table_schema(store.manifest)
        for some in bounded_groups(_first(selection.blocks(store, top_k=args.top_k), left), TEXT_NUMBERS):
            sys.stdout.write(json_lines(some, schema).decode())
            num_written += sum(map(len, some))
            left = None if left is None else left - sum(map(len, some))
    if left is None or left > 0:  # else not every sequence was looked at
        warn_of_unmet("cat", selection, num_written)
    return context.OK


def _first(blocks: Iterator[BlockSequences], count: int | None) -> Iterator[BlockSequences]:
    """The first `count` sequences, in blocks; None for all."""
    for block in blocks:
        if count is not None and count <= len(block):
            if count:
                yield block.slice(0, count)
            return
        yield block
        count = None if count is None else count - len(block)


def _bytes_text(infos: list[ObjectInfo]) -> str:
    num_bytes = sum(info.num_bytes for info in infos)
    return f"{context.count_text(len(infos), 'garbage object')} ({context.size_text(num_bytes)})"


def _input_info(store: LogitStore, args: argparse.Namespace) -> InputInfo:
    info = store.manifest.input
    return dataclasses.replace(info, limit=args.limit or _limit_of_job(store, info.limit))


def _limit_of_job(store: LogitStore, first: int | None) -> int | None:
    """The job's `input.limit` of its last run; the manifest has that of its first, which may be lower."""
    try:
        limit = json.loads(store.objects.get(JOB_NAME))["input"]["limit"]
    except (*NOT_THERE, ValueError, KeyError, TypeError, RecursionError):
        return first
    return limit if limit is None or type(limit) is int else first


def _problem_lines(findings: Findings, *, only_errors: bool) -> Iterator[str]:
    """The first problems of each kind, and how many more there are."""
    problems = findings.errors if only_errors else findings.problems
    counts = Counter((problem.severity, problem.kind) for problem in problems)
    counts.update({("error", kind): count for kind, count in findings.unlisted.items()})
    shown = Counter[tuple[str, str]]()
    for problem in problems:
        key = (problem.severity, problem.kind)
        shown[key] += 1
        if shown[key] <= MAX_SHOWN:
            yield str(problem)
        elif shown[key] == MAX_SHOWN + 1:
            more = counts[key] - MAX_SHOWN
            listed = f"the first {MAX_LISTED:,}" if problem.kind in findings.unlisted else "them"
            yield f"{problem.severity}: {more:,} more of the kind [{problem.kind}]; --json lists {listed}"


def _report(
    args: argparse.Namespace,
    findings: Findings,
    num_records: int,
    num_unproven: int,
    num_deleted: int,
    removed: int,
    compared: Compared | None,
) -> None:
    if args.json:
        summary = {
            "ok": not findings.errors,
            "num_errors": findings.num_errors,
            "num_units": findings.num_units,
            # Unknown, not 0, where no shard was read.
            "num_sequences": None if args.quick else findings.num_sequences,
            "num_rows": None if args.quick else findings.num_rows,
            "num_input_records": num_records,
            "num_unproven": num_unproven,
            "num_deleted": num_deleted,
            "garbage_bytes": sum(info.num_bytes for info in findings.garbage),
            "num_removed": removed,
            **({} if compared is None else dataclasses.asdict(compared)),
            "num_unlisted": findings.unlisted,
            "problems": [dataclasses.asdict(problem) for problem in findings.problems],
        }
        context.print_json(summary)
        return
    for line in _problem_lines(findings, only_errors=args.quiet):
        print(line)
    counts = {"unit": findings.num_units}
    if not args.quick:
        counts |= {"sequence": findings.num_sequences, "label row": findings.num_rows}
    if args.against is not None:
        counts["input record"] = num_records
    verdict = context.count_text(findings.num_errors, "error") if findings.errors else "no errors"
    seen = ", ".join(context.count_text(count, name) for name, count in counts.items())
    context.say(args, f"{verdict}: {seen}" + (", by their sizes; no shard was read" if args.quick else ""))
    if compared is not None:
        context.say(args, compared_text(args, compared))
    if num_unproven:
        what = context.count_text(num_unproven, "record")
        context.say(args, f"{what} compared by id alone: the store keeps no digest of their content")
    if num_deleted:
        context.say(args, f"{context.count_text(num_deleted, 'record')} of the input were deleted on request")
    if removed:
        context.say(args, f"removed {context.count_text(removed, 'garbage object')}")
