"""`penumbra label expand | dedupe | decontaminate | judge | recipe`: which prompts are worth labeling."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labeler.config.loading import job_document
from labeler.curation.check_command import add_check
from labeler.curation.settings import (
    DecontaminateSettings,
    DedupeSettings,
    ExpandSettings,
    JudgeSettings,
    SomeSettings,
    checked,
)
from labeler.curation.sift import SiftPaths, SiftReport
from labeler.curation.sifting import Source, decontaminate, dedupe, ways_of
from logitstore.common.command import ExitStatus
from logitstore.common.config_file import ConfigError
from logitstore.common.console import Console
from logitstore.common.options import add_storage_options, read_storage_options

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
SIFTED = """\
Beside OUT stand OUT.dropped.jsonl, with each record that was dropped, its partner and the score, and
OUT.sift.json, with the settings and the counts. An interrupted command goes on when it is given again.
"""
ASKED = """\
The teacher is asked by a labeling job; its store OUT.asked and its questions OUT.asks.jsonl stay beside
OUT, so that the same command goes on where it stopped. OUT.dropped.jsonl has what was left out and why.
"""


def add_curation_commands(commands: Any, epilog: str) -> None:
    """Add the subcommands to those of `penumbra label`."""
    _add_expand(commands, epilog)
    _add_dedupe(commands, epilog)
    _add_decontaminate(commands, epilog)
    _add_judge(commands, epilog)
    add_check(commands, epilog)
    recipe = _add(
        commands,
        "recipe",
        "from seeds to a labeled store through all these steps",
        """Does the steps that the recipe has a section for, in this order: expand, dedupe, decontaminate,
