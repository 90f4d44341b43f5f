"""`penumbra label dedupe | decontaminate`: which prompts are worth labeling."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labeler.curation.near import EMBEDDING, NearTexts
from labeler.curation.prompt_texts import PromptText, Unreadable, read_prompts
from labeler.curation.sift import Partner, Sieve, SiftPaths, SiftReport, sift
from logitstore.common.config_file import ConfigError
from logitstore.common.console import Console
from logitstore.common.options import add_storage_options, read_storage_options
from logitstore.inputs.listing import input_fingerprint

REASONS = {
    "minhash": "by letters (MinHash)",
    "cosine": "by meaning (cosine)",
    "ngram": "by words in a row",
    "unreadable": "that could not be read",
}
"""How each method is named in the counts."""
RESULTS = """\
Beside OUT stand OUT.dropped.jsonl, with each record that was dropped, its partner and the score, and
OUT.sift.json, with the settings and the counts. An interrupted command goes on when it is given again.
"""


def add_curation_commands(commands: Any, epilog: str) -> None:
    """Add the subcommands to those of `penumbra label`."""
    dedupe = _add(
        commands,
        "dedupe",
        "leave out prompts that nearly repeat an earlier one",
        f"""Leaves out a prompt that is near one kept before it: by its letters (MinHash, Jaccard similarity)
or by its meaning (cosine of sentence embeddings). The search by letters takes the same time for each
record; that by meaning compares with all that were kept, so its time grows with the square of their number.

{RESULTS}""",
        """examples:
  penumbra label dedupe prompts.jsonl --out prompts-unique.jsonl
  penumbra label dedupe prompts.parquet --out unique.jsonl --by minhash --jaccard 0.7
""",
        epilog,
    )
    dedupe.add_argument(
        "--by", default="minhash,cosine", metavar="WAYS", help="minhash, cosine or both (default: both)"
    )
    _add_threshold(dedupe, "--jaccard", 0.8, "letters: share of equal runs of 5 characters")
    _add_threshold(dedupe, "--cosine", 0.95, "meaning: cosine of the embeddings")
    dedupe.set_defaults(command=_dedupe)
    decontaminate = _add(
        commands,
        "decontaminate",
        "leave out prompts that an evaluation set contains",
        f"""Leaves out a prompt that shares a run of words with a text of an evaluation set, or means nearly
the same. A score on that set proves nothing for a student that was trained on its questions.

{RESULTS}""",
        """examples:
  penumbra label decontaminate prompts.jsonl --against gsm8k_test.jsonl --out clean.jsonl
  penumbra label decontaminate prompts.jsonl --against a.jsonl b.csv --by ngram --words 8 --out clean.jsonl
