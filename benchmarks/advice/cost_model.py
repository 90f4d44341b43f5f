"""What labeling, storing and reading cost at a given scale: a model on paper.

    hours   = (tokens / (replicas * rate) + start-up) / availability
    bytes   = tokens * bytes per token (measured at this K, or between two measured K)
    money   = device hours + months of storage + one PUT per object written + one GET per object read

A device is a GPU, or a CPU core where engines run on cores.

`plan.py` makes a calculator of it and compares it with stores that were really labeled.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from benchmarks.report.results import Result

OBJECTS_PER_UNIT = 2
"""A shard and its commit record."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured, or given by hand."""

    bytes_per_token: float
    """Bytes of a label row in a finished store at the job's K, everything included."""
    tokens_per_sec: float
    """Label rows per second of one replica."""
    start_sec: float
    """Seconds of a job in which a replica labels nothing: starting and ending."""
    decode_tokens_per_sec: float | None
    """Label rows that one core decodes per second; None if nobody measured it."""
    origin: str
    """Where the figures come from, for people."""
    rows_per_token: float = 1.0
    """Where the rate was measured: label rows per token of the engine; below 1 where prompts have none."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What is asked for."""

    tokens: float
    """Label rows."""
    replicas: int
    devices_per_replica: float
    unit_tokens: int
    """Label rows of a work unit."""
    months: float
    """How long the store is kept."""
    reads: float
    """How often the whole store is read: epochs times students."""
    availability: float
    """Share of the time that a replica works: the rest is preemption and repair."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Money, in one currency."""

    per_device_hour: float
    per_gb_month: float
    per_million_puts: float
    per_million_gets: float
    per_gb_egress: float
    """For reading from another region or provider; 0 inside one."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the model says."""

    store_bytes: float
    units: int
    label_hours: float
    """Wall clock."""
    device_hours: float
    label_cost: float
    storage_cost: float
    request_cost: float
    read_cost: float
    total_cost: float
    read_core_hours: float | None
    """CPU hours of decoding for all reads."""


def estimate(scale: Scale, rates: Rates, prices: Prices) -> Estimate:
    """The model of the module's docstring. ValueError for a scale that is not positive, and for one beyond
    the largest number."""
    for name in ("tokens", "replicas", "unit_tokens", "availability"):
        if not 0 < getattr(scale, name) < math.inf:
            raise ValueError(f"{name} = {getattr(scale, name)} must be a positive number; correct it")
    units = math.ceil(scale.tokens / scale.unit_tokens)
    # The last units finish at different times: on average a replica idles for half a unit.
    tokens_per_replica = scale.tokens / scale.replicas
    idle_tokens = min(scale.unit_tokens, tokens_per_replica) / 2 if units > scale.replicas else 0
    seconds = (tokens_per_replica + idle_tokens) / rates.tokens_per_sec + rates.start_sec
    label_hours = seconds / 3600 / scale.availability
    device_hours = label_hours * scale.replicas * scale.devices_per_replica
    store_bytes = scale.tokens * rates.bytes_per_token
    label_cost = device_hours * prices.per_device_hour
    storage_cost = store_bytes / 1e9 * prices.per_gb_month * scale.months
    requests = units * OBJECTS_PER_UNIT * prices.per_million_puts / 1e6
    requests += units * scale.reads * prices.per_million_gets / 1e6
    read_cost = store_bytes / 1e9 * scale.reads * prices.per_gb_egress
    decode = rates.decode_tokens_per_sec
    total_cost = label_cost + storage_cost + requests + read_cost
    if not math.isfinite(total_cost + store_bytes + label_hours):
        raise ValueError(
            f"{scale.tokens:g} rows of {rates.bytes_per_token:g} B at {rates.tokens_per_sec:g} rows/s come "
            "to more than can be reckoned with; correct the tokens, the rate or the prices"
        )
    return Estimate(
        store_bytes=store_bytes,
        units=units,
        label_hours=label_hours,
        device_hours=device_hours,
        label_cost=label_cost,
        storage_cost=storage_cost,
        request_cost=requests,
        read_cost=read_cost,
        total_cost=total_cost,
        read_core_hours=scale.tokens * scale.reads / decode / 3600 if decode else None,
    )


def replicas_for(
    deadline_hours: float, tokens: float, unit_tokens: int, availability: float, rates: Rates
) -> int:
    """The fewest replicas that `estimate` lets finish in time.

    ValueError if the deadline leaves no time to label.
    """
    working_sec = deadline_hours * 3600 * availability - rates.start_sec
    labeling_sec = working_sec - min(unit_tokens, tokens) / 2 / rates.tokens_per_sec
    if labeling_sec <= 0:
        raise ValueError(
            f"a deadline of {deadline_hours:g} h leaves no time to label after {rates.start_sec:.0f} s of "
            "start-up and half a unit of waiting; give more hours or smaller units"
        )
    return math.ceil(tokens / (rates.tokens_per_sec * labeling_sec))


def figure_by_top_k(result: Result, prefix: str) -> dict[int, float]:
    """Values of the figures named `<prefix>_k<K>`, by K."""
    pattern = re.compile(rf"{re.escape(prefix)}_k(\d+)")
    found = {}
    for figure in result.figures:
        if match := pattern.fullmatch(figure.name):
            found[int(match[1])] = figure.value
    return found


def interpolate(by_top_k: dict[int, float], top_k: int) -> float:
    """Value at K, on straight lines in log K and log value; outside the measured K the ends go on."""
    if top_k in by_top_k:
        return by_top_k[top_k]
    if len(by_top_k) < 2:
        raise ValueError(f"measured at K={sorted(by_top_k)} only, which says nothing of K={top_k}")
    ks = sorted(by_top_k)
    right = next((i for i, k in enumerate(ks) if k > top_k), len(ks) - 1)
    low, high = ks[max(right - 1, 0)], ks[max(right, 1)]
    share = (math.log(top_k) - math.log(low)) / (math.log(high) - math.log(low))
    return math.exp((1 - share) * math.log(by_top_k[low]) + share * math.log(by_top_k[high]))
