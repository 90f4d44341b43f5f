"""The runs of a sweep as tasks of a Ray cluster, each on a node that has room for it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from logitstore.common.config_file import ConfigError
from logitstore.common.exit_status import ExitStatus
from logitstore.common.whole_file import write_whole
from trainer.sweep.grid import Point
from trainer.sweep.runs import (
    Outcome,
    begun_ns,
    ended_before,
    finished_metrics,
    last_line,
    write_settings,
)

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.job_config import JobConfig

TRIES = 3
"""Starts of a run whose worker or node ends while it runs."""
LEAST_GPU = 0.0001
"""Ray counts GPUs in such parts."""
MARK = ".sweep-"
"""How the name of the file begins by which nodes know the sweep's folder."""
RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for what runs as a submitted job."""


@dataclass(frozen=True, slots=True)
class RayPlace:
    """Where the runs of a sweep run, and what each takes there."""

    address: str
    """As `ray.init` takes it."""
    cpus: int
    gpus: float | None
    """A part of one lets several runs share it; None is one where any node has GPUs, else none."""

    def __post_init__(self) -> None:
        if self.gpus is not None and (self.gpus % 1 if self.gpus > 1 else 0 < self.gpus < LEAST_GPU):
            raise ConfigError(
                f"--gpus {self.gpus:g}: Ray gives a part of one GPU, of at least {LEAST_GPU}, or whole ones; "
                "give such a number, or 0"
            )


@dataclass(frozen=True, slots=True)
class RunHere:
    """What a task is told."""

    point: Point
    settings_path: str
    restart: bool
    mark_path: str
    """A file in the sweep's folder, which every node must see."""
    mark: str
    """What stands in it."""
    cwd: str
    """Where the command was given: relative paths of the settings begin there."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a task found."""

    kind: Literal["finished", "failed", "stopped", "no shared folder"]
    """"stopped" is by SIGTERM, as of a node that is taken away."""
    node: str
    metrics: dict[str, Any] | None = None
    error: str = ""


