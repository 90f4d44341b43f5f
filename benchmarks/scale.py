"""What grows with the size of a job, and how fast: units, rows per shard, and workers.

Three questions. Does committing and opening a store stay cheap as its units grow in number? Does a row
cost the same in a small shard as in a large one? How many workers can one driver's scheduler feed?

Shape legend: N label rows, V vocabulary, K stored entries.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.plots import plot
from benchmarks.results import Cell, Figure, Result, publish
from labeler.scheduler import LeasePolicy, Scheduler
from labeler.units import WorkUnit
from logitstore.manifest import InputInfo, LabelSpec, Manifest, TeacherInfo, TokenizerInfo
from logitstore.records import LabeledSequence, LabelRows
from logitstore.store import LogitStore

VOCAB_SIZE, TOP_K = 512, 8
UNIT_COUNTS = {False: (500, 2_000, 6_000), True: (250, 750)}
"""By --quick."""
SHARD_ROWS = {False: (256, 4_096, 65_536), True: (256, 4_096)}
WORKER_COUNTS = {False: (1, 16, 256, 2_048), True: (1, 256)}
UNITS_TO_SCHEDULE = {False: 200_000, True: 20_000}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beside what every measurement takes; the labels are made up, so no model is needed."""


def run(args: argparse.Namespace) -> int:
    rng = np.random.default_rng(0)
    rows: list[tuple[Cell, ...]] = []
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        opening = [_measure_units(Path(folder), count, rng) for count in UNIT_COUNTS[args.quick]]
        writing = [_measure_rows(Path(folder), count, rng) for count in SHARD_ROWS[args.quick]]
    for count, commit_ms, open_ms, compacted_ms, index_bytes in opening:
        rows.append((f"{count:,} units", "commit of a unit, ms", commit_ms))
        rows.append((f"{count:,} units", "open before compaction, ms", open_ms))
        rows.append((f"{count:,} units", "open after compaction, ms", compacted_ms))
        rows.append((f"{count:,} units", "index, B per unit", index_bytes))
    for count, write_us, read_us in writing:
        rows.append((f"{count:,} rows in a shard", "write, us per row", write_us))
        rows.append((f"{count:,} rows in a shard", "read, us per row", read_us))
    scheduling = [
        (count, _schedule(count, UNITS_TO_SCHEDULE[args.quick])) for count in WORKER_COUNTS[args.quick]
    ]
    rows += [(f"{count:,} workers", "units scheduled per second", rate) for count, rate in scheduling]

    small, large = opening[0], opening[-1]
    figures += [
        Figure.of("commit_growth", large[1] / small[1], ""),
        Figure.of("open_us_per_unit_compacted", 1000 * large[3] / large[0], "us"),
        Figure.of("open_speedup_by_compaction", large[2] / large[3], ""),
        Figure.of("index_bytes_per_unit", large[4], "B", is_ratio=True, better="lower"),
        Figure.of("units_per_sec_scheduled", scheduling[-1][1], "units/s"),
        Figure.of("scheduler_growth", scheduling[0][1] / scheduling[-1][1], ""),
    ]  # fmt: skip
    with plot(
        args.out / "scale-open.svg", "A store opens fast however many units it has", "units in the store",
        "time to open, ms",
    ) as axes:  # fmt: skip
        axes.loglog(
            [one[0] for one in opening], [one[2] for one in opening], marker="o", label="commit records"
        )
        axes.loglog([one[0] for one in opening], [one[3] for one in opening], marker="o", label="compacted")
    result = Result.of(
        "scale",
        meaning="A unit costs the same in a large job as in a small one, and one driver feeds every worker.",
        columns=("size", "quantity", "value"),
        rows=rows,
        figures=figures,
        plots=["scale-open.svg"],
        notes=[
            "Local disk, made-up labels; commit of a unit includes coding and writing its shard.",
            f"Scheduling leases and settles {UNITS_TO_SCHEDULE[args.quick]:,} units, without Ray.",
        ],
        quick=args.quick,
    )
    publish(result, args.out, quiet=args.quiet)
    return 0


