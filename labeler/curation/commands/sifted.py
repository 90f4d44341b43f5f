"""`penumbra label dedupe | decontaminate`: prompts that are near others are left out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from labeler.curation.commands.options import add_out, add_step, dropped_in_words, given_options, out_of
from labeler.curation.settings import DecontaminateSettings, DedupeSettings, checked
from labeler.curation.sift import SiftPaths, SiftReport
from labeler.curation.sifting import Source, decontaminate, dedupe
from logitstore.common.config_file import ConfigError
from logitstore.common.console import Console
from logitstore.common.exit_status import ExitStatus
from logitstore.common.options import add_storage_options, positive, read_storage_options, share

SIFTED = """\
Beside OUT stand OUT.dropped.jsonl, with each record that was dropped, its partner and the score, and
OUT.sift.json, with the settings and the counts. An interrupted command goes on when it is given again.
"""


def add_dedupe(commands: Any, epilog: str) -> None:
    command = add_step(
        commands,
        "dedupe",
        "leave out prompts that nearly repeat an earlier one",
        f"""Leaves out a prompt that is near one kept before it: by its letters (MinHash, Jaccard similarity)
or by its meaning (cosine of sentence embeddings). The search by letters takes the same time for each
record; that by meaning compares with all that were kept, so its time grows with the square of their number.

{SIFTED}""",
        """examples:
  penumbra label dedupe prompts.jsonl --out prompts-unique.jsonl
  penumbra label dedupe prompts.parquet --out unique.jsonl --by minhash --jaccard 0.7
""",
        epilog,
    )
    _add_sifting(command, "minhash, cosine or both (default: both)")
    command.add_argument(
        "--jaccard",
        type=share,
        metavar="X",
        help="letters: share of equal runs of 5, at least (default: 0.8)",
    )
    command.add_argument(
        "--cosine", type=share, metavar="X", help="meaning: cosine, at least (default: 0.85)"
    )
    command.set_defaults(command=_dedupe)


def add_decontaminate(commands: Any, epilog: str) -> None:
    command = add_step(
        commands,
        "decontaminate",
        "leave out prompts that an evaluation set contains",
        f"""Leaves out a prompt that shares a run of words with a text of an evaluation set, or means nearly
the same. A score on that set proves nothing for a student that was trained on its questions.

{SIFTED}""",
        """examples:
  penumbra label decontaminate prompts.jsonl --against gsm8k_test.jsonl --out clean.jsonl
  penumbra label decontaminate prompts.jsonl --against a.jsonl b.csv --by ngram --words 8 --out clean.jsonl
""",
        epilog,
    )
    command.add_argument(
        "--against", nargs="+", required=True, metavar="EVAL", help="evaluation sets: files, globs or URLs"
    )
    command.add_argument("--against-field", metavar="FIELD", help="field of their text; default as --field")
    _add_sifting(command, "ngram, cosine or both (default: both)")
    command.add_argument("--words", type=positive, help="words in a row that two may not share (default: 13)")
    command.add_argument(
        "--cosine", type=share, metavar="X", help="meaning: cosine, at least (default: 0.85)"
    )
    command.set_defaults(command=_decontaminate)


def _add_sifting(parser: argparse.ArgumentParser, ways: str) -> None:
    parser.add_argument("input", help="prompts: JSONL, CSV, Parquet or Arrow; path, glob, folder or URL")
    add_out(parser)
    parser.add_argument("--by", metavar="WAYS", help=ways)
    parser.add_argument("--restart", action="store_true", help="begin anew and replace what is there")
    add_storage_options(parser)


def _dedupe(arguments: argparse.Namespace) -> int:
    settings = checked(DedupeSettings, given_options(arguments, ("jaccard", "cosine")), "dedupe")
    with _progress(arguments.quiet) as show:
        report = dedupe(_source(arguments), out_of(arguments), settings, restart=arguments.restart, show=show)
    return _end(arguments, report)


def _decontaminate(arguments: argparse.Namespace) -> int:
    values = given_options(arguments, ("against", "against_field", "words", "cosine"))
    settings = checked(DecontaminateSettings, values, "decontaminate")
    with _progress(arguments.quiet) as show:
        report = decontaminate(
            _source(arguments), out_of(arguments), settings, restart=arguments.restart, show=show
        )
    return _end(arguments, report)


def _source(arguments: argparse.Namespace) -> Source:
    return Source(arguments.input, arguments.field, read_storage_options(arguments.storage_options))


def _end(arguments: argparse.Namespace, report: SiftReport) -> int:
    if not arguments.quiet:
        print(_told(report, SiftPaths(arguments.out)))
    if report.num_read and not report.num_kept:
        raise ConfigError(f"no record of {report.num_read} is left; see {SiftPaths(arguments.out).dropped}")
    return ExitStatus.DONE


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[SiftReport], None]]:
    """A line that is renewed while the pass goes on, on a terminal's standard error."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda report: None
        return
    with console.status("reading") as status:
        yield lambda report: status.update(_told(report, None))


def _told(report: SiftReport, paths: SiftPaths | None) -> str:
    """The counts as a person reads them."""
    text = f"{report.num_read:,} records read, {report.num_kept:,} kept{dropped_in_words(report.num_dropped)}"
    return text if paths is None else f"{text}\nkept: {paths.kept}\ndropped: {paths.dropped}"
