"""`python -m labeler run|status`: a teacher labels prompts into a store; how far a store's job is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import logitstore
from labeler.config.loading import ConfigError, load_job
from logitstore.common.extras import explain_missing
from logitstore.errors import StoreError

EPILOG = """examples:
  python -m labeler run job.toml
  python -m labeler run job.toml --set workers.replicas=2 --set labels.top_k=32 --dry-run
  python -m labeler run --set teacher.model=DIR --set input.uri=prompts.jsonl \\
      --set input.kind=prompt --set labels.mode=generate --set output.uri=build/store
  python -m labeler status build/store --watch

exit status: 0 done; 1 units failed, or too many records were rejected; 2 wrong usage, configuration, input
or store, or not one record can be labeled (nothing was started); 3 another driver works on the store; 4
stopped by a signal. After 1, 3 and 4 the same command goes on where the job stopped:
nothing is labeled twice."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return _status(arguments) if arguments.command == "status" else _run(arguments)
    except (ConfigError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {explain_missing(error, 'label')} (without a GPU: label-cpu)", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m labeler",
        description="Label prompts with a teacher, on Ray and vLLM, into a logit store.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=logitstore.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    run = commands.add_parser("run", help="label what is not labeled yet", epilog=EPILOG, formatter_class=raw)
    run.add_argument("job", nargs="?", help="TOML file (or the job.json of a store); or give all by --set")
    run.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    run.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and the plan, start nothing"
    )
    run.add_argument(
        "--calibrate",
        type=int,
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
    status = commands.add_parser("status", help="how far a job is", epilog=EPILOG, formatter_class=raw)
    status.add_argument("store", help="folder or URL of the store")
    status.add_argument("--watch", action="store_true", help="go on until the job is over")
    for command in (run, status):
        command.add_argument("--json", action="store_true", help="print the status as JSON on stdout")
        command.add_argument("--quiet", action="store_true", help="show trouble only")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    job = load_job(arguments.job, arguments.set)
    if arguments.calibrate and not arguments.dry_run:
        raise ConfigError("--calibrate estimates what a job will cost; give it together with --dry-run")
    if arguments.dry_run:
        from labeler.job.dry_run import dry_run

        print(dry_run(job, calibrate=arguments.calibrate, as_json=arguments.json))
        return 0
    from labeler.driver.progress import report
    from labeler.driver.run import RunOptions, run

    quiet = arguments.quiet or arguments.json
    exit_status, status = run(
        job, RunOptions(quiet=quiet, log_file=arguments.log_file, relabel_changed=arguments.relabel_changed)
    )
    if status is not None and arguments.json:
        print(status.as_json())
    elif status is not None and not arguments.quiet:
        print(report(status))
    return int(exit_status)


def _status(arguments: argparse.Namespace) -> int:
    from labeler.driver.progress import report, watch
    from labeler.job.status import read_status

    if arguments.watch:
        status = watch(lambda: read_status(arguments.store), every_sec=1.0)
    else:
        status = read_status(arguments.store)
    print(json.dumps(json.loads(status.as_json()), indent=1) if arguments.json else report(status))
    return 0


if __name__ == "__main__":
    sys.exit(main())
