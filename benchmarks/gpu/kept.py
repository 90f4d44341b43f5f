"""The tables of an earlier call, which need not be measured again: a lent machine takes several short calls.

Each table is kept with the choices that it depends on, all of them with the card, the versions and our code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.report.environment import describe_hardware
from benchmarks.report.results import Figure, Result, ResultTable, load
from benchmarks.report.results_page import GPU

MEASURED_PACKAGES = ("torch", "triton", "vllm", "liger-kernel", "cut-cross-entropy")
MEASURED_CODE = ("labeler", "logitstore", "trainer", "benchmarks/gpu", "benchmarks/labels")
NOTE = "Medians of ten runs on synthetic logits; the losses are the best of some steps."


@dataclass(frozen=True, slots=True)
class Measured:
    """A table and how it came about."""

    table: ResultTable
    settings: str
    """The choices of the command line that it depends on."""
    date: str
    seconds: float

    @property
    def is_whole(self) -> bool:
        """Whether every line has a figure."""
        return all(row[1] is not None for row in self.table.rows)


def conditions() -> dict[str, str]:
    """What a figure of this machine and version holds for."""
    found = {"card": card(), "driver": describe_hardware()["gpu"], "code": code_digest()}
    for name in MEASURED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def card() -> str:
    if not torch.cuda.is_available():
        return "CPU"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def code_digest() -> str:
    """Of our sources that are measured. A copy on a lent machine has no commit to go by."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(path for folder in MEASURED_CODE for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def read_kept(out: Path, here: Mapping[str, str]) -> tuple[dict[str, Measured], str | None]:
    """Tables by title that an earlier call left in `out`; none, and why, where they do not hold here."""
    path = out / f"{GPU}.json"
    if not path.exists():
        return {}, None
    try:
        result = load(path)
        details: Any = result.details
        found, sections = details["conditions"], details["sections"]
        kept = {
            title: Measured(replace(table, title=title), **how)
            for (title, how), table in zip(sections.items(), result.tables, strict=True)
        }
        differing = [name for name in here if found.get(name) != here[name]]
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}, f"{path} is no result of this version"
    if differing:
        words = ", ".join(f"{name} is {here[name]} and was {found.get(name)}" for name in differing)
        return {}, f"{path} is of something else ({words})"
    return kept, None


def build_result(measured: Mapping[str, Measured], here: Mapping[str, str], notes: Sequence[str]) -> Result:
    """The tables in the order given, and a figure for each line that was measured."""
    tables = [replace(one.table, title=title) for title, one in measured.items()]
    figures = [
        Figure.of(_slug(f"{table.title} {name}"), float(value), str(table.columns[1]))
        for table in tables
        for name, value, *_ in table.rows
        if isinstance(value, float)
    ]
    first, *more = tables
    sections = {
        title: {name: value for name, value in asdict(one).items() if name != "table"}
        for title, one in measured.items()
    }
    return Result.of(
        GPU,
        meaning=f"What runs on one {here['card']}; {first.title} in the first table.",
        columns=first.columns,
        rows=first.rows,
        more_tables=more,
        figures=figures,
        notes=(NOTE, *notes),
        details={"card": here["card"], "conditions": dict(here), "sections": sections},
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
