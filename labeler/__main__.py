"""`penumbra label`: a teacher labels prompts into a store; which prompts are worth labeling."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from labeler.config.found import load_found_job
from labeler.config.loading import JobConfig
from labeler.curation.commands.registered import add_curation_commands
from logitstore.cli.context import progress_bar
from logitstore.common.command import Program, new_parser, run_program
from logitstore.common.config_file import ConfigError
from logitstore.common.exit_status import ExitStatus
from logitstore.common.options import add_storage_options, count, read_storage_options
from logitstore.common.settings_list import add_form, listed
from logitstore.common.terminal import printable
from logitstore.exchange.by_suffix import export_file, exported_too, refuse_taken
from logitstore.inputs.listing import list_files
from logitstore.store import LogitStore

PROGRAM = Program(
    name="label",
    description="Label prompts with a teacher, on Ray and vLLM, into a logit store.",
    extra="label",
    examples="""examples:
  penumbra label run --teacher Qwen/Qwen3-0.6B --input prompts.jsonl --out build/labels
  penumbra label run --teacher DIR --input prompts.jsonl --out build/labels.parquet --set labels.top_k=32
  penumbra label run job.toml --set workers.replicas=2 --dry-run
  penumbra label status labels/store --watch
  penumbra label settings

After the statuses 1, 4 and 5 the same command goes on where the job stopped: nothing is labeled twice.
""",
)


def main(argv: Sequence[str] | None = None) -> int:
    def command() -> int:
        arguments = build_parser().parse_args(argv)
        return arguments.command(arguments)

    return run_program(PROGRAM, command)


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(PROGRAM)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (_add_run(commands), _add_status(commands), _add_nodes(commands)):
        command.epilog, command.formatter_class = PROGRAM.epilog, argparse.RawDescriptionHelpFormatter
        command.add_argument("--json", action="store_true", help="print JSON on stdout")
        command.add_argument("--quiet", action="store_true", help="show trouble only")
    add_curation_commands(commands, PROGRAM.epilog.removeprefix(PROGRAM.examples))
    settings = commands.add_parser("settings", help="every setting of a job, with its default and meaning")
    add_form(settings)
    settings.set_defaults(command=_settings)
    return parser


def _add_run(commands: Any) -> argparse.ArgumentParser:
    run = commands.add_parser("run", help="label what is not labeled yet")
    run.add_argument("job", nargs="?", help="TOML file (or the job.json of a store) with further settings")
    run.add_argument("--teacher", metavar="MODEL", help="teacher.model: a Hugging Face id or a folder")
    run.add_argument("--input", metavar="FILE", help="input.uri; its kind and mode are found and said")
    run.add_argument(
        "--out",
        metavar="STORE",
        help="output.uri: folder or URL of the store; with .parquet, .arrow, .jsonl or .npz at its end, the "
        "store lies beside that file, which is exported at the end",
    )
    _add_set(run)
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="show what the teacher will see of the first records, and the plan; start nothing",
    )
    run.add_argument("--settings", action="store_true", help="with --dry-run: every setting of the job too")
    run.add_argument(
        "--calibrate",
        type=count,
        default=0,
        metavar="RECORDS",
        help="with --dry-run: label so many records to estimate time, bytes and cost",
    )
    run.add_argument(
        "--relabel-changed",
        action="store_true",
        help="label records again whose content changed, under the same id, since they were labeled",
    )
    run.add_argument("--log-file", help="structured log; default: logs/ in a local store")
    run.set_defaults(command=_run)
    return run


def _add_status(commands: Any) -> argparse.ArgumentParser:
    status = commands.add_parser("status", help="how far a job is")
    status.add_argument("store", help="folder or URL of the store")
    status.add_argument("--watch", action="store_true", help="go on until the job is over")
    add_storage_options(status)
    status.set_defaults(command=_status)
    return status


def _add_nodes(commands: Any) -> argparse.ArgumentParser:
    nodes = commands.add_parser(
        "nodes", help="what the nodes of a Ray cluster have for a job, and what they lack"
    )
    nodes.add_argument("job", help="TOML file of the job; workers.address or RAY_ADDRESS is the cluster")
    _add_set(nodes)
    nodes.set_defaults(command=_nodes)
    return nodes


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")


def _run(arguments: argparse.Namespace) -> int:
    out, export = exported_too(arguments.out)
    job = _job(arguments, out)
    if arguments.settings and not arguments.dry_run:
        raise ConfigError("--settings shows what a job is set to; give it together with --dry-run")
    if arguments.calibrate and not arguments.dry_run:
        raise ConfigError("--calibrate estimates what a job will cost; give it together with --dry-run")
    if export is not None:
        files = list_files(job.input.uri, storage_options=job.input.storage_options)
        refuse_taken(export, job.output.uri, [path.removeprefix("file://") for path, _ in files])
    if arguments.dry_run:
        from labeler.job.dry_run import dry_run
        from labeler.job.segment_colours import paint_for
        from labeler.on_ray.gpus import check_gpus_for_dry_run

        report_of_dry_run, nothing = dry_run(
            job,
            calibrate=arguments.calibrate,
            as_json=arguments.json,
            with_settings=arguments.settings,
            paint=paint_for(sys.stdout, os.environ),
        )
        print(report_of_dry_run)
        if nothing:
            raise ConfigError(nothing)
        if warning := check_gpus_for_dry_run(job):
            print(f"WARNING: {warning}", file=sys.stderr)
        return 0
    from labeler.driver.progress import report
    from labeler.driver.run import RunOptions, run

    quiet = arguments.quiet or arguments.json
    exit_status, status = run(
        job, RunOptions(quiet=quiet, log_file=arguments.log_file, relabel_changed=arguments.relabel_changed)
    )
    if export is not None and exit_status == ExitStatus.DONE:
        with progress_bar(arguments) as progress:
            count = export_file(LogitStore.open(job.output.uri), export, progress)
        if not quiet:
            print(f"{count} to {export}")
    elif export is not None and not quiet:
        print(f"{export} is not written, since not everything is labeled", file=sys.stderr)
    if arguments.json:
        print(status.as_json())
    elif not arguments.quiet:
        print(report(status))
    return int(exit_status)


def _job(arguments: argparse.Namespace, out: str | None) -> JobConfig:
    """The job of the command line, with what was found about it said on standard error."""
    options = {"teacher.model": arguments.teacher, "input.uri": arguments.input, "output.uri": out}
    job, found = load_found_job(arguments.job, arguments.set, options=options)
    if not (arguments.quiet or arguments.json):
        print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    return job


def _status(arguments: argparse.Namespace) -> int:
    from labeler.driver.progress import report, watch
    from labeler.job.status import read_status

    options = read_storage_options(arguments.storage_options)
    status = read_status(
        arguments.store, options, on_wait=lambda line: print(printable(line), file=sys.stderr)
    )
    if arguments.watch:
        status = watch(lambda: read_status(arguments.store, options), every_sec=1.0)
    print(json.dumps(json.loads(status.as_json()), indent=1) if arguments.json else report(status))
    return 0


def _nodes(arguments: argparse.Namespace) -> int:
    from labeler.on_ray.node_probes import look_at_nodes

    job, _ = load_found_job(arguments.job, arguments.set)
    seen = look_at_nodes(job, lambda line: print(line, file=sys.stderr))
    if arguments.json:
        print(json.dumps(seen.as_record()))
    else:
        print(*seen.in_words(), sep="\n")
    if not seen.problem:
        return int(ExitStatus.DONE)
    print(f"error: {seen.problem}", file=sys.stderr)
    return int(ExitStatus.WRONG)


def _settings(arguments: argparse.Namespace) -> int:
    print(listed(JobConfig, arguments.form))
    return 0


if __name__ == "__main__":
    sys.exit(main())
