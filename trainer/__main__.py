"""`penumbra train run|eval|sweep|parity|settings`: a student learns from stored labels; how close it came."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from logitstore.common.command import Program, new_parser, run_program
from logitstore.common.config_file import ConfigError
from logitstore.common.exit_status import ExitStatus
from logitstore.common.options import amount, positive, seeds
from logitstore.common.settings_list import add_form, listed
from trainer.parity.arguments import add_parity
from trainer.run.config import TrainConfig, checked_config, config_document, resolved
from trainer.run.found import find_settings
from trainer.run.settings.student import check_names
from trainer.run.watch.hushing import hush_libraries
from trainer.run.watch.sigterm import StoppedError, stopping_at_sigterm
from trainer.sweep.grid import DEFAULT_SEEDS, SEED, Axis, points_of, read_axis
from trainer.sweep.summary import FIGURES, record

PROGRAM = Program(
    name="train",
    description="Train students from logit stores, without the teacher.",
    extra="train",
    examples="""examples:
  penumbra train run --student Qwen/Qwen3-0.6B --labels build/labels --out build/student
  penumbra train run train.toml --set training.max_steps=200
  penumbra train eval train.toml --model students/small --json
  penumbra train sweep train.toml --out build/sweep \\
      --over loss.temperature=1,2 --over loss.alpha=0.5,0.9 --seeds 2
  penumbra train settings

A run that was stopped goes on from its last checkpoint when the same command is given again, also with more
steps or other machines; at SIGTERM it saves one first. Other settings that change the student are refused
without --restart, and a finished student is never replaced without it.
""",
    interrupted="interrupted; the same command goes on from checkpoints, finished runs and answers so far",
)


def main(argv: Sequence[str] | None = None) -> int:
    def command() -> int:
        arguments = build_parser().parse_args(argv)
        try:
            with stopping_at_sigterm():
                return arguments.command(arguments)
        except StoppedError as stopped:
            if _is_first_process():
                print(f"{PROGRAM.title}: {stopped}", file=sys.stderr)
            return ExitStatus.STOPPED

    return run_program(PROGRAM, command)


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(PROGRAM)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, aliases, text, command in (
        ("run", ["train"], "train a student", _train),
        ("eval", ["evaluate"], "evaluate a saved student", _evaluate),
        ("sweep", [], "train a student for every combination of settings, and compare them", _sweep),
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
        if name == "sweep":
            _add_sweep(one)
        elif name == "run":
            one.add_argument(
                "--restart",
                action="store_true",
                help="begin anew; replaces the student and removes the checkpoints in the output folder",
            )
        else:
            one.add_argument("--model", help="folder of the student; default: the run's output folder")
            one.add_argument(
                "--picture",
                type=_picture,
                metavar="FILE",
                help="draw how often teacher and student are right at each confidence (.png or .svg)",
            )
    add_parity(commands)
    settings = commands.add_parser("settings", help="every setting of a run, with its default and meaning")
    add_form(settings)
    settings.set_defaults(command=_settings)
    return parser


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png or .svg, which says how it is drawn")
    return path


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.description = """Trains a student for every combination of the --over values and seeds, from the
same labels. Given again, it goes on with what is not finished. output.folder gets runs/, sweep.json and
sweep.html, a page of curves with the spread of seeds, renewed after every run; the recommendation says how
sure it is."""
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE,VALUE",
        help="values of one setting, such as loss.temperature=1,2 or data.top_k=16,64 (repeatable)",
    )
    parser.add_argument(
        "--seeds",
        type=seeds,
        metavar="N",
        help=f"training.seed and data.seed = 0..N-1 (default {DEFAULT_SEEDS})",
    )
    parser.add_argument(
        "--by", choices=FIGURES, default="kl", help="the held-out figure that decides (default kl)"
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="runs side by side (default: one for each GPU; on Ray, as many as the cluster has room for)",
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS"),
        metavar="HOST:PORT",
        help="Ray cluster on which the runs are tasks; output.folder is on storage that its nodes share "
        "(default: RAY_ADDRESS; without either, processes on this machine)",
    )
    parser.add_argument("--cpus", type=positive, metavar="N", help="of a run on Ray (default 1)")
    parser.add_argument(
        "--gpus",
        type=amount,
        metavar="N",
        help="of a run on Ray, 0.5 for two runs on one (default: 1 where the cluster has GPUs)",
    )
    parser.add_argument("--restart", action="store_true", help="run what is finished again")


def _sweep(arguments: argparse.Namespace) -> int:
    if not arguments.address and (arguments.cpus is not None or arguments.gpus is not None):
        raise ConfigError("--cpus and --gpus are of runs on a Ray cluster; give --address too, or use --jobs")
    document = _document(arguments)
    checked_config(document, arguments.config)
    axes = [read_axis(text) for text in arguments.over]
    if not any(axis.name == SEED for axis in axes):
        axes.append(Axis(SEED, tuple(range(arguments.seeds or DEFAULT_SEEDS))))
    elif arguments.seeds is not None:
        raise ConfigError(
            f"--seeds {arguments.seeds} and --over {SEED} both say which seeds are tried; give one of them"
        )
    if arguments.dry_run:
        folder = document["output"]["folder"]
        for point in points_of(document, axes, folder, arguments.config):
            print(point.config.output.folder)
        return 0
    from trainer.sweep.command import SweepOptions, report, sweep  # torch takes seconds to import
    from trainer.sweep.on_ray import RayPlace

    quiet = arguments.quiet or arguments.json
    place = RayPlace(arguments.address, arguments.cpus or 1, arguments.gpus) if arguments.address else None
    options = SweepOptions(arguments.by, arguments.jobs, place, arguments.restart, quiet)
    outcomes = sweep(document, axes, options, arguments.config)
    if arguments.json:
        print(json.dumps(record(outcomes, axes, arguments.by)))
    else:
        print(report(outcomes, document["output"]["folder"], arguments.by))
    return ExitStatus.FAILED if any(one.metrics is None for one in outcomes) else ExitStatus.DONE


def _config(arguments: argparse.Namespace) -> TrainConfig | None:
    """The run's configuration; None where only that was to be shown."""
    config = checked_config(_document(arguments), arguments.config)
    if not arguments.dry_run:
        return config
    print(json.dumps(resolved(config), indent=2))
    return None


