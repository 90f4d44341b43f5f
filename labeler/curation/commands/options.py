"""What the subcommands about prompts have in common: options, and counts in words."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labeler.curation.sifting import ways_of
from logitstore.common.config_file import ConfigError

REASONS = {
    "minhash": "by letters (MinHash)",
    "cosine": "by meaning (cosine)",
    "ngram": "by words in a row",
    "unreadable": "that could not be read",
    "repeated": "of an id that was there before",
    "truncated": "cut off at max_tokens",
    "empty": "without words",
    "same": "equal to the given prompt or an earlier one",
    "grade": "below the threshold",
    "no_grade": "without a grade",
}
"""How each reason is named in the counts."""


def add_step(
    commands: Any, name: str, summary: str, description: str, examples: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{description}",
        epilog=f"{examples}\n{epilog}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="what is kept")
    parser.add_argument(
        "--field", help="field of the text; default: prompt, question, text, messages or another usual name"
    )
    parser.add_argument("--quiet", action="store_true", help="show trouble only")


def add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")


def out_of(arguments: argparse.Namespace) -> Path:
    if arguments.out.suffix != ".jsonl":
        raise ConfigError(f"--out {arguments.out} must end in .jsonl, which is what is written")
    return arguments.out


def given_options(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The options that were given; the others keep the defaults of the settings."""
    values = {name: getattr(arguments, name) for name in names}
    if getattr(arguments, "by", None) is not None:
        values["by"] = ways_of(arguments.by)
    return {name: value for name, value in values.items() if value is not None}


def dropped_in_words(counts: Mapping[str, int]) -> str:
    parts = "; ".join(f"{count:,} {REASONS[reason]}" for reason, count in sorted(counts.items()))
    return f", {sum(counts.values()):,} dropped ({parts})" if parts else ", none dropped"
