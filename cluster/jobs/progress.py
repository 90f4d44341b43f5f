"""Progress and cost of a job, asked of the labeler: the store knows them, not Ray.

The labeler is run as a command of its own, so that this package needs nothing of it but its settings.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from cluster.errors import ClusterError

TIMEOUT_SEC = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a labeler command said."""

    exit_status: int
    value: dict[str, Any]
    """Its JSON; empty where it failed."""
    error: str
    """Its last words where it failed."""


def store_status(uri: str) -> Answer:
    """`python -m labeler status URI --json`: of any store that this machine can read."""
    return _labeler(["status", uri, "--json"])


def cost_estimate(job_arguments: list[str]) -> Answer:
    """`python -m labeler run JOB --dry-run --json`: records, tokens, bytes, time and money, before a run."""
    return _labeler(["run", *job_arguments, "--dry-run", "--json"])


def plan_in_words(estimate: dict[str, Any]) -> str:
    """What `cost_estimate` found. Time and price need a trial with the teacher, which may not be here."""
    plan, job = estimate["plan"], estimate["job"]
    at_most = "at most " if job["labels"]["mode"] == "generate" else ""
    num_bytes = plan["estimated_bytes"]
    kept = _monthly(num_bytes / 1e9 * job["cost"]["per_gb_month"], job["cost"])
    lines = [
        f"{plan['num_planned']:,} records in {plan['num_units']:,} units, {plan['num_rejects']:,} rejected",
        f"{plan['num_tokens']:,} tokens of input, {at_most}{plan['num_labels']:,} label rows",
        f"about {num_bytes / 1e6:,.2f} MB{kept}",
        "time and price: python -m labeler run JOB.toml --dry-run --calibrate 50, where the teacher can run",
    ]
    return "\n".join(lines)


def cost_in_words(status: dict[str, Any]) -> str:
    """What the latest run on a store has cost."""
    cost = status["cost"]
    device = "GPU" if cost["device"] == "gpu" else cost["device"]
    rate = f"{cost['device_sec_per_million_tokens']:,.0f} per million tokens"
    price = f", {cost['compute']:,.2f} {cost['currency']}" if cost["compute"] else ""
    kept = _monthly(cost["storage_per_month"], cost)
    return (
        f"{cost['device_sec']:,.0f} {device} seconds ({rate}){price}\n{cost['num_bytes'] / 1e6:,.2f} MB{kept}"
    )


def _monthly(price: float, cost: dict[str, Any]) -> str:
    return f", {price:,.2f} {cost['currency']} a month to keep" if price else ""


def _labeler(arguments: list[str]) -> Answer:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "labeler", *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SEC,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"the labeler took more than {TIMEOUT_SEC:.0f} s for {' '.join(arguments)!r}; check that the "
            "store and the input can be reached from here"
        ) from None
    try:
        value = json.loads(done.stdout) if done.returncode == 0 else {}
    except json.JSONDecodeError:
        value = {}
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return Answer(done.returncode, value if isinstance(value, dict) else {}, lines[-1] if lines else "")
