"""What the parsers of all commands of `penumbra store` share."""

from __future__ import annotations

import argparse

from logitstore.cli.context import MAX_BLOCK_ENTRIES
from logitstore.common.exit_status import EXIT_STATUSES
from logitstore.common.options import add_storage_options, positive

Commands = argparse._SubParsersAction  # argparse names no public type for what add_subparsers returns  # noqa: SLF001


def add_command(
    commands: Commands, name: str, summary: str, explanation: str, *examples: str
) -> argparse.ArgumentParser:
    lines = "\n".join(f"  penumbra store {example}" for example in examples)
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{explanation}",
        epilog=f"examples:\n{lines}\n\n{EXIT_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bar, nothing but what was asked for"
    )
    parser.add_argument(
        "--max-block-entries",
        metavar="N",
        type=positive,
        default=MAX_BLOCK_ENTRIES,
        help="rows times K that are decoded at once (default 8388608, some 0.5 GB)",
    )
    add_storage_options(parser)
    return parser


def add_cut(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--top-k",
        metavar="K",
        type=positive,
        help="keep only so many entries of each row; the mass of the others joins the tail, exactly",
    )
