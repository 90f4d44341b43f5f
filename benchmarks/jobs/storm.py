"""A real job while its workers are killed at random, against the same job left alone.

    penumbra bench storm --set teacher.model=DIR --set input.uri=gsm8k.jsonl \\
        --set input.kind=prompt_response --set input.fields.prompt=question --set workers.replicas=2

Both stores must hold every record of the input exactly once, and the same labels but for what an engine's
batches change: the same tokens computed beside others give logits that differ in the last bits. What is
finished stays below --out, so the command given again goes on.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.jobs.running_job import RunningJob, started, verify
from benchmarks.report.results import Figure, Result, publish
from labeler.config.loading import load_job
from labeler.job.status import read_status
from logitstore.common.config_file import ConfigError
from logitstore.common.options import above_zero
from logitstore.job_objects import JobStatus
from logitstore.records import LabeledSequence
from logitstore.store import LogitStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="of the job")
    parser.add_argument(
        "--kill-every", type=above_zero, default=20.0, metavar="SEC", help="mean time (default 20)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the times and victims of the kills")
    parser.add_argument("--out", type=Path, default=Path("build/storm"), help="folder of stores and JSON")
    parser.add_argument("--quiet", action="store_true", help="print no table")


def run(args: argparse.Namespace) -> int:
    if any(override.startswith("output.uri") for override in args.set):
        raise ValueError("output.uri is chosen here, below --out; leave it out of --set")
    stores = {name: args.out / name for name in ("undisturbed", "disturbed")}
    statuses: dict[str, JobStatus] = {}
    num_kills = 0
    for name, store in stores.items():
        overrides = [*args.set, f"output.uri={store.absolute()}"]
        with started(overrides) as job:
            rng = random.Random(args.seed) if name == "disturbed" else None
            num_kills += watch(job, rng, args.kill_every)
        check(store, overrides)
        statuses[name] = read_status(str(store))
    undisturbed, disturbed = (LogitStore.open(store) for store in stores.values())
    publish(
        build_result(undisturbed, disturbed, num_kills, statuses["disturbed"]), args.out, quiet=args.quiet
    )
    return 0


def watch(job: RunningJob, rng: random.Random | None, kill_every_sec: float) -> int:
    """Wait for the job's end, killing random actors meanwhile; how many. Raises RuntimeError if it fails."""
    num_kills, next_kill = 0, time.monotonic() + kill_every_sec
    while job.process.poll() is None:
        time.sleep(0.2)
        if rng is None or time.monotonic() < next_kill:
            continue
        next_kill = time.monotonic() + rng.uniform(0.5, 1.5) * kill_every_sec
        if actors := job.actors():
            os.kill(rng.choice(actors), signal.SIGKILL)
            num_kills += 1
    exit_status, output = job.finish()
    if exit_status:
        raise RuntimeError(f"the job ended with {exit_status}: {output[-2000:]}")
    print(output.splitlines()[0], file=sys.stderr)
    return num_kills


def check(store: Path, overrides: Sequence[str]) -> None:
    """Every record of the job's input exactly once."""
    try:
        uri = load_job(None, overrides).input.uri
    except ConfigError as error:
        raise ValueError(str(error)) from None
    verified = verify(store, uri)
    if verified.returncode:
        raise RuntimeError(f"{store} does not hold every record once: {verified.stdout}{verified.stderr}")


def build_result(undisturbed: LogitStore, disturbed: LogitStore, num_kills: int, status: JobStatus) -> Result:
    pairs = matched(undisturbed, disturbed)
    difference = np.concatenate([np.abs(a.rows.logits_NK - b.rows.logits_NK).ravel() for a, b in pairs])
    same_top = np.concatenate([a.rows.token_ids_NK[:, 0] == b.rows.token_ids_NK[:, 0] for a, b in pairs])
    normaliser = np.concatenate([np.abs(a.rows.logsumexp_NM - b.rows.logsumexp_NM).ravel() for a, b in pairs])
    rows = [
        ("records, each exactly once in both stores", len(pairs)),
        ("label rows", len(same_top)),
        ("actors killed", num_kills),
        ("engine deaths seen by the job", status.failures),
        ("rows with the same top id, share", float(same_top.mean())),
        ("largest difference of a logit", float(difference.max())),
        ("99.9% of logits differ by at most", float(np.quantile(difference, 0.999))),
        ("largest difference of a normaliser", float(normaliser.max())),
    ]
    return Result.of(
        "storm",
        meaning=f"{num_kills} workers killed at random lose no record and double none; logits differ by at "
        f"most {difference.max():.2g} from those of a job left alone.",
        columns=("what", "value"),
        rows=rows,
        figures=[
            Figure.of("largest_logit_difference", float(difference.max()), "nats"),
            Figure.of("same_top_share", float(same_top.mean()), ""),
            Figure.of("kills", num_kills, ""),
        ],
        notes=["Logits as stored: an fp16 gap below an fp32 top for an fp32 teacher."],
    )


def matched(first: LogitStore, second: LogitStore) -> list[tuple[LabeledSequence, LabeledSequence]]:
    """The sequences of both stores in pairs. Raises RuntimeError if they are not of the same tokens."""
    others = {(item.record_id, item.sample_index): item for item in second.iter_sequences()}
    pairs = []
    for item in first.iter_sequences():
        other = others.pop((item.record_id, item.sample_index), None)
        if other is None or not np.array_equal(item.token_ids_T, other.token_ids_T):
            raise RuntimeError(f"record {item.record_id!r} has other tokens, or none, in {second.uri}")
        pairs.append((item, other))
    if others:
        raise RuntimeError(f"{second.uri} holds {len(others)} sequences more, such as {next(iter(others))}")
    return pairs
