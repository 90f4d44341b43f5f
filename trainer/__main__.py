"""`python -m trainer train|eval`: a student learns from stored labels; how close it came."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

import logitstore
from logitstore.common.extras import explain_missing
from logitstore.errors import StoreError
from trainer.run.config import ConfigError, TrainConfig, load_config, resolved

EPILOG = """examples:
  python -m trainer train train.toml --set training.max_steps=200
  python -m trainer eval train.toml --model build/student --json

exit status: 0 done; 2 wrong usage, configuration, or a store that does not fit the student; 3 a store could
not be read. A run that was stopped goes on from its last checkpoint when the same command is given again,
also with more steps or other machines; other settings that change the student are refused without
--restart, and a finished student is never replaced without it."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        config = load_config(arguments.config, arguments.set)
        if arguments.dry_run:
            print(json.dumps(resolved(config), indent=2))
            return 0
        return _train(config, arguments) if arguments.command == "train" else _evaluate(config, arguments)
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (FileNotFoundError, ValueError)) else 3
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {explain_missing(error, 'train')}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Train students from logit stores, without the teacher.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=logitstore.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("train", "train a student"), ("eval", "evaluate a saved student")):
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("config", help="TOML file (or the train.json of a run)")
        command.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
        command.add_argument("--dry-run", action="store_true", help="print all settings and stop")
        command.add_argument("--quiet", action="store_true", help="no progress bar")
        command.add_argument("--json", action="store_true", help="print the metrics as JSON")
        if name == "train":
            command.add_argument(
                "--restart",
                action="store_true",
                help="begin anew; replaces the student and removes the checkpoints in the output folder",
            )
        else:
            command.add_argument("--model", help="folder of the student; default: the run's output folder")
    return parser


def _train(config: TrainConfig, arguments: argparse.Namespace) -> int:
    from trainer.run.report import training_table  # torch and transformers take seconds to import
    from trainer.run.train import train

    metrics = train(config, restart=arguments.restart, quiet=arguments.quiet or arguments.json)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(metrics)))
    else:
        print(training_table(metrics, config.output.folder))
    return 0


def _evaluate(config: TrainConfig, arguments: argparse.Namespace) -> int:
    from trainer.run.report import evaluation_table
    from trainer.run.train import evaluate_model

    evaluation = evaluate_model(config, arguments.model or config.output.folder)
    print(
        json.dumps(evaluation.to_dict()) if arguments.json else evaluation_table(None, evaluation.to_dict())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
