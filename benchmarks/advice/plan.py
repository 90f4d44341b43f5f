"""The cost model as a calculator, and its comparison with stores that were really labeled.

Sizes come from the committed results of `benchmarks storage` and `decode`, rates from `--rate` or from a
store (`--from-store`). `--against STORE` compares the model with another store and fails if it is off by
more than 15%. Prices are the caller's: the defaults are list prices of no particular provider and are
printed with every estimate.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table

from benchmarks.advice.cost_model import (
    Estimate,
    Prices,
    Rates,
    Scale,
    estimate,
    figure_by_top_k,
    interpolate,
)
from benchmarks.labels.labeled_times import LabeledStore, read_store
from benchmarks.report.results import Result, load_all
from logitstore.common.console import Console
from logitstore.common.options import above_zero, amount, positive, share

RESULTS = Path(__file__).parents[1] / "results"
TOLERANCE = 0.15
TOP_K = 64
"""Of the estimate, where none is given."""
GPU_HOUR, CORE_HOUR = 2.5, 0.05
"""Default prices."""


def rates_of_results(directory: Path, top_k: int, tokens_per_sec: float, start_sec: float) -> Rates:
    """Sizes and decoding from committed results, the labeling rate from the caller."""
    results = load_all(directory)
    sizes = _first_found(results, "storage", "shard_bytes")
    if not sizes:
        raise ValueError(
            f"{directory} has no storage.json to take sizes from; run `penumbra bench storage "
            f"--out {directory}`, or give --bytes-per-token"
        )
    decode = _first_found(results, "decode", "rows_per_sec")
    return Rates(
        bytes_per_token=interpolate(sizes, top_k),
        tokens_per_sec=tokens_per_sec,
        start_sec=start_sec,
        decode_tokens_per_sec=interpolate(decode, top_k) if decode else None,
        origin=f"sizes measured {results['storage'].date[:10]}{_reach(sizes, top_k)}, rate as given",
    )


def _reach(by_top_k: Mapping[int, float], top_k: int) -> str:
    """What a size rests on where it was measured at no such K."""
    if top_k in by_top_k:
        return ""
    low, high = min(by_top_k), max(by_top_k)
    how = "between those" if low < top_k < high else f"extrapolated from those of K={low} to {high}"
    return f" at other K, {how}"


def _first_found(results: Mapping[str, Result], part: str, quantity: str) -> dict[int, float]:
    """A quantity by K, of the capture or else of the labeler's own labels; empty if it was not measured."""
    for source in ("capture", "labeler"):
        if part in results and (found := figure_by_top_k(results[part], f"{source}_{quantity}")):
            return found
    return {}


