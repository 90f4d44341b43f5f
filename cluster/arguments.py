"""The command line of `penumbra cluster`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from cluster.describe import render
from cluster.describe.settings.cluster import ClusterConfig
from cluster.jobs import commands, node_check
from cluster.jobs.local_state import default_state_folder
from cluster.rounds import command as round_commands
from cluster.rounds.config import RoundsFile
from logitstore.common.command import Program, new_parser
from logitstore.common.exit_status import EXIT_STATUSES
from logitstore.common.options import count, positive
from logitstore.common.section import Section
from logitstore.common.settings_list import add_form, listed


def build_parser(program: Program) -> argparse.ArgumentParser:
    parser = new_parser(program)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary}\n\nexample: penumbra cluster {example}",
            epilog=EXIT_STATUSES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, quiet=False, json=False)
        sub.add_argument("--quiet", action="store_true", help="print only results and errors")
        return sub

    _add_submit(add)
    _add_job_commands(add)
    _add_local(add)
    rounds = add(
        "rounds",
        round_commands.run,
        "A student learns from its own words: it answers, the teacher scores, training goes on",
        "rounds rounds.toml",
    )
    rounds.add_argument("rounds", metavar="ROUNDS.toml", help="folder, job and train of the rounds")
    rounds.add_argument("--json", action="store_true", help="the ledger as one JSON object")
    page = add(
        "dashboard",
        commands.show_dashboard,
        "Show a store, or a cluster's jobs, as a page",
        "dashboard runs/demo",
    )
    page.add_argument("target", metavar="STORE|ADDRESS", help="URI of a store, or http://HEAD:8265")
    _add_access(page)
    page.add_argument("--port", type=count, default=8400, help="loopback port, 0 for any (default 8400)")
    page.add_argument("--tokenizer", help="folder or tokenizer.json for the tokens' text")
    described = add(
        "render",
        render.run,
        "Describe a cluster: Ray YAML, KubeRay, Slurm, SkyPilot, Dockerfile, Grafana, Prometheus",
        "render cluster.toml --kind kuberay-cluster",
    )
    render.add_arguments(described)
    listing = add("settings", _settings, "Every setting of a description, or of rounds", "settings rounds")
    listing.add_argument(
        "file", nargs="?", choices=tuple(FILES), default="cluster", help="of which file (default: cluster)"
    )
    add_form(listing)
    return parser


FILES: dict[str, type[Section]] = {"cluster": ClusterConfig, "rounds": RoundsFile}


def _settings(args: argparse.Namespace) -> int:
    print(listed(FILES[args.file], args.form))
    return 0


Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def _add_submit(add: Add) -> None:
    sub = add(
        "submit", commands.submit, "Check a labeling job and run it on a cluster", "submit job.toml --follow"
    )
    _add_job_file(sub)
    _add_staying(sub)
    check = add(
        "check",
        node_check.check,
        "What the nodes of a cluster have for a job, and what they lack",
        "check job.toml --json",
    )
    _add_job_file(check)
    check.add_argument("--json", action="store_true", help="print JSON")


def _add_job_file(sub: argparse.ArgumentParser) -> None:
    """A job's file, and how it would run on the cluster."""
    sub.add_argument("job", metavar="JOB.toml", help="the job file, as for `penumbra label run`")
    sub.add_argument(
        "--set", action="append", default=[], metavar="S.KEY=V", help="change a setting of the job"
    )
    _add_address(sub)
    sub.add_argument(
        "--files",
        choices=("same", "ship"),
        help="local paths are the same on every node, or input travels along (default: same where the head "
        "is this machine, else ship)",
    )
    sub.add_argument(
        "--python", help="interpreter on the cluster (default: `python`; on this machine, this one)"
    )
    sub.add_argument(
        "--ship-code", action="store_true", help="send this labeler along, for a cluster without it"
    )
    sub.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="environment, no secrets"
    )
    sub.add_argument(
        "--runtime-env",
        metavar="FILE",
        help="YAML or JSON with parts of Ray's runtime environment (pip, uv, conda), for a cluster that "
        "lacks a package",
    )
    _add_owner(sub)


def _add_job_commands(add: Add) -> None:
    status = add(
        "status", commands.status, "Progress of a job, from its store", "status label-demo-1a2b3c --json"
    )
    logs = add("logs", commands.logs, "The log of a job", "logs label-demo-1a2b3c --follow")
    logs.add_argument("--follow", action="store_true", help="go on until the job has ended")
    stop = add("stop", commands.stop, "Let a job finish what it is at, and end it", "stop label-demo-1a2b3c")
    resume = add("resume", commands.resume, "Continue an ended job", "resume label-demo-1a2b3c --follow")
    for sub in (status, logs, stop, resume):
        default = "the one of yours that has not ended" if sub is stop else "the newest of yours"
        sub.add_argument("id", nargs="?", help=f"job id (default: {default}); others' jobs only by their id")
    _add_staying(resume)
    listing = add("list", commands.list_jobs, "The labeling jobs of a cluster, newest first", "list --json")
    cost = add("cost", commands.cost, "What a job will cost, or has cost", "cost job.toml")
    cost.add_argument(
        "id",
        nargs="?",
        metavar="JOB.toml|ID|STORE",
        help="a file: estimated; else all runs of its store (default: that of the newest of yours)",
    )
    cost.add_argument(
        "--set", action="append", default=[], metavar="S.KEY=V", help="change a setting of the job"
    )
    listing.add_argument("--mine", action="store_true", help="only your own")
    for sub in (status, logs, stop, resume, listing, cost):
        _add_owner(sub)
    for sub in (status, logs, stop, resume, listing, cost):
        _add_address(sub)
    for sub in (status, listing, cost):
        sub.add_argument("--json", action="store_true", help="print JSON")


def _add_local(add: Add) -> None:
    up = add("up", commands.up, "Start a Ray cluster of several nodes on this machine", "up --local 2")
    up.add_argument(
        "--local", type=positive, required=True, metavar="N", help="number of nodes, the head included"
    )
    default_cpus = max(1, (os.cpu_count() or 1) // 2)
    up.add_argument(
        "--cpus", type=positive, default=default_cpus, help=f"CPUs of each node (default {default_cpus})"
    )
    up.add_argument("--json", action="store_true", help="print the addresses as JSON")
    down = add("down", commands.down, "Stop the cluster that `up` started, and nothing else", "down")
    for sub in (up, down):
        sub.add_argument(
            "--state",
            type=Path,
            default=default_state_folder(),
            help="where `up` notes what runs (default: ~/.local/state/penumbra, or penumbra in "
            "XDG_STATE_HOME); other commands look there alone, else name the cluster by --address",
        )


def _add_address(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--address",
        help="dashboard of the cluster's head, http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS, where a "
        "password is out of sight; else the local cluster that is up)",
    )
    _add_access(sub)


def _add_access(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME=VALUE|@FILE",
        help="a header that a proxy before the cluster wants; everyone on this machine can read a command "
        "line, so keep a secret in FILE, a line for each header, or in RAY_JOB_HEADERS, as for `ray job`",
    )
    sub.add_argument("--verify", metavar="CA|false", help="certificates to check the server's by, or false")


def _add_owner(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--owner", help="who you are (default: PENUMBRA_OWNER, else user@host)")


def _add_staying(sub: argparse.ArgumentParser) -> None:
    staying = sub.add_mutually_exclusive_group()
    staying.add_argument(
        "--wait", action="store_true", help="return when the job has ended, with its exit status"
    )
    staying.add_argument("--follow", action="store_true", help="the same, and show its log")
    sub.add_argument("--json", action="store_true", help="print the job's id as JSON")