""",
        epilog,
    )
    decontaminate.add_argument(
        "--against", nargs="+", required=True, metavar="EVAL", help="evaluation sets: files, globs or URLs"
    )
    decontaminate.add_argument(
        "--against-field", metavar="FIELD", help="field of their text, if not a usual one"
    )
    decontaminate.add_argument(
        "--by", default="ngram,cosine", metavar="WAYS", help="ngram, cosine or both (default: both)"
    )
    decontaminate.add_argument(
        "--words", type=int, default=13, help="words in a row that two texts may not share (default: 13)"
    )
    _add_threshold(decontaminate, "--cosine", 0.92, "meaning: cosine of the embeddings")
    decontaminate.set_defaults(command=_decontaminate)


def _add(
    commands: Any, name: str, summary: str, description: str, examples: str, epilog: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"{examples}\n{epilog}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "input", help="prompts: JSONL, JSON, CSV, Parquet or Arrow; path, glob, folder or URL"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.jsonl", help="the records that are kept"
    )
    parser.add_argument(
        "--field", help="field of the text; default: prompt, question, instruction, text, turns or messages"
    )
    parser.add_argument("--restart", action="store_true", help="begin anew and replace what is there")
    parser.add_argument("--quiet", action="store_true", help="show trouble only")
    add_storage_options(parser)
    return parser


def _add_threshold(parser: argparse.ArgumentParser, name: str, default: float, meaning: str) -> None:
    parser.add_argument(
        name, type=float, default=default, metavar="X", help=f"{meaning}, from which on (default: {default})"
    )


def _dedupe(arguments: argparse.Namespace) -> int:
    return _sift(arguments, [], among_themselves=True, settings={"jaccard": arguments.jaccard})


def _decontaminate(arguments: argparse.Namespace) -> int:
    if arguments.words < 2:
        raise ConfigError(f"--words {arguments.words} must be at least 2; usual are 8 to 13")
    options = read_storage_options(arguments.storage_options)
    partners: list[Partner] = []
    for uri in arguments.against:
        found = list(_evaluation_texts(uri, arguments.against_field, options))
        if not found:
            raise ConfigError(f"{uri} has no text to compare with; name its field with --against-field")
        partners += found
    digests = [input_fingerprint(uri, storage_options=options) for uri in arguments.against]
    settings = {"words": arguments.words, "against": digests, "against_field": arguments.against_field}
    return _sift(arguments, partners, among_themselves=False, settings=settings)


def _evaluation_texts(
    uri: str, field: str | None, storage_options: Mapping[str, Any] | None
) -> Iterator[Partner]:
    for one in read_prompts(uri, field, storage_options=storage_options):
        if isinstance(one, Unreadable):
            raise ConfigError(
                f"{uri}, {one.place}: {one.reason}; an evaluation set must be read whole, "
                "or what is left out of it would count as clean"
            )
        yield Partner(f"{uri}:{one.place.rpartition(':')[2]}", one.record_id, one.text)


def _sift(
    arguments: argparse.Namespace,
    partners: list[Partner],
    *,
    among_themselves: bool,
    settings: Mapping[str, Any],
) -> int:
    ways = _ways(arguments, ("minhash", "cosine") if among_themselves else ("ngram", "cosine"))
    if arguments.out.suffix != ".jsonl":
        raise ConfigError(f"--out {arguments.out} must end in .jsonl, which is what is written")
    options = read_storage_options(arguments.storage_options)
    whole = {
        "input": input_fingerprint(arguments.input, storage_options=options),
        "field": arguments.field,
        "by": list(ways),
        "cosine": arguments.cosine,
        "embedding": EMBEDDING,
        **settings,
    }
    prompts: Iterator[PromptText | Unreadable] = read_prompts(
        arguments.input, arguments.field, storage_options=options
    )
    with _progress(arguments.quiet) as show:
        report = sift(
            prompts,
            Sieve([_near_texts(way, arguments) for way in ways], partners, among_themselves),
            arguments.out,
            whole,
            restart=arguments.restart,
            show=show,
        )
    if not arguments.quiet:
        print(told(report, SiftPaths(arguments.out)))
    if report.num_read and not report.num_kept:
        raise ConfigError(f"no record of {report.num_read} is left; see {SiftPaths(arguments.out).dropped}")
    return 0


def _ways(arguments: argparse.Namespace, known: tuple[str, ...]) -> tuple[str, ...]:
    ways = tuple(dict.fromkeys(part.strip() for part in arguments.by.split(",")))
    for way in ways:
        if way not in known:
            raise ConfigError(f"--by {arguments.by} names {way!r}; there are: {', '.join(known)}")
    for name in ("jaccard", "cosine"):
        value = getattr(arguments, name, 1.0)
        if not 0 < value <= 1:
            raise ConfigError(f"--{name} {value} must lie above 0 and be at most 1")
    return ways


def _near_texts(way: str, arguments: argparse.Namespace) -> NearTexts:
    if way == "minhash":
        from labeler.curation.minhash import MinHashTexts

        return MinHashTexts(arguments.jaccard)
    if way == "cosine":
        from labeler.curation.cosine import CosineTexts

        return CosineTexts(arguments.cosine)
    from labeler.curation.ngrams import NgramTexts

    return NgramTexts(arguments.words)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[SiftReport], None]]:
    """A line that is renewed while the pass goes on, on a terminal's standard error."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda report: None
        return
    with console.status("reading") as status:
        yield lambda report: status.update(told(report, None))


def told(report: SiftReport, paths: SiftPaths | None) -> str:
    """The counts as a person reads them."""
    dropped = "; ".join(
        f"{count:,} {REASONS[method]}" for method, count in sorted(report.num_dropped.items())
    )
    text = f"{report.num_read:,} records read, {report.num_kept:,} kept"
    text += f", {sum(report.num_dropped.values()):,} dropped ({dropped})" if dropped else ", none dropped"
    if paths is None:
        return text
    return f"{text}\nkept: {paths.kept}\ndropped: {paths.dropped}"
