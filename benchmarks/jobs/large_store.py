"""A store of 100,000 sequences in small units: looked into, taken down from, copied, published, out and back.

Shape legend: V vocabulary, K stored entries.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.jobs.made_up_labels import TOP_K, VOCAB_SIZE, empty_store, made_up_sequence
from benchmarks.report.results import Figure, Result, publish
from benchmarks.servers.web import run_web_server
from logitstore.exchange.importing import Origin, import_source
from logitstore.exchange.tables.export import export_files
from logitstore.exchange.tables.reading import read_table
from logitstore.objects.opening import Objects
from logitstore.publishing.card import CardSettings
from logitstore.publishing.publish import publish_store
from logitstore.records import LabelRows
from logitstore.store import LogitStore
from logitstore.tools.copying import copy_store
from logitstore.tools.deletion import delete_records

UNIT_RECORDS = 64
"""Records of a unit that a labeling job takes by default."""
SEQUENCE_ROWS = 32
WRITTEN_MEANWHILE = 64
"""Units that are committed while the store is copied."""
TURNS = 3
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Sizes:
    sequences: int
    looked_up: int
    deleted: int


FULL = Sizes(sequences=100_000, looked_up=1_000, deleted=5_000)
QUICK = Sizes(sequences=2_000, looked_up=100, deleted=100)


@dataclass(slots=True)
class Step:
    """What one thing took."""

    what: str
    seconds: float
    num_bytes: int
    """Read or written, as `what` says."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beside what every measurement takes; the labels are made up, so no model is needed."""


def run(args: argparse.Namespace) -> int:
    sizes = QUICK if args.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps, figures, notes = _measure(folder, sizes)
    result = Result.of(
        "store",
        meaning=f"{sizes.looked_up:,} of {sizes.sequences:,} sequences are found by id in "
        f"{_of(steps, 'find').seconds:.1f} s; one takes "
        f"{figures['lookup_share'].value * 100:.2g}% of the store's bytes; an export costs "
        f"{figures['export_over_read'].value:.1f} times the processor's time of reading.",
        columns=("step", "s", "MB"),
        rows=[(step.what, round(step.seconds, 2), round(step.num_bytes / 1e6, 2)) for step in steps],
        figures=list(figures.values()),
        notes=notes,
        quick=args.quick,
    )
    publish(result, args.out, quiet=args.quiet)
    return 0


def _measure(folder: Path, sizes: Sizes) -> tuple[list[Step], dict[str, Figure], list[str]]:
    rng = np.random.default_rng(0)
    store, made = _timed(
        "label: commit all units, compact", lambda: _make(folder / "store", sizes.sequences, rng)
    )
    total = made.num_bytes = _size(folder / "store")
    names = [f"record-{number}" for number in rng.permutation(sizes.sequences)]
    one_bytes = _over_http(store, lambda opened: opened[names[0]])
    many_bytes = _over_http(store, lambda opened: opened[names[: sizes.looked_up]])
    _, found = _timed(
        f"find {sizes.looked_up:,} records by id (read)",
        lambda: LogitStore.open(store.uri)[names[: sizes.looked_up]],
    )
    found.num_bytes = many_bytes
    gone = frozenset(names[-sizes.deleted :])
    _, deleted = _timed(
        f"delete {sizes.deleted:,} records (written)", lambda: delete_records(store, gone, "asked for")
    )
    deleted.num_bytes = sum(info.num_bytes for info in store.deletion_infos())
    copied = _copy_while_written(store, folder / "copy", rng)
    files = sum(1 for path in (folder / "store/shards").iterdir())
    published, step = _timed(
        "publish, without the deleted (written)",
        lambda: publish_store(store, Objects(folder / "public"), CardSettings()),
    )
    step.num_bytes = _size(folder / "public")
    reading = min(_cpu_seconds(lambda: sum(1 for _ in store.iter_sequences())) for _ in range(TURNS))
    exporting, exported = _exports(store, folder / "tables")
    back = _through_duckdb(store, folder)
    figures = [
        Figure.of("lookup_share", one_bytes / total, "", is_ratio=True),
        Figure.of("batch_share", many_bytes / total, "", is_ratio=True),
        Figure.of("find_seconds", found.seconds, "s", better="lower"),
        Figure.of("delete_seconds", deleted.seconds, "s", better="lower"),
        Figure.of("published_files", published.num_shards, "", is_ratio=True),
        Figure.of("job_files", files, "", is_ratio=True),
        Figure.of("export_over_read", [one / reading for one in exporting], "x", is_ratio=True),
        # The published store has what the tables have: no deleted record, and those of the copy's time.
        Figure.of("parquet_over_store", exported[0].num_bytes / step.num_bytes, "x", is_ratio=True),
    ]
    steps = [made, found, deleted, copied, step, min(exported, key=lambda one: one.seconds), *back]
    notes = _notes(sizes, total, one_bytes, files, published.num_shards)
    return steps, {figure.name: figure for figure in figures}, notes


