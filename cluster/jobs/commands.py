"""What each subcommand does; `__main__.py` parses and calls these."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError, JobRefusedError
from cluster.jobs import dashboard, local
from cluster.jobs.client import EXIT_STATUS_OF_STATE, ClusterClient, ClusterJob
from cluster.jobs.earlier import config_of, drain_sec_of, options_of, storage_options_of
from cluster.jobs.machines import check_machines
from cluster.jobs.people import newest_of, only_one_at_work, owner_here
from cluster.jobs.reaching import client_of, prepared, say_found
from cluster.jobs.submission import (
    STOP_MARGIN_SEC,
    STORE_KEY,
    prepare,
)
from labeler.config.found import load_input_found
from labeler.driver.progress import one_line
from labeler.job.dry_run import estimate
from labeler.job.money.runs import store_cost
from labeler.job.status import read_status
from labeler.on_ray.lacking import remedy_of
from logitstore.common.terminal import printable, printable_line
from logitstore.errors import StoreError
from logitstore.job_objects import JobStatus

TIME_AND_PRICE = (
    "time and price: penumbra label run JOB.toml --dry-run --calibrate 50, where the teacher can run"
)


def submit(args: argparse.Namespace) -> int:
    """Check the job here, send it, and stay with it if asked to."""
    with prepared(args) as (client, job, submission):
        _refuse_busy_store(client, submission.metadata[STORE_KEY])
        if lack := client.lack_of_machines(job.workers):
            print(f"WARNING: {lack}, unless the cluster grows by itself", file=sys.stderr)
        for warning in check_machines(job, client.nodes()):
            print(warning, file=sys.stderr)
        submission_id = client.submit(submission)
    return _submitted(client, submission_id, args)


def resume(args: argparse.Namespace) -> int:
    """Submit an ended job again: the same settings, the same store, only what is missing gets labeled."""
    client = client_of(args)
    earlier = _chosen(client, args)
    if not earlier.has_ended:
        raise JobRefusedError(
            f"job {earlier.submission_id} is {earlier.state.lower()}; follow it with `logs --follow`, "
            "or stop it first"
        )
    _refuse_busy_store(client, earlier.store)
    with tempfile.TemporaryDirectory(prefix="penumbra-submit-") as folder:
        job = config_of(earlier, Path(folder))
        target = Path(folder) / "send"
        target.mkdir()
        submission = prepare(
            job,
            options_of(earlier),
            target,
            owner=owner_here(args.owner),
            resumes=earlier.submission_id,
        )
        submission_id = client.submit(submission)
    return _submitted(client, submission_id, args)


def status(args: argparse.Namespace) -> int:
    """Ray's state and the store's progress of a job, or of the newest one."""
    client = client_of(args)
    job = _chosen(client, args)
    progress, problem = progress_of(job)
    if args.json:
        record = None if progress is None else progress.as_record()
        print(json.dumps(_row(job) | {"progress": record, "progress_error": problem}))
    else:
        print(_line(job))
        if job.message and job.has_ended:
            print(f"  {printable(job.message)}")
        progressed = f"progress unknown here: {problem}" if progress is None else one_line(progress)
        print(f"  {printable(progressed)}")
    return EXIT_STATUS_OF_STATE.get(job.state, 0)


def logs(args: argparse.Namespace) -> int:
    client = client_of(args)
    job = _chosen(client, args)
    if not args.follow:
        sys.stdout.write(client.logs(job.submission_id))
        return 0
    return _follow(client, job.submission_id)


def stop(args: argparse.Namespace) -> int:
    """Drain: units at work are finished within `workers.drain_sec`, the rest is left for `resume`."""
    client = client_of(args)
    at_work = None if args.id else only_one_at_work(client.jobs(), owner_here(args.owner))
    job = at_work or _chosen(client, args)
    if job.has_ended:
        _say(args, f"{job.submission_id} had ended already: {job.state.lower()}")
        return 0
    drain_sec = drain_sec_of(job)
    client.stop(job.submission_id)
    _say(args, f"asked {job.submission_id} to stop; units at work get {drain_sec:g} s to finish")
    patience_sec = drain_sec + 2 * STOP_MARGIN_SEC
    ended = client.wait(job.submission_id, timeout_sec=patience_sec, on_change=lambda _: None)
    _say(args, f"{job.submission_id} has ended: {ended.state.lower()}; continue it with `resume`")
    return 0


def list_jobs(args: argparse.Namespace) -> int:
    jobs = client_of(args).jobs()
    if args.mine:
        owner = owner_here(args.owner)
        jobs = [job for job in jobs if job.owner == owner]
    if args.json:
        print(json.dumps([_row(job) for job in jobs]))
    else:
        print("\n".join(map(_line, jobs)) or "no labeling job on this cluster")
    return 0


def cost(args: argparse.Namespace) -> int:
    """An estimate for a job file; for a job or a store, what all runs of the store have cost so far."""
    if args.id is not None and args.id.endswith((".toml", ".json")):
        _refuse_cluster_options(args, "a job file")
        try:
            job, lines = load_input_found(args.id, args.set, environ={})
            say_found(args, lines)
            plan = estimate(job)
        except StoreError as error:
            raise JobRefusedError(str(error)) from None
        print(json.dumps(plan.plan_record()) if args.json else "\n".join([*plan.in_words(), TIME_AND_PRICE]))
        return 0
    if args.set:
        raise JobRefusedError("--set changes a setting of a job file, but none is given; give JOB.toml")
    uri, options = args.id, None
    if uri is None or not ("://" in uri or os.path.isdir(uri)):
        job = _chosen(client_of(args), args)
        uri, options = job.store, storage_options_of(job)
    else:
        _refuse_cluster_options(args, "a store")
    try:
        spent = store_cost(uri, options)
    except StoreError as error:
        raise ClusterError(str(error)) from None
    if not spent.runs:
        raise ClusterError(f"nothing is known of the cost of {uri} yet: no run has held a device")
    print(json.dumps(spent.as_record()) if args.json else "\n".join(spent.in_words()))
    return 0


def _refuse_cluster_options(args: argparse.Namespace, what: str) -> None:
    """They would be passed over: no cluster is asked about what is read here."""
    names = ("address", "header", "verify", "owner")
    given = " and ".join(f"--{name}" for name in names if getattr(args, name))
    if given:
        raise JobRefusedError(
            f"{given}: no cluster is asked about {what}, as {args.id!r} is; leave it out, or give a job's id"
        )


def _warn(line: str) -> None:
    print(printable(line), file=sys.stderr)


def progress_of(job: ClusterJob) -> tuple[JobStatus | None, str]:
    """What the job's store says, read here with the job's own storage options; or why it cannot be read."""
    try:
        options = storage_options_of(job)
        return read_status(job.store, options, on_wait=_warn), ""
    except (StoreError, OSError, JobRefusedError) as error:
        return None, str(error)


def show_dashboard(args: argparse.Namespace) -> int:
    arguments = [f"--port={args.port}"]
    if args.tokenizer:
        arguments.append(f"--tokenizer={args.tokenizer}")
    return dashboard.serve(args.target, arguments, args.header, args.verify)


def up(args: argparse.Namespace) -> int:
    cluster = local.up(args.local, args.state, cpus_per_node=args.cpus)
    if args.json:
        print(json.dumps({"address": cluster.address, "gcs_address": cluster.gcs_address}))
    else:
        _say(args, f"{args.local} nodes are up; logs in {cluster.folder}")
        print(cluster.address)
    return 0


def down(args: argparse.Namespace) -> int:
    num_running, num_nodes = local.down(args.state)
    others = "" if num_running == num_nodes else "; the others had ended before"
    _say(args, f"stopped {num_running} of {num_nodes} nodes{others}")
    return 0


def _refuse_busy_store(client: ClusterClient, store: str) -> None:
    for job in client.jobs():
        if job.store == store and not job.has_ended:
            raise JobRefusedError(
                f"job {job.submission_id} is {job.state.lower()} on the store {store}; follow or stop it, or "
                "write to another store: two jobs on one store would only wait for each other"
            )


def _submitted(client: ClusterClient, submission_id: str, args: argparse.Namespace) -> int:
    if args.json:
        print(json.dumps({"id": submission_id, "address": client.address}), flush=True)
    else:
        print(submission_id, flush=True)
    if args.follow:
        return _follow(client, submission_id)
    if args.wait:
        job = client.wait(submission_id, on_change=lambda job: _say(args, _line(job)))
        return _ended(job)
    return 0


def _follow(client: ClusterClient, submission_id: str) -> int:
    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    client.job(submission_id)
    return _ended(client.follow(submission_id, write))


def _ended(job: ClusterJob) -> int:
    if job.state == "FAILED":
        print(printable(f"{job.submission_id} failed: {job.message}"), file=sys.stderr)
        if remedy := remedy_of(job.message):
            print(remedy, file=sys.stderr)
    return EXIT_STATUS_OF_STATE[job.state]


def _chosen(client: ClusterClient, args: argparse.Namespace) -> ClusterJob:
    """The job of the id; without one the newest of one's own, never somebody else's."""
    if args.id is not None:
        return client.job(args.id)
    return newest_of(client.jobs(), owner_here(args.owner), address=client.address)


def _row(job: ClusterJob) -> dict[str, Any]:
    return {
        "id": job.submission_id,
        "state": job.state,
        "owner": job.owner,
        "store": job.store,
        "started": job.started,
        "seconds": round(job.seconds, 1),
        "exit_code": job.exit_code,
        "message": job.message,
        "resumes": job.resumes,
    }


def _line(job: ClusterJob) -> str:
    line = (
        f"{job.submission_id}  {job.state:<9}  {job.started or '-':<20}  {job.seconds:>7.0f} s  "
        f"{job.owner or '-':<16}  {job.store}"
    )
    return printable_line(line)


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.quiet and not getattr(args, "json", False):
        print(printable(text), flush=True)
