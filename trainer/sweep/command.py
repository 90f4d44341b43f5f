"""`penumbra train sweep`: the grid, its runs, and what is written of them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitstore.common.config_file import ConfigError
from logitstore.common.whole_file import remove_parts, write_whole
from trainer.hf.evaluation.better import LOWER_IS_BETTER
from trainer.run.file_names import CONFIG_NAME
from trainer.run.only_run import only_run
from trainer.run.settings.student import check_names
from trainer.sweep.grid import Axis, points_of
from trainer.sweep.on_ray import RayPlace, run_on_ray
from trainer.sweep.page import page
from trainer.sweep.runs import Outcome, refuse_changed_stores, refuse_secrets, run_points
from trainer.sweep.summary import (
    best_of,
    failures,
    recommendation,
    record,
    settings_name,
    table,
    write_record,
)

RECORD_NAME, PAGE_NAME = "sweep.json", "sweep.html"


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """How a sweep runs and what it is judged by."""

    by: str
    jobs: int | None
    """Runs side by side; None is one for each GPU, or one on a CPU; on Ray, as many as have room."""
    ray: RayPlace | None
    """The cluster to run on; None is this machine."""
    restart: bool
    quiet: bool


def sweep(
    document: Mapping[str, Any], axes: Sequence[Axis], options: SweepOptions, path: str | None
) -> list[Outcome]:
    """Run what is not finished, write `sweep.json` and `sweep.html` after every run; all outcomes.

    `document` is a run's configuration, whose output.folder becomes the sweep's.
    """
    folder = document.get("output", {}).get("folder")
    if not isinstance(folder, str) or not folder:
        raise ConfigError("output.folder is missing; give --out DIR, the folder of the sweep")
    points = points_of(document, axes, folder, path)
    if options.ray is None:
        for student in dict.fromkeys(point.config.student for point in points):
            check_names(student)
    refuse_secrets(points)
    told: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        told.append(outcome)
        ended = sorted(told, key=lambda one: points.index(one.point))
        _write(Path(folder), ended, axes, options.by)
        if not options.quiet:
            print(f"{len(told)}/{len(points)} {_in_words(outcome, options.by)}", file=sys.stderr)

    with only_run(Path(folder)):
        for place in filter(Path.is_dir, (Path(folder), Path(folder) / "runs")):
            remove_parts(place)
        if not options.restart:
            refuse_changed_stores(points)
        if options.ray is not None:
            return run_on_ray(points, options.ray, jobs=options.jobs, restart=options.restart, tell=tell)
        gpus = _gpus()
        jobs = options.jobs or max(len(gpus), 1)
        return run_points(
            points, jobs=jobs, gpus=gpus if jobs <= len(gpus) else (), restart=options.restart, tell=tell
        )


def report(outcomes: Sequence[Outcome], folder: str, by: str) -> str:
    """The table, the recommendation, and the next command."""
    lines = [*table(outcomes, by), *recommendation(outcomes, by), *failures(outcomes)]
    lines.append(f"curves: {folder}/{PAGE_NAME}")
    best = _best(outcomes, by)
    if best is not None:
        run_folder = shlex.quote(best.point.config.output.folder)
        lines.append(f"next: penumbra train eval {run_folder}/{CONFIG_NAME}")
    return "\n".join(lines)


def _best(outcomes: Sequence[Outcome], by: str) -> Outcome | None:
    """The best run of the recommended setting."""
    chosen = best_of(outcomes, by)
    if chosen is None:
        return None
    sign = 1 if by in LOWER_IS_BETTER else -1
    runs = [one for one in outcomes if one.metrics and settings_name(one.point.values) == chosen.best]
    return min(runs, key=lambda one: sign * one.metrics["after"][by] if one.metrics else 0.0)


def _write(folder: Path, outcomes: Sequence[Outcome], axes: Sequence[Axis], by: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / RECORD_NAME, record(outcomes, axes, by))
    write_whole(folder / PAGE_NAME, page(outcomes, axes, by, str(folder)))


def _in_words(outcome: Outcome, by: str) -> str:
    name = outcome.point.name
    if outcome.metrics is None:
        return f"{name}: failed: {outcome.error}"
    return f"{name}: {by} {outcome.metrics['after'][by]:.4f} ({outcome.state})"


def _gpus() -> list[str]:
    """The GPUs that runs may take, by the numbers that CUDA knows them by."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return [name for name in named.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]
