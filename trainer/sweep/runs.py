"""The runs of a sweep: each a process of its own, several side by side where there is room."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from logitstore.common.config_file import ConfigError
from logitstore.common.secrets import blanked_places
from logitstore.common.whole_file import write_whole
from logitstore.processes.with_parent import ending_with_this
from logitstore.store import LogitStore
from trainer.run.config import resolved
from trainer.run.file_names import CONFIG_NAME, METRICS_NAME
from trainer.run.settings.data import StoreSource
from trainer.sweep.grid import Point, what_is_trained


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run ended."""

    point: Point
    state: Literal["finished", "finished before", "failed"]
    metrics: dict[str, Any] | None
    """Its metrics.json; None of one that failed."""
    error: str = ""


def run_points(
    points: Sequence[Point],
    *,
    jobs: int,
    gpus: Sequence[str],
    restart: bool,
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run what is not finished, `jobs` at a time, each on a GPU of its own where there are any.

    `tell` is called with each as it ends. A run that fails leaves the others alone. Interrupted, it ends the
    runs at work and raises; the same call goes on with what is left.
    """
    runner = _Runner(jobs, gpus, restart)
    outcomes: dict[str, Outcome] = {}
    lock = threading.Lock()
    for outcome in () if restart else ended_before(points):
        outcomes[outcome.point.name] = outcome
        tell(outcome)

    def one(point: Point) -> None:
        outcome = runner.run(point)
        with lock:
            outcomes[point.name] = outcome
            tell(outcome)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, point) for point in points if point.name not in outcomes]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
            raise
    return [outcomes[point.name] for point in points]


def refuse_secrets(points: Sequence[Point]) -> None:
    """Raises ConfigError for a setting that must not stand in the file that a run is started with."""
    for point in points:
        place = next(blanked_places(resolved(point.config)), None)
        if place is not None:
            raise ConfigError(
                f"{place} is a secret, and a sweep writes settings into files; give it in the environment"
            )


def write_settings(point: Point) -> Path:
    """The file that its run is started with, beside its folder."""
    folder = Path(point.config.output.folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.json")
    write_whole(path, json.dumps(resolved(point.config), indent=1))
    return path


def last_line(text: str) -> str:
    """Where a command's error stands; "" of nothing."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def begun_ns(point: Point) -> int | None:
    """When its run last began, which writes its settings then; None if it never did."""
    try:
        return (Path(point.config.output.folder) / CONFIG_NAME).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def ended_before(points: Sequence[Point]) -> Iterator[Outcome]:
    """Those that need not run; told first, so that what is written of a sweep lacks none of them meanwhile.

    Raises StoreError for a store that cannot be read.
    """
    for point in points:
        found = finished_before(point)
        if found is not None:
            yield Outcome(point, "finished before", found)


def failure(status: int, told: str) -> str:
    """Why a run failed, by its exit status and what it printed."""
    if status < 0:  # what it said before has nothing to do with it
        number = -status
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        memory = ", as is done to one that takes more memory than there is" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}"
    return last_line(told) or f"exit status {status}"


def refuse_changed_stores(points: Sequence[Point]) -> None:
    """Raises ConfigError where runs were finished with other contents of a store than it has now, which each
    of them would refuse by itself, and StoreError for a store that cannot be read."""
    finished = [(point, metrics) for point in points if (metrics := finished_metrics(point)) is not None]
    changed = [(point, uri) for point, metrics in finished for uri in _changed_stores(metrics, point)]
    if changed:
        runs = {point.name for point, _ in changed}
        raise ConfigError(
            f"{len(runs)} of {len(points)} runs were finished before {changed[0][1]} had what it holds now, "
            "and their figures cannot be compared with those of runs to come; give --restart, which runs "
            "them again, choose another folder (--out), or restore the store"
        )


def finished_before(point: Point) -> dict[str, Any] | None:
    """Its metrics where it finished, with these settings and what the stores hold now.

    Raises StoreError for a store that cannot be read.
    """
    found = finished_metrics(point)
    return found if found is not None and is_of_these_stores(found, point) else None


def finished_metrics(point: Point) -> dict[str, Any] | None:
    """What a run of these settings left when it finished before."""
    folder = Path(point.config.output.folder)
    try:
        settings = json.loads((folder / CONFIG_NAME).read_bytes())
        metrics = json.loads((folder / METRICS_NAME).read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    now = json.loads(json.dumps(resolved(point.config)))
    return metrics if what_is_trained(settings) == what_is_trained(now) else None


def is_of_these_stores(metrics: Mapping[str, Any], point: Point) -> bool:
    """Whether the stores hold what the run read; not known, and so False, where it read other files too:
    plain text, or ids.

    A run that is started again finds out for itself. Raises StoreError for a store that cannot be read.
    """
    stores = _stores_of(point)
    if point.config.data.texts or any(store.ids or store.without_ids for store in stores):
        return False
    return not _changed_stores(metrics, point)


def _stores_of(point: Point) -> list[StoreSource]:
    return [*point.config.data.stores, *(point.config.evaluation.stores or ())]


def _changed_stores(metrics: Mapping[str, Any], point: Point) -> list[str]:
    """URIs of those that hold something else than the run read. What comes after its stores are texts."""
    read = [*metrics["stores"][: len(point.config.data.stores)], *metrics.get("evaluation_stores", ())]
    return [
        store.uri
        for then, store in zip(read, _stores_of(point), strict=False)  # earlier versions kept fewer
        if then["digest"] != LogitStore.open(store.uri, storage_options=store.storage_options).digest
    ]


class _Runner:
    def __init__(self, jobs: int, gpus: Sequence[str], restart: bool) -> None:
        self._restart = restart
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._is_stopped = False
        self._running: set[subprocess.Popen[str]] = set()
        self._free_gpus: SimpleQueue[str] = SimpleQueue()
        self._has_gpus = bool(gpus)
        for gpu in gpus:
            self._free_gpus.put(gpu)

    def run(self, point: Point) -> Outcome:
        config = write_settings(point)
        gpu = self._free_gpus.get() if self._has_gpus else None
        try:
            status, out, err = self._process(config, gpu)
        finally:
            if gpu is not None:
                self._free_gpus.put(gpu)
        metrics = finished_metrics(point) if status == 0 else None
        if metrics is None:
            return Outcome(point, "failed", None, failure(status, err or out))
        return Outcome(point, "finished", metrics)

    def stop(self) -> None:
        self._is_stopped = True
        for process in list(self._running):
            process.terminate()

    def _process(self, config: Path, gpu: str | None) -> tuple[int, str, str]:
        command = ending_with_this(["trainer", "run", str(config), "--quiet", "--json"])
        environment = {"OMP_NUM_THREADS": str(self._threads), **os.environ}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        if self._is_stopped:
            return 130, "", "interrupted"
        with subprocess.Popen(
            [*command, *(["--restart"] if self._restart else [])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            self._running.add(process)
            try:
                out, err = process.communicate()
            finally:
                self._running.discard(process)
        return process.returncode, out, err
