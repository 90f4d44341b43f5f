"""What the commands share: opening stores, progress bars, printing, exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from logitstore.common.console import Console
from logitstore.common.exit_status import ExitStatus
from logitstore.common.options import read_storage_options
from logitstore.errors import UnsupportedInputError
from logitstore.inputs.json_text import finite
from logitstore.store import LogitStore

OK, PROBLEMS, USAGE = ExitStatus.DONE, ExitStatus.FAILED, ExitStatus.WRONG

MAX_BLOCK_ENTRIES = 1 << 23
"""Rows times K of a block that commands decode at once: half a gigabyte, or 65,536 tokens of K=128."""
ProgressCallback = Callable[[str, int, int], None]


def open_store(args: argparse.Namespace, uri: str | None = None) -> LogitStore:
    store = LogitStore.open(args.store if uri is None else uri, storage_options=storage_options(args))
    store.max_block_entries = args.max_block_entries
    return store


def storage_options(args: argparse.Namespace) -> dict[str, Any] | None:
    return read_storage_options(args.storage_options)


@contextlib.contextmanager
def progress_bar(args: argparse.Namespace) -> Iterator[ProgressCallback | None]:
    """A bar on standard error; None when quiet or when no person is watching."""
    if args.quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=max(total, 1))

        yield update


def refuse_unused(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raise UnsupportedInputError for the first of these options that was given: it would do nothing."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False:  # 0 was given, and equals False
            raise UnsupportedInputError(f"--{name.replace('_', '-')} {why}; leave it out")


def say(args: argparse.Namespace, text: str) -> None:
    """A line for people: not with --quiet, and not into the JSON of --json."""
    if not args.quiet and not getattr(args, "json", False):
        print(text)


def warn(command: str, text: str) -> None:
    """A line on standard error, with --quiet and --json too."""
    print(f"{command}: warning: {text}", file=sys.stderr)


def warn_of_ids(command: str, not_indexed: str) -> None:
    """Why a segment has no index of record ids; "" if it has one."""
    if not_indexed:
        warn(command, f"ids are looked up in the shards: {not_indexed}")


def print_json(value: Any) -> None:
    """One JSON document on standard output; what is not finite becomes null."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    print(json.dumps(finite(plain), indent=2, ensure_ascii=False))


def count_text(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size_text(num_bytes: float) -> str:
    if abs(num_bytes) < 1000:
        return f"{num_bytes:,.0f} B"
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1000
        if abs(num_bytes) < 1000:
            return f"{num_bytes:,.1f} {unit}"
    return f"{num_bytes / 1000:,.1f} TB"