judge, label. One ledger, recipe.json in recipe.out, remembers what is done; the same command goes on.
""",
        "examples:\n  penumbra label recipe configs/recipe.toml --set recipe.out=build/recipe\n",
        epilog,
    )
    recipe.add_argument(
        "recipe", help="TOML file: [recipe] seeds, out; a section for each step; a job's sections"
    )
    _add_set(recipe)
    recipe.add_argument("--quiet", action="store_true", help="show trouble only")
    recipe.set_defaults(command=_recipe)


def _add_expand(commands: Any, epilog: str) -> None:
    expand = _add(
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
    expand.add_argument("--n", type=int, help="new prompts after each (default: 4)")
    expand.set_defaults(command=_expand)


def _add_judge(commands: Any, epilog: str) -> None:
    judge = _add(
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
    judge.add_argument("--threshold", type=float, metavar="X", help="least grade that is kept (default: 3)")
    judge.add_argument(
        "--compare",
        type=Path,
        metavar="SCORES",
        help="*.scores.jsonl of another judge: how far the two agree",
    )
    judge.set_defaults(command=_judge)


def _add_dedupe(commands: Any, epilog: str) -> None:
    command = _add(
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
        type=float,
        metavar="X",
        help="letters: share of equal runs of 5, at least (default: 0.8)",
    )
    command.add_argument(
        "--cosine", type=float, metavar="X", help="meaning: cosine, at least (default: 0.85)"
    )
    command.set_defaults(command=_dedupe)


def _add_decontaminate(commands: Any, epilog: str) -> None:
    command = _add(
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
    command.add_argument("--words", type=int, help="words in a row that two may not share (default: 13)")
    command.add_argument(
        "--cosine", type=float, metavar="X", help="meaning: cosine, at least (default: 0.85)"
    )
    command.set_defaults(command=_decontaminate)


def _add(
    commands: Any, name: str, summary: str, description: str, examples: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{description}",
        epilog=f"{examples}\n{epilog}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_sifting(parser: argparse.ArgumentParser, ways: str) -> None:
    parser.add_argument("input", help="prompts: JSONL, CSV, Parquet or Arrow; path, glob, folder or URL")
    _add_out(parser)
    parser.add_argument("--by", metavar="WAYS", help=ways)
    parser.add_argument("--restart", action="store_true", help="begin anew and replace what is there")
    add_storage_options(parser)


def _add_asking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", help="TOML file with the teacher and the workers of a job")
    parser.add_argument("--teacher", metavar="MODEL", help="folder or Hugging Face id of the teacher")
    parser.add_argument("--input", metavar="FILE", help="prompts: path, glob, folder or URL")
    _add_out(parser)
    _add_set(parser)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="what is kept")
    parser.add_argument(
        "--field", help="field of the text; default: prompt, question, instruction, text, turns or messages"
    )
    parser.add_argument("--quiet", action="store_true", help="show trouble only")


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")


def _dedupe(arguments: argparse.Namespace) -> int:
    settings = checked(DedupeSettings, _given(arguments, ("jaccard", "cosine")), "dedupe")
    with _progress(arguments.quiet) as show:
        report = dedupe(_source(arguments), _out(arguments), settings, restart=arguments.restart, show=show)
    return _end(arguments, report)


def _decontaminate(arguments: argparse.Namespace) -> int:
    values = _given(arguments, ("against", "against_field", "words", "cosine"))
    settings = checked(DecontaminateSettings, values, "decontaminate")
    with _progress(arguments.quiet) as show:
        report = decontaminate(
            _source(arguments), _out(arguments), settings, restart=arguments.restart, show=show
        )
    return _end(arguments, report)


def _expand(arguments: argparse.Namespace) -> int:
    from labeler.curation.expand import expand

    document, settings = _asked(arguments, "expand", ExpandSettings, {"template": arguments.template}, ("n",))
    report = expand(
        document, _input_of(document, arguments), _out(arguments), settings, quiet=arguments.quiet
    )
    if not arguments.quiet:
        print(
            f"{report.num_seeds:,} prompts given, {report.num_new:,} new ones{_dropped(report.num_dropped)}\n"
            f"prompts: {arguments.out}\nnext: penumbra label dedupe {arguments.out} --out FILE.jsonl"
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
        _out(arguments),
        settings,
        compare=arguments.compare,
        quiet=arguments.quiet,
    )
    if not arguments.quiet:
        print(
            f"{report.num_judged:,} prompts graded, {report.num_kept:,} kept{_dropped(report.num_dropped)}; "
            f"the five digits have {report.median_mass:.3f} of the probability (median)\n"
            f"kept: {arguments.out}"
        )
        if (agreement := report.agreement) is not None:
            print(
                f"agreement on {agreement.num_prompts:,} prompts: {agreement.same_argmax:.3f} with the same "
                f"digit, rank correlation of the grades {agreement.spearman:.3f}"
            )
    return ExitStatus.DONE if report.num_kept else ExitStatus.FAILED


def _recipe(arguments: argparse.Namespace) -> int:
    from labeler.curation.recipe import checked_recipe, run_recipe

    recipe = checked_recipe(job_document(arguments.recipe, arguments.set), arguments.recipe)
    last = run_recipe(recipe, quiet=arguments.quiet, say=_silent if arguments.quiet else print)
    if not arguments.quiet:
        following = (
            f"penumbra train run --student MODEL --labels {last} --out FOLDER"
            if "label" in recipe.steps
            else f"penumbra label run --teacher MODEL --input {last} --out FOLDER"
        )
        print(f"result: {last}\nnext: {following}")
    return ExitStatus.DONE


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
    values = {**document.pop(section, {}), **_given(arguments, names)}
    values |= {name: path.read_text() for name, path in files.items() if path is not None}
    return document, checked(model, values, section)


def _input_of(document: Mapping[str, Any], arguments: argparse.Namespace) -> Source:
    told = document.get("input", {})
    if not told.get("uri"):
        raise ConfigError("no prompts are given; give --input FILE, or a job with input.uri")
    return Source(str(told["uri"]), arguments.field, told.get("storage_options"))


def _source(arguments: argparse.Namespace) -> Source:
    return Source(arguments.input, arguments.field, read_storage_options(arguments.storage_options))


def _out(arguments: argparse.Namespace) -> Path:
    if arguments.out.suffix != ".jsonl":
        raise ConfigError(f"--out {arguments.out} must end in .jsonl, which is what is written")
    return arguments.out


def _given(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The options that were given; the others keep the defaults of the settings."""
    values = {name: getattr(arguments, name) for name in names}
    if getattr(arguments, "by", None) is not None:
        values["by"] = ways_of(arguments.by)
    return {name: value for name, value in values.items() if value is not None}


def _end(arguments: argparse.Namespace, report: SiftReport) -> int:
    if not arguments.quiet:
        print(told(report, SiftPaths(arguments.out)))
    if report.num_read and not report.num_kept:
        raise ConfigError(f"no record of {report.num_read} is left; see {SiftPaths(arguments.out).dropped}")
    return ExitStatus.DONE


def _silent(text: str) -> None:
    pass


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
    text = f"{report.num_read:,} records read, {report.num_kept:,} kept{_dropped(report.num_dropped)}"
    return text if paths is None else f"{text}\nkept: {paths.kept}\ndropped: {paths.dropped}"


def _dropped(counts: Mapping[str, int]) -> str:
    parts = "; ".join(f"{count:,} {REASONS[reason]}" for reason, count in sorted(counts.items()))
    return f", {sum(counts.values()):,} dropped ({parts})" if parts else ", none dropped"
