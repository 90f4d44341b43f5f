"""The one form of a measured result: what was measured, on what, by which command, how often, how noisy.

A benchmark builds a `Result` of named `Figure`s and a printed table, and hands it to `publish`, which
writes `<out>/<benchmark>.json` and prints the table. `RESULTS.md`, the cost calculator, the regression
guard and the test of quoted figures read those files and nothing else.

    samples = time_calls(lambda: decode(shard), repetitions=5)
    figures = (Figure.of("seconds_k64", samples, "s"),)
    result = Result.of("decode", meaning="...", columns=("K", "s"), rows=((64, 0.2),), figures=figures)
    publish(result, args.out, quiet=args.quiet)
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.table import Table

from benchmarks.report.environment import command_line, describe_hardware, package_versions
from logitstore.common.console import Console
from logitstore.common.whole_file import write_whole

Better = Literal["lower", "higher", "neither"]
Cell = str | int | float | bool | None

FILE_WIDTH = 140
"""Columns of text where the output is not a terminal, so that no head of a table is cut off."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity. Across machines only those with `is_ratio` may be compared."""

    name: str
    """Stable within the benchmark, lower case with underscores: "bytes_per_token_k64"."""
    value: float
    """Median of the repetitions."""
    unit: str
    """"B/token", "tokens/s", "s", "nats", or "" for a pure number."""
    repetitions: int
    spread: float
    """Largest minus smallest of the repetitions, in `unit`."""
    is_ratio: bool
    """Whether it holds on other hardware: a size, a quality, or a quotient of two rates of one run."""
    better: Better
    """Which direction is an improvement; the regression guard looks at no figure that says "neither"."""

    @classmethod
    def of(
        cls,
        name: str,
        samples: float | Sequence[float],
        unit: str,
        *,
        is_ratio: bool = False,
        better: Better = "neither",
    ) -> Figure:
        """A figure from one value or from the values of several repetitions."""
        values = [float(samples)] if isinstance(samples, int | float) else [float(v) for v in samples]
        if not values:
            raise ValueError(f"figure {name!r} has no samples; hand in at least one measured value")
        spread = max(values) - min(values)
        return cls(name, statistics.median(values), unit, len(values), spread, is_ratio, better)


@dataclass(frozen=True, slots=True)
class ResultTable:
    """A printed table: people read it, the figures are for programs."""

    title: str
    """What it shows; "" where the benchmark's own line says it."""
    columns: tuple[str, ...]
    """Heads, with units."""
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> ResultTable:
        return cls(title, tuple(columns), tuple(tuple(row) for row in rows))


@dataclass(frozen=True, slots=True)
class Result:
    """Everything one benchmark has to say, with what is needed to repeat it."""

    benchmark: str
    """Name of the part: "storage", "decode", ...; also the stem of the JSON file."""
    meaning: str
    """One line: what the figures say to somebody who has to choose."""
    tables: tuple[ResultTable, ...]
    figures: tuple[Figure, ...]
    plots: tuple[str, ...]
    """SVG files beside the JSON, as made by `benchmarks.report.plots`."""
    notes: tuple[str, ...]
    """Assumptions and limits, one sentence each."""
    quick: bool
    """Measured with `--quick`: smaller inputs, fewer repetitions."""
    command: str
    date: str
    """UTC, ISO 8601, to the second."""
    hardware: dict[str, str]
    versions: dict[str, str]
    details: dict[str, object] = field(default_factory=dict)
    """Whatever else a reader of the JSON may want: inputs, settings, curves."""

    @classmethod
    def of(
        cls,
        benchmark: str,
        *,
        meaning: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        figures: Sequence[Figure],
        more_tables: Sequence[ResultTable] = (),
        plots: Sequence[str] = (),
        notes: Sequence[str] = (),
        quick: bool = False,
        details: dict[str, object] | None = None,
    ) -> Result:
        """A result measured here and now: date, hardware, versions and command are filled in.

        `columns` and `rows` are its first table.
        """
        names = [figure.name for figure in figures]
        if len(set(names)) != len(names):
            raise ValueError(f"{benchmark} names a figure twice: {sorted(names)}; names must be distinct")
        return cls(
            benchmark=benchmark,
            meaning=meaning,
            tables=(ResultTable.of("", columns, rows), *more_tables),
            figures=tuple(figures),
            plots=tuple(plots),
            notes=tuple(notes),
            quick=quick,
            command=command_line(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            hardware=describe_hardware(),
            versions=package_versions(),
            details=details or {},
        )

    def figure(self, name: str) -> Figure:
        """The figure of that name; KeyError names those that exist."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        known = ", ".join(figure.name for figure in self.figures)
        raise KeyError(f"{self.benchmark} has no figure {name!r}; it has {known}")


def time_calls(call: Callable[[], object], repetitions: int, *, warm_up: int = 1) -> list[float]:
    """Wall-clock seconds of each of `repetitions` calls, after `warm_up` calls that are not counted."""
    for _ in range(warm_up):
        call()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def publish(result: Result, out_dir: Path, *, quiet: bool = False) -> Path:
    """Save the result below `out_dir` and print its table; the path of the JSON file is returned."""
    path = save(result, out_dir)
    if not quiet:
        show(result)
    return path


def save(result: Result, out_dir: Path) -> Path:
    """Write `<out_dir>/<benchmark>.json`, replacing an earlier one in a single step."""
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / f"{result.benchmark}.json"
    write_whole(path, json.dumps(asdict(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def load(path: Path) -> Result:
    """Read a result that `save` wrote; ValueError names the file where it is something else."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["figures"] = tuple(Figure(**figure) for figure in raw["figures"])
        raw["tables"] = tuple(ResultTable.of(**table) for table in raw["tables"])
        for name in ("plots", "notes"):
            raw[name] = tuple(raw[name])
        return Result(**raw)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a benchmark result ({error}); measure it again") from error


def load_all(directory: Path) -> dict[str, Result]:
    """All results of a directory by name of benchmark, in alphabetical order."""
    return {path.stem: load(path) for path in sorted(directory.glob("*.json"))}


def show(result: Result, console: Console | None = None) -> None:
    """Print the tables, what they mean and the notes."""
    console = console or _wide_console()
    console.print(f"{result.benchmark}: {result.meaning}", style="bold", markup=False, highlight=False)
    for table in result.tables:
        show_table(table, console)
    for note in result.notes:
        console.print(f"  {note}", markup=False, highlight=False)


def show_table(shown: ResultTable, console: Console | None = None) -> None:
    """Print one table."""
    console = console or _wide_console()
    table = Table(title=shown.title or None, title_justify="left")
    for index, column in enumerate(shown.columns):
        table.add_column(column, justify="right" if index else "left")
    for row in shown.rows:
        table.add_row(*(format_cell(cell) for cell in row))
    console.print(table)


def _wide_console() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    return console


def format_cell(cell: Cell) -> str:
    """A table cell for people: four significant digits, thousands separated, a dash for nothing."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return cell