def _notes(sizes: Sizes, total: int, one_bytes: int, job_files: int, published_files: int) -> list[str]:
    """What was measured: of `total` bytes, of which a look-up of one record read so many."""
    return [
        f"{sizes.sequences:,} sequences of {SEQUENCE_ROWS} rows at K={TOP_K} of {VOCAB_SIZE} made-up ids, in "
        f"units of {UNIT_RECORDS} records, {total / 1e6:.1f} MB on a local disk.",
        "Found by id: in a store that is opened for it. Bytes are those of a web server, opening included; "
        f"one record reads {one_bytes:,}.",
        f"While the store was copied, {WRITTEN_MEANWHILE} more units were committed, and compacted; the copy "
        "has the digest of the store as it was.",
        f"{job_files:,} shards of the job became {published_files:,}.",
        "Parquet is compared with the published store, which holds the same records.",
        "Through DuckDB: a fifth of the sequences by SQL into one Parquet file, imported with --like.",
    ]


def _exports(store: LogitStore, tables: Path) -> tuple[list[float], list[Step]]:
    """CPU seconds and the step of each of several exports to Parquet."""
    cpu_seconds: list[float] = []
    steps: list[Step] = []
    for _ in range(TURNS):
        shutil.rmtree(tables, ignore_errors=True)
        seconds, step = _timed(
            "export to Parquet (written)",
            lambda: _cpu_seconds(lambda: export_files(store, str(tables), "parquet")),
        )
        cpu_seconds.append(seconds)
        step.num_bytes = _size(tables)
        steps.append(step)
    return cpu_seconds, steps


def _make(place: Path, num_sequences: int, rng: np.random.Generator) -> LogitStore:
    store = empty_store(place)
    pattern = made_up_sequence("", SEQUENCE_ROWS * UNIT_RECORDS, rng)
    for unit, first in enumerate(range(0, num_sequences, UNIT_RECORDS)):
        numbers = range(first, min(first + UNIT_RECORDS, num_sequences))
        # Every unit has its rows in another order: equal ones would compress as no labels do.
        rows = _shuffled(pattern.rows, rng)
        sequences = [
            dataclasses.replace(
                pattern,
                record_id=f"record-{number}",
                token_ids_T=pattern.token_ids_T[: SEQUENCE_ROWS + 1],
                rows=rows.slice(SEQUENCE_ROWS * place, SEQUENCE_ROWS * (place + 1)),
                loss_mask_N=np.ones(SEQUENCE_ROWS, bool),
            )
            for place, number in enumerate(numbers)
        ]
        store.commit_unit(f"unit-{unit:06d}", unit, sequences, seconds=0.0, worker="benchmark")
    store.compact()
    return store


def _shuffled(rows: LabelRows, rng: np.random.Generator) -> LabelRows:
    order_N = rng.permutation(rows.num_rows)
    return LabelRows(*(getattr(rows, field.name)[order_N] for field in dataclasses.fields(LabelRows)))


def _copy_while_written(store: LogitStore, place: Path, rng: np.random.Generator) -> Step:
    """Seconds of the copy, and its bytes; raises AssertionError where it is not the store as it was."""
    writer = LogitStore.open(store.uri)
    digest, first = writer.digest, len(writer.shards())

    def write() -> None:
        for number in range(WRITTEN_MEANWHILE):
            unit = [made_up_sequence(f"later-{number}", SEQUENCE_ROWS, rng)]
            writer.commit_unit(f"later-{number}", first + number, unit, seconds=0.0, worker="benchmark")
            if number % 16 == 15:
                writer.compact()

    source = LogitStore.open(store.uri)
    thread = threading.Thread(target=write)
    begun = threading.Event()

    def begin(*_: object) -> None:
        if not begun.is_set():
            begun.set()
            thread.start()

    _, step = _timed(
        "copy while it is written (written)", lambda: copy_store(source, Objects(place), progress=begin)
    )
    thread.join()
    assert LogitStore.open(place).digest == digest, "the copy is the store as it was when it began"
    step.num_bytes = _size(place)
    return step


def _through_duckdb(store: LogitStore, folder: Path) -> list[Step]:
    import duckdb

    part = folder / "part.parquet"
    parts = f"{folder}/tables/*.parquet"
    _, filtered = _timed(
        "a fifth of the tables, by DuckDB (written)",
        lambda: duckdb.sql(
            f"COPY (SELECT * FROM '{parts}' WHERE hash(record_id) % 5 = 0) TO '{part}' (FORMAT parquet)"
        ),
    )
    filtered.num_bytes = part.stat().st_size
    back, imported = _timed(
        "import --like of that (written)",
        lambda: import_source(
            read_table(part, store.manifest), str(folder / "back"), origin=Origin(), like=store
        ),
    )
    imported.num_bytes = _size(folder / "back")
    some = [back[number] for number in range(0, len(back), max(1, len(back) // 20))]
    same = store[[one.record_id for one in some]]
    assert all(np.array_equal(a.rows.logits_NK, b.rows.logits_NK) for a, b in zip(some, same, strict=True))
    return [filtered, imported]


def _timed(what: str, call: Callable[[], Value]) -> tuple[Value, Step]:
    start = time.perf_counter()
    value = call()
    return value, Step(what, time.perf_counter() - start, 0)


def _cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _of(steps: list[Step], word: str) -> Step:
    return next(step for step in steps if step.what.startswith(word))


def _size(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def _over_http(store: LogitStore, use: Callable[[LogitStore], object]) -> int:
    """Bytes that a web server sends to somebody who opens the store and uses it."""
    with run_web_server(Path(store.uri)) as server:
        use(LogitStore.open(server.url))
        return server.sent_bytes