def compare(
    rates: Rates, actual: LabeledStore, command_sec: float | None = None
) -> list[tuple[str, float, float]]:
    """(quantity, predicted, measured) of a labeled store, and of the whole command that labeled it."""
    # The engine's speed is per token, and how many of the job's tokens get rows its plan says beforehand.
    rows_per_sec = rates.tokens_per_sec * actual.rows_per_token / rates.rows_per_token
    scale = Scale(
        tokens=actual.rows,
        replicas=actual.replicas,
        devices_per_replica=0,
        unit_tokens=max(actual.rows // actual.units, 1),
        months=0,
        reads=0,
        availability=1,
    )
    predicted = estimate(scale, replace(rates, tokens_per_sec=rows_per_sec), Prices(0, 0, 0, 0, 0))
    rows = [
        ("bytes", predicted.store_bytes, float(actual.num_bytes)),
        ("rows per second", actual.replicas * rows_per_sec, actual.rows_per_sec),
    ]
    if command_sec is not None:
        rows.append(("seconds of the job", predicted.label_hours * 3600, command_sec))
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    number = parser.add_argument
    number("--tokens", type=above_zero, default=1e12, help="label rows wanted (default: 1e12)")
    number(
        "--top-k",
        type=positive,
        metavar="K",
        help=f"stored entries per row, for the committed measurement (default: {TOP_K})",
    )
    number("--gpus", type=positive, default=64, help="GPUs that label (default: 64)")
    number("--gpus-per-replica", type=positive, default=1, help="GPUs of one engine (default: 1)")
    number(
        "--rate", type=above_zero, help="label rows per second of one replica, as measured on your hardware"
    )
    number("--bytes-per-token", type=above_zero, help="instead of the committed measurement")
    number("--from-store", metavar="STORE", help="take rate and size from a store that was labeled")
    number("--against", metavar="STORE", help="compare the model with this store; status 1 beyond 15%%")
    number("--results", type=Path, default=RESULTS, help="folder of measured results")
    number("--start-sec", type=amount, default=180.0, help="start-up of a replica")
    add_price_arguments(parser)
    number("--json", action="store_true", help="print JSON instead of a table")


def add_price_arguments(parser: argparse.ArgumentParser) -> None:
    """What `scale_of` and `prices_of` take, for every command that estimates a job."""
    number = parser.add_argument
    number("--unit-tokens", type=positive, default=65_536, help="label rows of a work unit")
    number("--availability", type=share, default=0.95, help="share of the time a replica works")
    number("--months", type=amount, default=3.0, help="how long the store is kept")
    number("--reads", type=amount, default=3.0, help="epochs times students")
    number("--per-device-hour", type=amount, help="price of a GPU hour (default 2.5) or core hour (0.05)")
    number("--per-gb-month", type=amount, default=0.023, help="price of a GB of storage for a month")
    number("--per-million-puts", type=amount, default=5.0, help="price of writing a million objects")
    number("--per-million-gets", type=amount, default=0.4, help="price of reading a million objects")
    number("--per-gb-egress", type=amount, default=0.0, help="price of reading a GB, 0 inside a region")


def scale_of(args: argparse.Namespace, *, replicas: int, devices_per_replica: float) -> Scale:
    return Scale(
        tokens=args.tokens,
        replicas=replicas,
        devices_per_replica=devices_per_replica,
        unit_tokens=args.unit_tokens,
        months=args.months,
        reads=args.reads,
        availability=args.availability,
    )


def prices_of(args: argparse.Namespace) -> Prices:
    per_device_hour = args.per_device_hour
    if per_device_hour is None:
        per_device_hour = GPU_HOUR if args.gpus else CORE_HOUR
    return Prices(
        per_device_hour=per_device_hour,
        per_gb_month=args.per_gb_month,
        per_million_puts=args.per_million_puts,
        per_million_gets=args.per_million_gets,
        per_gb_egress=args.per_gb_egress,
    )


def assumptions(scale: Scale, rates: Rates, prices: Prices) -> str:
    """Everything an estimate rests on, in one sentence."""
    return (
        f"Assumed: {rates.bytes_per_token:.1f} B and {rates.tokens_per_sec:,.0f} rows/s per replica "
        f"({rates.origin}); devices per replica: {scale.devices_per_replica:g}, "
        f"start-up {rates.start_sec:.0f} s, available {scale.availability:.0%} of the time, "
        f"units of {scale.unit_tokens:,} rows; "
        f"{prices.per_device_hour:g} per device hour, {prices.per_gb_month:g} per GB and month for "
        f"{scale.months:g} months, {prices.per_million_puts:g}/{prices.per_million_gets:g} per million "
        f"writes/reads, {scale.reads:g} reads at {prices.per_gb_egress:g} per GB."
    )


def run(args: argparse.Namespace) -> int:
    rates = _rates(args)
    if args.against:
        return _run_comparison(rates, read_store(args.against), as_json=args.json)
    replicas, left = divmod(args.gpus, args.gpus_per_replica)
    if not replicas:
        raise ValueError(
            f"--gpus {args.gpus} hold no replica, which takes --gpus-per-replica {args.gpus_per_replica}; "
            "give as many GPUs as one takes, or more"
        )
    if left:
        print(f"{left} of {args.gpus} GPUs are left over, and not counted", file=sys.stderr)
    scale, prices = (
        scale_of(args, replicas=replicas, devices_per_replica=args.gpus_per_replica),
        prices_of(args),
    )
    result = estimate(scale, rates, prices)
    if args.json:
        parts = {"scale": scale, "rates": rates, "prices": prices, "estimate": result}
        print(json.dumps({name: asdict(part) for name, part in parts.items()}, indent=1))
    else:
        _show(scale, rates, prices, result)
    return 0


def _rates(args: argparse.Namespace) -> Rates:
    other = "--from-store" if args.from_store else "--bytes-per-token" if args.bytes_per_token else ""
    if args.top_k is not None and other:
        raise ValueError(
            f"--top-k {args.top_k} chooses the committed size of a row, but {other} says it; give one of them"
        )
    if args.from_store:
        small = read_store(args.from_store)
        return Rates(
            bytes_per_token=args.bytes_per_token or small.num_bytes / small.rows,
            tokens_per_sec=args.rate or small.rows_per_sec / small.replicas,
            start_sec=args.start_sec,
            decode_tokens_per_sec=None,
            origin=f"size and rate of {small.uri}, K={small.top_k}",
            rows_per_token=small.rows_per_token,
        )
    if args.rate is None:
        raise ValueError(
            "--rate is missing: give the label rows per second of one replica as measured on your hardware "
            "(`penumbra bench labeling --teacher MODEL`), or --from-store STORE"
        )
    if args.bytes_per_token:
        return Rates(args.bytes_per_token, args.rate, args.start_sec, None, "as given")
    return rates_of_results(args.results, args.top_k or TOP_K, args.rate, args.start_sec)


def _run_comparison(rates: Rates, actual: LabeledStore, *, as_json: bool) -> int:
    rows = compare(rates, actual)
    errors = {name: predicted / measured - 1 for name, predicted, measured in rows}
    if as_json:
        print(json.dumps({"relative_errors": errors, "tolerance": TOLERANCE}))
    else:
        table = Table("quantity", "predicted", "measured", "error", title=f"model against {actual.uri}")
        for name, predicted, measured in rows:
            table.add_row(name, f"{predicted:,.1f}", f"{measured:,.1f}", f"{errors[name]:+.1%}")
        Console().print(table)
    return int(any(abs(error) > TOLERANCE for error in errors.values()))


def _show(scale: Scale, rates: Rates, prices: Prices, result: Estimate) -> None:
    table = Table("quantity", "value", title=f"{scale.tokens:.3g} label rows on {scale.replicas} replicas")
    rows = [
        ("store", f"{result.store_bytes / 1e12:,.3f} TB in {result.units:,} shards"),
        ("labeling", f"{result.label_hours:,.1f} h ({result.label_hours / 24:,.1f} days)"),
        ("device hours", f"{result.device_hours:,.0f}"),
        ("cost of labeling", f"{result.label_cost:,.0f}"),
        (f"cost of storage, {scale.months:g} months", f"{result.storage_cost:,.0f}"),
        ("cost of requests", f"{result.request_cost:,.0f}"),
        (f"cost of reading {scale.reads:g} times", f"{result.read_cost:,.0f}"),
        ("total", f"{result.total_cost:,.0f}"),
    ]
    if result.read_core_hours is not None:
        rows.append(("decoding, core hours", f"{result.read_core_hours:,.0f}"))
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"  {assumptions(scale, rates, prices)}", highlight=False)
