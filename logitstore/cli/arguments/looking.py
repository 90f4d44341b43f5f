"""Arguments of the commands that look into stores: inspect, verify, head, cat."""

from __future__ import annotations

import argparse
from pathlib import Path

from logitstore.cli.arguments.command import Commands, add_command
from logitstore.cli.selecting import add_selection
from logitstore.common.options import above_zero, positive, seconds, share
from logitstore.contamination.evaluation_sets import DEFAULT_COSINE, DEFAULT_WORDS
from logitstore.tools.inspection import RECOMMENDED_MASS
from logitstore.tools.verify import DEFAULT_GRACE_SEC


def add_inspect(commands: Commands) -> None:
    parser = add_command(
        commands,
        "inspect",
        "sizes, entries per row, entropy, tail mass, and the mass each K would keep",
        "The last table says how much of the teacher's distribution each K would keep, and which is the\n"
        "least that keeps --mass of it. Bytes are what lies in the store; `per row` also names what the\n"
        "entries and the T=1 normaliser alone take.",
        "inspect build/demo/store",
        "inspect s3://bucket/store --max-rows 100000 --json",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument(
        "--max-rows",
        metavar="N",
        type=positive,
        help="look at an even choice of shards of about that many rows",
    )
    parser.add_argument(
        "--mass",
        metavar="SHARE",
        type=share,
        default=RECOMMENDED_MASS,
        help="mass at T=1 the recommended K keeps (default 0.99)",
    )


def add_verify(commands: Commands) -> None:
    parser = add_command(
        commands,
        "verify",
        "read everything and list the problems, one per line",
        "Checks names, sizes and checksums of every object, every rule of FORMAT.md for every row, that no\n"
        "record is labeled twice, and with --against that every record of the input is labeled or rejected.\n"
        "Status 1 if anything is wrong. Garbage (losing or dead writers' objects) is listed, but no error.",
        "verify build/demo/store",
        "verify s3://bucket/store --against s3://bucket/prompts/ --json",
        "verify build/demo/store --repair",
        "verify build/labels --decontaminate gsm8k_test.jsonl --found build/found.jsonl",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--json", action="store_true", help="one JSON object with all problems")
    parser.add_argument("--quick", action="store_true", help="compare sizes only, read no shard")
    parser.add_argument(
        "--against",
        metavar="INPUT",
        help="check that every record of this input is labeled or rejected, once",
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=positive,
        help="only the first N records of INPUT belong to the store (default: the job's)",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="remove garbage: what losing or dead writers left, never what could be the only copy",
    )
    parser.add_argument(
        "--remove-most",
        action="store_true",
        help="let --repair remove more bytes of shards than stay",
    )
    parser.add_argument(
        "--grace-sec",
        metavar="SEC",
        type=seconds,
        default=DEFAULT_GRACE_SEC,
        help="uncommitted objects younger than this may have a living writer (default 3600)",
    )
    _add_decontaminate(parser)


def _add_decontaminate(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "contamination",
        "A score on an evaluation set proves nothing for a student that was trained on its questions.\n"
        "Prompts are compared as text, by the store's own tokenizer; answers are not compared.",
    )
    group.add_argument(
        "--decontaminate", nargs="+", metavar="EVAL", help="evaluation sets that no prompt may be near"
    )
    group.add_argument("--eval-field", metavar="FIELD", help="field of their text (default: usual names)")
    group.add_argument("--by", metavar="WAYS", help="ngram, cosine or both (default: both)")
    group.add_argument(
        "--words",
        metavar="N",
        type=positive,
        help=f"words in a row that two texts may not share (default {DEFAULT_WORDS})",
    )
    group.add_argument(
        "--cosine",
        metavar="X",
        type=share,
        help=f"meaning: cosine, at least (default {DEFAULT_COSINE})",
    )
    group.add_argument(
        "--found",
        metavar="FILE.jsonl",
        type=Path,
        help="write what was found, with partners and scores; FILE.ids beside it is for --without-ids",
    )
    group.add_argument("--tokenizer", metavar="PATH", help="folder or tokenizer.json (default: the store's)")


def add_head(commands: Commands) -> None:
    parser = add_command(
        commands,
        "head",
        "the first label rows, with tokens as text where the tokenizer is at hand",
        "A row is one position: the token that stands there (dim where a loss would not count it), the\n"
        "teacher's probability and rank of it, the teacher's own first choices, and the mass outside all\n"
        "stored entries.",
        "head build/demo/store --rows 20",
        "head build/demo/store --tokenizer models/teacher --temperature 2 --json",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--rows", metavar="N", type=positive, default=20, help="rows shown (default 20)")
    parser.add_argument(
        "--alternatives", metavar="N", type=positive, default=4, help="choices shown per row (default 4)"
    )
    parser.add_argument(
        "--temperature", metavar="T", type=above_zero, default=1.0, help="of the probabilities (default 1)"
    )
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="folder or tokenizer.json (default: the job's teacher)"
    )


def add_cat(commands: Commands) -> None:
    parser = add_command(
        commands,
        "cat",
        "the sequences of one or several stores as lines of JSON",
        "The lines are those of `export --to jsonl`; numbers that JSON lacks (-inf, NaN) become null.",
        "cat build/a build/b --limit 10",
        "cat build/store --top-k 4 --where 'record_id >= doc-100 and record_id < doc-200'",
    )
    parser.add_argument("stores", nargs="+", metavar="STORE")
    add_selection(parser)
    parser.add_argument("--top-k", metavar="K", type=positive, help="read only so many entries of each row")
    parser.add_argument("--limit", metavar="N", type=positive, help="stop after so many sequences")
