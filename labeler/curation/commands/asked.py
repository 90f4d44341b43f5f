"""`penumbra label expand | judge`: what the teacher writes about prompts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labeler.config.loading import job_document
from labeler.curation.commands.options import (
    add_out,
    add_set,
    add_step,
    dropped_in_words,
    given_options,
    out_of,
)
from labeler.curation.settings import ExpandSettings, JudgeSettings, SomeSettings, checked, refuse_no_tables
from labeler.curation.sifting import Source
from logitstore.common.config_file import ConfigError
from logitstore.common.exit_status import ExitStatus
from logitstore.common.options import amount, positive

ASKED = """\
The teacher is asked by a labeling job; its store OUT.asked and its questions OUT.asks.jsonl stay beside
OUT, so that the same command goes on where it stopped. OUT.dropped.jsonl has what was left out and why.
"""


def add_expand(commands: Any, epilog: str) -> None:
    expand = add_step(
        commands,
        "expand",
        "further prompts after given ones, written by the teacher",
        ASKED,
        """examples:
  penumbra label expand --teacher DIR --input seeds.jsonl --out prompts.jsonl --set expand.n=8
  penumbra label expand job.toml --input seeds.jsonl --out prompts.jsonl --template rephrase.txt
""",
        epilog,
    )
    _add_asking(expand)
    expand.add_argument(
        "--template", type=Path, metavar="FILE", help="what is asked; {prompt} is the given one"
    )
    expand.add_argument("--n", type=positive, help="new prompts after each (default: 4)")
    expand.set_defaults(command=_expand)


def add_judge(commands: Any, epilog: str) -> None:
    judge = add_step(
        commands,
        "judge",
        "keep the prompts that the teacher grades well",
        f"""The grade is the mean of the digits 1 to 5 under the teacher's stored probabilities of its reply's
first token, which tells more than the digit it would write. OUT.scores.jsonl has all grades.

{ASKED}""",
        """examples:
  penumbra label judge --teacher DIR --input prompts.jsonl --out good.jsonl --threshold 3.5
  penumbra label judge job.toml --out good.jsonl --rubric rubric.txt --compare other.scores.jsonl
""",
        epilog,
    )
    _add_asking(judge)
    judge.add_argument(
        "--rubric", type=Path, metavar="FILE", help="what is asked; {prompt} and {response} are the record's"
    )
    judge.add_argument("--threshold", type=amount, metavar="X", help="least grade that is kept (default: 3)")
    judge.add_argument(
        "--compare",
        type=Path,
        metavar="SCORES",
        help="*.scores.jsonl of another judge: how far the two agree",
    )
    judge.set_defaults(command=_judge)


def _add_asking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", help="TOML file with the teacher and the workers of a job")
    parser.add_argument("--teacher", metavar="MODEL", help="folder or Hugging Face id of the teacher")
    parser.add_argument("--input", metavar="FILE", help="prompts: path, glob, folder or URL")
    add_out(parser)
    add_set(parser)


def _expand(arguments: argparse.Namespace) -> int:
    from labeler.curation.expand import expand

    document, settings = _asked(arguments, "expand", ExpandSettings, {"template": arguments.template}, ("n",))
    report = expand(
        document, _input_of(document, arguments), out_of(arguments), settings, quiet=arguments.quiet
    )
    if not arguments.quiet:
        print(
            f"{report.num_seeds:,} prompts given, {report.num_new:,} new ones"
            f"{dropped_in_words(report.num_dropped)}\nprompts: {arguments.out}\n"
            f"next: penumbra label dedupe {arguments.out} --out FILE.jsonl"
        )
    return ExitStatus.DONE if report.num_new else ExitStatus.FAILED


def _judge(arguments: argparse.Namespace) -> int:
    from labeler.curation.judge import judge

    document, settings = _asked(
        arguments, "judge", JudgeSettings, {"rubric": arguments.rubric}, ("threshold",)
    )
    report = judge(
        document,
        _input_of(document, arguments),
        out_of(arguments),
        settings,
        compare=arguments.compare,
        quiet=arguments.quiet,
    )
    if not arguments.quiet:
        print(
            f"{report.num_judged:,} prompts graded, {report.num_kept:,} kept"
            f"{dropped_in_words(report.num_dropped)}; "
            f"the five digits have {report.median_mass:.3f} of the probability (median)\n"
            f"kept: {arguments.out}"
        )
        if (agreement := report.agreement) is not None:
            print(
                f"agreement on {agreement.num_prompts:,} prompts: {agreement.same_argmax:.3f} with the same "
                f"digit, rank correlation of the grades {agreement.spearman:.3f}"
            )
    return ExitStatus.DONE if report.num_kept else ExitStatus.FAILED


def _asked(
    arguments: argparse.Namespace,
    section: str,
    model: type[SomeSettings],
    files: Mapping[str, Path | None],
    names: tuple[str, ...],
) -> tuple[dict[str, Any], SomeSettings]:
    """The job's settings, and those of the step: its section, then the options of the command line."""
    options = {"teacher.model": arguments.teacher, "input.uri": arguments.input}
    document = job_document(arguments.job, arguments.set, options=options)
    refuse_no_tables(document, arguments.job or "--set")
    values = {**document.pop(section, {}), **given_options(arguments, names)}
    values |= {name: path.read_text() for name, path in files.items() if path is not None}
    return document, checked(model, values, section)


def _input_of(document: Mapping[str, Any], arguments: argparse.Namespace) -> Source:
    told = document.get("input", {})
    if not told.get("uri"):
        raise ConfigError("no prompts are given; give --input FILE, or a job with input.uri")
    return Source(str(told["uri"]), arguments.field, told.get("storage_options"))