def run_on_ray(
    points: Sequence[Point],
    place: RayPlace,
    *,
    jobs: int | None,
    restart: bool,
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """As `run_points`, on a cluster: all at once as far as it has room, or at most `jobs`.

    A run whose worker ends under it is tried again, from its last checkpoint where it saved one. Interrupted,
    it ends the tasks of this sweep alone and raises.

    Raises:
        ConfigError: Ray is not installed, no cluster is at the address, or the sweep's folder is not the same
            folder on the nodes.
    """
    with _connected(place.address):
        gpus = _gpus_per_run(place.gpus)
        _say_where(place, gpus)
        folder = Path(points[0].config.output.folder).absolute().parents[1]
        with _marked(folder) as (mark_path, mark):
            tasks = _Tasks(place.cpus, gpus, tell)
            try:
                for outcome in () if restart else ended_before(points):
                    tasks.end(outcome)
                for point in (one for one in points if one.name not in tasks.outcomes):
                    tasks.wait_until_fewer(jobs)
                    settings = str(write_settings(point).absolute())
                    tasks.start(RunHere(point, settings, restart, mark_path, mark, str(Path.cwd())))
                tasks.wait_until_fewer(1)
            except BaseException:
                tasks.stop()
                raise
    return [tasks.outcomes[point.name] for point in points]


class _Tasks:
    """Those at work or waiting for room, and the outcomes so far by name."""

    def __init__(self, cpus: int, gpus: float, tell: Callable[[Outcome], None]) -> None:
        import ray

        # One call for each worker, so that its memory and its GPU are free afterwards.
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_calls": 1, "max_retries": 0}
        self._remote: Any = ray.remote(**options)(run_here)
        self._tell = tell
        self._running: dict[ObjectRef[Ended], RunHere] = {}
        self._starts: dict[str, int] = {}
        self._begun_before: dict[str, int | None] = {}
        self.outcomes: dict[str, Outcome] = {}

    def start(self, run: RunHere) -> None:
        self._starts[run.point.name] = self._starts.get(run.point.name, 0) + 1
        self._begun_before[run.point.name] = begun_ns(run.point)
        self._running[self._remote.remote(run)] = run

    def end(self, outcome: Outcome) -> None:
        self.outcomes[outcome.point.name] = outcome
        self._tell(outcome)

    def wait_until_fewer(self, limit: int | None) -> None:
        """Wait until fewer than `limit` are left; None waits for none."""
        import ray

        while limit is not None and len(self._running) >= limit:
            for ref in ray.wait(list(self._running))[0]:
                self._take(ref)

    def stop(self) -> None:
        import ray

        for ref in self._running:
            ray.cancel(ref, force=True)

    def _take(self, ref: ObjectRef[Ended]) -> None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        run = self._running.pop(ref)
        point = run.point
        try:
            ended = ray.get(ref)
        except RayTaskError as error:  # a run's own errors are told, not raised: our code is not there
            self.end(Outcome(point, "failed", None, f"a worker cannot begin it: {last_line(str(error))}"))
            return
        except RayError as error:  # its worker or node is gone
            self._try_again(run, " ".join(str(error).split())[:300])
            return
        if ended.kind == "stopped":
            self._try_again(run, ended.error)
            return
        if ended.kind == "no shared folder":
            raise ConfigError(
                f"output.folder: {Path(run.mark_path).parent} is not the same folder on the node "
                f"{ended.node} of the Ray cluster; give --out a folder that all nodes share (such as NFS or "
                "Lustre), or leave out --address and RAY_ADDRESS to run on this machine"
            )
        self.end(Outcome(point, ended.kind, ended.metrics, ended.error))

    def _try_again(self, run: RunHere, why: str) -> None:
        point = run.point
        if self._starts[point.name] == TRIES:
            self.end(Outcome(point, "failed", None, f"its worker ended {TRIES} times: {why}"))
            return
        print(f"{point.name}: its worker ended ({why}); it is tried again", file=sys.stderr)
        has_begun = begun_ns(point) != self._begun_before[point.name]
        self.start(replace(run, restart=run.restart and not has_begun))


def run_here(run: RunHere) -> Ended:
    """The task: one run in this worker's process, so that it ends with it."""
    import ray

    node = socket.gethostname()
    try:
        is_shared = Path(run.mark_path).read_text(encoding="utf-8") == run.mark
    except OSError:
        is_shared = False
    if not is_shared:
        return Ended("no shared folder", node)
    where = node
    try:
        os.chdir(run.cwd)
    except OSError:
        where = f"{node}, which has no folder {run.cwd}"
    if not ray.get_gpu_ids():  # else a node with GPUs would show all of them
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from trainer.__main__ import main  # the command itself, whose errors are sentences

    out, err = io.StringIO(), io.StringIO()
    command = ["run", run.settings_path, "--quiet", "--json", *(["--restart"] if run.restart else [])]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(command)
    metrics = finished_metrics(run.point) if status == 0 else None
    if metrics is None:
        error = last_line(err.getvalue() or out.getvalue()) or f"exit status {status}"
        kind = "stopped" if status == ExitStatus.STOPPED else "failed"
        return Ended(kind, node, error=f"{error} (on {where})")
    return Ended("finished", node, metrics)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError(
            f"a sweep on the Ray cluster at {address!r} needs the package 'ray', which is not installed; in "
            "the project's folder: pip install '.[train,cluster]', or leave out --address and RAY_ADDRESS"
        ) from None
    try:
        ray.init(address=address, job_config=_job_config(), logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # noqa: BLE001 - Ray raises what it likes here
        ray.shutdown()
        raise ConfigError(
            f"--address: no Ray cluster can be used at {address!r} ({error}); start one, correct the "
            "address, or leave out --address and RAY_ADDRESS to run on this machine"
        ) from None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints there that a worker has died
            yield
    finally:
        ray.shutdown()


def _job_config() -> JobConfig:
    """Workers import our code from where it was imported here, and not from the current folder."""
    from ray.job_config import JobConfig

    if RAY_JOB_VARIABLE in os.environ:  # a submitted job has a folder of its own
        return JobConfig()
    return JobConfig(_client_job=True, _py_driver_sys_path=[str(Path(__file__).resolve().parents[2])])


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[tuple[str, str]]:
    """A file in the folder by which a node knows it, and what stands in it."""
    mark = secrets.token_hex(8)
    path = folder / f"{MARK}{mark}"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{MARK}*"):  # of an earlier sweep that was killed
        left.unlink(missing_ok=True)
    write_whole(path, mark)
    try:
        yield str(path), mark
    finally:
        path.unlink(missing_ok=True)


def _gpus_per_run(wanted: float | None) -> float:
    return wanted if wanted is not None else float(any(_of(node, "GPU") for node in _nodes()))


def _say_where(place: RayPlace, gpus: float) -> None:
    nodes = _nodes()
    takes = f"{place.cpus:g} CPU and {gpus:g} GPU"
    size = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}"
    print(f"on the Ray cluster at {place.address}: {size}; a run takes {takes}", file=sys.stderr)
    if not any(_of(node, "CPU") >= place.cpus and _of(node, "GPU") >= gpus for node in nodes):
        has = "; ".join(sorted({f"{_of(node, 'CPU'):g} CPU and {_of(node, 'GPU'):g} GPU" for node in nodes}))
        print(
            f"note: no node of the cluster has room for that (there are nodes of {has}), so the sweep waits "
            "for one to join; Ctrl-C ends it, --cpus and --gpus say what a run takes",
            file=sys.stderr,
        )


def _nodes() -> list[Mapping[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _of(node: Mapping[str, Any], resource: str) -> float:
    return float(node["Resources"].get(resource, 0))