def made_up_rows(num_rows: int, rng: np.random.Generator) -> LabelRows:
    """Label rows of random logits, with masses computed from all of them."""
    logits_NV = rng.normal(scale=3.0, size=(num_rows, VOCAB_SIZE)).astype(np.float32)
    ids_NK = np.argpartition(-logits_NV, TOP_K, axis=1)[:, :TOP_K]
    top_NK = np.take_along_axis(logits_NV, ids_NK, axis=1)
    order_NK = np.argsort(-top_NK, axis=1)
    ids_NK, top_NK = (np.take_along_axis(array, order_NK, axis=1) for array in (ids_NK, top_NK))
    exps_NV = np.exp(logits_NV.astype(np.float64))
    sum_N, stored_N = exps_NV.sum(axis=1), np.exp(top_NK.astype(np.float64)).sum(axis=1)
    return LabelRows(
        logits_NK=top_NK,
        token_ids_NK=ids_NK.astype(np.int32),
        count_N=np.full(num_rows, TOP_K, np.int32),
        logsumexp_NM=np.log(sum_N)[:, None].astype(np.float32),
        log_tail_mass_NM=np.log((sum_N - stored_N) / sum_N)[:, None].astype(np.float32),
        label_logprob_N=np.full(num_rows, np.nan, np.float32),
        label_rank_N=np.zeros(num_rows, np.int32),
    )


def made_up_sequence(record_id: str, num_rows: int, rng: np.random.Generator) -> LabeledSequence:
    return LabeledSequence(
        record_id=record_id,
        sample_index=0,
        token_ids_T=rng.integers(0, VOCAB_SIZE, num_rows + 1).astype(np.int32),
        prompt_length=1,
        label_start=1,
        rows=made_up_rows(num_rows, rng),
        loss_mask_N=np.ones(num_rows, bool),
        finish_reason="scored",
    )


def empty_store(folder: Path) -> LogitStore:
    manifest = Manifest(
        teacher=TeacherInfo("made-up", None, "sha256:0", "float32", None, "none", "0", "import"),
        tokenizer=TokenizerInfo("", VOCAB_SIZE),
        labels=LabelSpec(VOCAB_SIZE, TOP_K, (1.0,), "gap_f16", "score", "response"),
        input=InputInfo("none", "import", {}),
        created="1970-01-01T00:00:00+00:00",
    )
    return LogitStore.create(str(folder), manifest)


def _measure_units(
    folder: Path, count: int, rng: np.random.Generator
) -> tuple[int, float, float, float, float]:
    """(units, ms per commit, ms to open before and after compaction, index bytes per unit)."""
    store = empty_store(folder / f"units-{count}")
    sequence = made_up_sequence("record", 4, rng)
    started = time.perf_counter()
    for index in range(count):
        store.commit_unit(f"unit-{index:08d}", index, [sequence], seconds=1.0, worker="worker")
    commit_ms = 1000 * (time.perf_counter() - started) / count
    before_ms = _open_ms(store.uri)
    store.compact()
    after_ms = _open_ms(store.uri)
    index_bytes = sum(file.stat().st_size for file in Path(store.uri).glob("index*/**/*") if file.is_file())
    return count, commit_ms, before_ms, after_ms, index_bytes / count


def _open_ms(uri: str) -> float:
    """Milliseconds until a new reader knows all of a store's shards; the better of two."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        LogitStore.open(uri).shards()
        seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds)


def _measure_rows(folder: Path, count: int, rng: np.random.Generator) -> tuple[int, float, float]:
    """(rows in the shard, microseconds per row to write, to read)."""
    store = empty_store(folder / f"rows-{count}")
    sequences = [made_up_sequence(f"record-{i}", 256, rng) for i in range(count // 256)]
    started = time.perf_counter()
    entry, _ = store.commit_unit("unit", 0, sequences, seconds=1.0, worker="worker")
    written = time.perf_counter()
    num_read = sum(one.rows.num_rows for one in store.open_shard(entry).iter_sequences())
    ended = time.perf_counter()
    assert num_read == count
    return count, 1e6 * (written - started) / count, 1e6 * (ended - written) / count


def _schedule(num_workers: int, num_units: int) -> float:
    """Units per second that the scheduler leases and settles for so many workers."""

    def units() -> Iterator[WorkUnit]:
        for index in range(num_units):
            yield WorkUnit(f"unit-{index}", index, "segment", 0, 1, 64, 16_384)

    scheduler = Scheduler(units(), lambda unit_id: False, LeasePolicy())
    workers = [f"worker-{index}" for index in range(num_workers)]
    for worker in workers:
        scheduler.add_worker(worker)
    done, started = 0, time.perf_counter()
    while done < num_units:
        for worker in workers:
            while scheduler.next_lease(worker, float(done)) is not None:
                pass
        for worker in workers:
            for lease in scheduler.leases_of(worker):
                done += scheduler.committed(lease.lease_id, float(done))
    return num_units / (time.perf_counter() - started)
