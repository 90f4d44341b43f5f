"""`penumbra train run|eval|settings`: a student learns from stored labels; how close it came."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from logitstore.common.command import Program, new_parser, run_program
from logitstore.common.settings_list import add_form, listed
from trainer.run.config import TrainConfig, checked_config, config_document, resolved
from trainer.run.found import find_settings

PROGRAM = Program(
    name="train",
    description="Train students from logit stores, without the teacher.",
    extra="train",
    examples="""examples:
  penumbra train run --student Qwen/Qwen3-0.6B --labels build/labels --out build/student
  penumbra train run train.toml --set training.max_steps=200
  penumbra train eval train.toml --model students/small --json
  penumbra train settings

A run that was stopped goes on from its last checkpoint when the same command is given again, also with more
steps or other machines; other settings that change the student are refused without --restart, and a finished
student is never replaced without it.
""",
    interrupted="interrupted; the same command goes on from the last checkpoint, if one was saved",
)


def main(argv: Sequence[str] | None = None) -> int:
    def command() -> int:
        arguments = build_parser().parse_args(argv)
        return arguments.command(arguments)

    return run_program(PROGRAM, command)


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(PROGRAM)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, aliases, text, command in (
        ("run", ["train"], "train a student", _train),
        ("eval", ["evaluate"], "evaluate a saved student", _evaluate),
    ):
        one = commands.add_parser(
            name,
            aliases=aliases,
            help=text,
            description=text,
            epilog=PROGRAM.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument("config", nargs="?", help="TOML file (or the train.json of a run)")
        one.add_argument("--student", metavar="MODEL", help="student.model: a Hugging Face id or a folder")
        one.add_argument("--labels", metavar="STORE", help="data.stores: folder or URL of a store")
        one.add_argument("--out", metavar="DIR", help="output.folder: gets the student")
        one.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
        one.add_argument("--dry-run", action="store_true", help="print all settings and stop")
        one.add_argument("--quiet", action="store_true", help="no progress bar")
        one.add_argument("--json", action="store_true", help="print the metrics as JSON")
        one.set_defaults(command=command)
        if name == "run":
            one.add_argument(
                "--restart",
                action="store_true",
                help="begin anew; replaces the student and removes the checkpoints in the output folder",
            )
        else:
            one.add_argument("--model", help="folder of the student; default: the run's output folder")
    settings = commands.add_parser("settings", help="every setting of a run, with its default and meaning")
    add_form(settings)
    settings.set_defaults(command=_settings)
    return parser


def _config(arguments: argparse.Namespace) -> TrainConfig | None:
    """The run's configuration; None where only that was to be shown.

    Without a file, what was found about the run is said on standard error.
    """
    options = {
        "student.model": arguments.student,
        "data.stores": arguments.labels,
        "output.folder": arguments.out,
    }
    document = config_document(arguments.config, arguments.set, options)
    if arguments.config is None and arguments.command is _train:
        checked_config(document, None)  # what is missing is told before a store is opened
        found = find_settings(document)
        if not (arguments.quiet or arguments.json):
            print(*found, sep="\n", file=sys.stderr)
    config = checked_config(document, arguments.config)
    if not arguments.dry_run:
        return config
    print(json.dumps(resolved(config), indent=2))
    return None


def _settings(arguments: argparse.Namespace) -> int:
    print(listed(TrainConfig, arguments.form))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    if config is None:
        return 0
    from trainer.run.report import training_table  # torch and transformers take seconds to import
    from trainer.run.train import train

    metrics = train(config, restart=arguments.restart, quiet=arguments.quiet or arguments.json)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(metrics)))
    else:
        print(training_table(metrics, config.output.folder))
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    if config is None:
        return 0
    from trainer.run.report import evaluation_table
    from trainer.run.train import evaluate_model

    evaluation = evaluate_model(config, arguments.model or config.output.folder)
    print(
        json.dumps(evaluation.to_dict()) if arguments.json else evaluation_table(None, evaluation.to_dict())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