def _document(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the run is told; without a file, what was found about it is said on standard error."""
    options = {
        "student.model": arguments.student,
        "data.stores": arguments.labels,
        "output.folder": arguments.out,
    }
    document = config_document(arguments.config, arguments.set, options)
    trains_here = arguments.command is not _evaluate and not getattr(arguments, "address", None)
    # The students of a sweep over them are checked by it, each; this one is none of its runs'.
    is_replaced = any(text.lstrip().startswith("student.") for text in getattr(arguments, "over", ()))
    if trains_here and not (is_replaced or arguments.dry_run) and find_spec("torch") is not None:
        check_names(checked_config(document, arguments.config).student)  # before torch is loaded: seconds
    if arguments.config is None and arguments.command is not _evaluate:
        checked_config(document, None)  # what is missing is told before a store is opened
        found = find_settings(document, trains_here=trains_here)
        if not (arguments.quiet or arguments.json) and _is_first_process():
            print(*found, sep="\n", file=sys.stderr)
    return document


def _is_first_process() -> bool:
    """Whether this is the one of torchrun's processes that tells what all of them do."""
    return os.environ.get("RANK", "0") == "0"


def _settings(arguments: argparse.Namespace) -> int:
    print(listed(TrainConfig, arguments.form))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    if config is None:
        return 0
    quiet = arguments.quiet or arguments.json
    hush_libraries(bars=not quiet)
    from trainer.run.result.report import training_table  # torch and transformers take seconds to import
    from trainer.run.train import train

    metrics = train(config, restart=arguments.restart, quiet=quiet)
    if not _is_first_process():
        return 0
    if arguments.json:
        print(json.dumps(dataclasses.asdict(metrics)))
    else:
        print(training_table(metrics, config.output.folder))
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _evaluate(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    if config is None:
        return 0
    hush_libraries(bars=not (arguments.quiet or arguments.json))
    from trainer.run.evaluation import evaluate_model
    from trainer.run.result.report import evaluation_table

    found = evaluate_model(config, arguments.model, tell=_tell).to_dict()
    if arguments.picture is not None:
        from trainer.run.result.pictures import draw_reliability

        draw_reliability(arguments.picture, found["calibration"])
    if arguments.json:
        print(json.dumps(found))
    else:
        print(evaluation_table(None, found, found["teacher"], found["calibration"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
