"""Which sequences a command means: `--where`, `--ids`, `--without-ids`, `--sample`, `--split`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from logitstore.cli import context
from logitstore.common.options import share
from logitstore.rows.conditions import FIELDS, UNIT_FIELDS
from logitstore.rows.selection import Selection
from logitstore.rows.where import parse_selection, select_ids, select_split
from logitstore.store import LogitStore

WHERE_HELP = (
    "comparisons (= != < <= > >=), `in (a, b)` and, of flags and segments, has and lacks, joined by and, "
    f"or, not and brackets; of {', '.join((*FIELDS, *UNIT_FIELDS))}; hash is a number in [0, 1) made of "
    "the record id, and the last two skip whole shards unread"
)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that takes a part of a store. All that are given must hold."""
    parser.add_argument("--where", metavar="EXPRESSION", help=WHERE_HELP)
    parser.add_argument("--ids", type=Path, metavar="FILE", help="only the records in FILE, one id a line")
    parser.add_argument("--without-ids", type=Path, metavar="FILE", help="all records but those in FILE")
    parser.add_argument(
        "--split",
        metavar="FROM:TO",
        help="records whose hash lies there: 0:0.9 and 0.9:1 are two parts of every store, the same in all",
    )
    parser.add_argument(
        "--sample",
        metavar="SHARE",
        type=share,
        help="about this share of the records: --split 0:SHARE",
    )


def warn_of_unmet(command: str, selection: Selection, num_selected: int) -> None:
    """Names of the selection that no sequence had, after the sequences were read, or that none was taken."""
    for sentence in selection.unmet.sentences():
        context.warn(command, sentence)
    if not num_selected and not selection.takes_all:
        context.warn(command, "no sequence is selected")


def warn_of_top_k(command: str, top_k: int | None, stores: Iterable[LogitStore]) -> None:
    """Stores with fewer entries per row than were asked for: they are taken as they are."""
    for store in stores:
        stored = store.manifest.labels.top_k
        if top_k is not None and top_k > stored:
            context.warn(command, f"--top-k is {top_k}, and {store.uri} has K={stored}: all of it is taken")


def selection_of(args: argparse.Namespace) -> Selection:
    """Raises UnsupportedInputError with what is wrong."""
    selection = parse_selection(args.where)
    if args.ids is not None:
        selection &= select_ids(args.ids)
    if args.without_ids is not None:
        selection &= select_ids(args.without_ids, without=True)
    if args.split is not None:
        selection &= select_split(args.split)
    if args.sample is not None:
        selection &= select_split(f"0:{args.sample}")
    return selection
