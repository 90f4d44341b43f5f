"""The options of `penumbra train parity`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, get_args

from logitstore.common.options import count, positive
from trainer.parity.records import MatchKind
from trainer.run.watch.hushing import hush_libraries

EPILOG = """examples:
  penumbra train parity --student build/student --teacher Qwen/Qwen3-8B \\
      --tasks questions.jsonl --match contains --out build/parity
  penumbra train parity --student build/student --teacher build/labels --tasks questions.jsonl \\
      --out build/parity
  penumbra train parity --student build/student --teacher Qwen/Qwen3-8B --tasks gsm8k,arc_easy \\
      --out build/parity
  penumbra train parity --student build/student --teacher MODEL --tasks gsm8k=gsm8k_test.jsonl --limit 50 \\
      --out build/parity

A file has a question (prompt, question, messages) and an answer on each line. --match says how a model is
scored on it: whether its answer is right (exact, contains, regex), how right a judge finds it (judge), or,
where students are too small to be right and whatever their tokenizers, by bits per byte: bits_per_byte
counts how likely the model finds the right answer, judge_bits_per_byte how likely a judge (the teacher, say)
finds the answer that the model gives, and beside it how often that repeats itself. Other names are tasks of
EleutherAI's lm-eval (pip install '.[parity]'), whose data NAME=FILE gives where there is no network.
Questions that share 13 words in a row with the student's training prompts are left out and listed. Teacher
and student are loaded one after the other. Given again, the command asks for no answer that is in
OUT/answers.jsonl.
"""


def add_parity(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "parity",
        help="student and teacher on the same tasks: scores, gap, who should answer what",
        description="""Lets teacher and student answer the same questions, and compares: both scores,
the gap with a bootstrap interval over items, and what the quality would be if the requests of which the
student is least sure went to the teacher.""",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--student", required=True, metavar="MODEL", help="folder or Hugging Face id")
    parser.add_argument(
        "--teacher",
        required=True,
        metavar="MODEL|STORE",
        help="its model, or a store of its answers",
    )
    parser.add_argument("--tasks", required=True, metavar="TASK,...", help="files and tasks of lm-eval")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="gets all results")
    parser.add_argument(
        "--labels",
        action="append",
        default=[],
        metavar="STORE",
        help="what the student was trained on (default: what its folder says; repeatable)",
    )
    parser.add_argument("--unchecked", action="store_true", help="do not look for questions met in training")
    parser.add_argument(
        "--match",
        choices=get_args(MatchKind),
        default="exact",
        help="how an answer to a file's question is scored (default exact)",
    )
    parser.add_argument("--regex", metavar="PATTERN", help="what is compared: its first group, or all of it")
    parser.add_argument("--judge", metavar="MODEL", help="the model of --match judge and judge_bits_per_byte")
    parser.add_argument("--prompt-field", metavar="NAME", help="field of a file's question")
    parser.add_argument("--answer-field", metavar="NAME", help="field of a file's right answer")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N items of each task")
    parser.add_argument(
        "--max-tokens",
        type=positive,
        metavar="N",
        help="of an answer (default: what a task of lm-eval says itself, else 256)",
    )
    parser.add_argument("--fewshot", type=count, metavar="N", help="examples before a question of lm-eval")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="default 8")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the interval (default 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(command=_parity)
    return parser


def tasks_of(text: str) -> tuple[str, ...]:
    """Between commas, which may stand in the name of a single file too."""
    return (text,) if os.path.exists(text) else tuple(task for task in text.split(",") if task)


def _parity(arguments: argparse.Namespace) -> int:
    quiet = arguments.quiet or arguments.json
    hush_libraries(bars=not quiet)
    from trainer.parity.command import parity  # torch takes seconds to import
    from trainer.parity.figures.report import in_words
    from trainer.parity.options import ParityOptions

    options = ParityOptions(
        student=arguments.student,
        teacher=arguments.teacher,
        tasks=tasks_of(arguments.tasks),
        out=arguments.out,
        labels=tuple(arguments.labels),
        unchecked=arguments.unchecked,
        match=arguments.match,
        regex=arguments.regex,
        judge=arguments.judge,
        prompt_field=arguments.prompt_field,
        answer_field=arguments.answer_field,
        limit=arguments.limit,
        max_tokens=arguments.max_tokens,
        num_fewshot=arguments.fewshot,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        quiet=quiet,
    )
    record = parity(options)
    print(json.dumps(record) if arguments.json else in_words(record, arguments.out))
    return 0
