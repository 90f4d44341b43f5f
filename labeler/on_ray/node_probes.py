"""Asks the nodes of a cluster, before replicas go there, what they have for the job.

Each is asked by a light task that Ray runs on it in the interpreter and environment that replicas will have.
A node that joins later is asked when the first replica is placed there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from labeler.config.loading import JobConfig, with_absolute_paths
from labeler.errors import STOPPED_EARLY, StoppedError
from labeler.on_ray.failure_causes import first_cause
from labeler.on_ray.node_report import NodeReport, Question, report_here
from labeler.on_ray.node_rules import Findings, NodeRules, named
from labeler.on_ray.room import nodes_with_room
from labeler.planning.fit.gpu_memory import GB, stored_weights
from labeler.planning.preflight import check_output
from logitstore.common.config_file import ConfigError
from logitstore.errors import StoreError
from logitstore.job_objects import LEASE_NAME
from logitstore.objects.opening import Objects
from logitstore.objects.probing import PROBE_PREFIX

PATIENCE_SEC = 30.0
"""After which nodes that have not answered are told of, and left for later where others have."""
POLL_SEC = 0.5


@dataclass(frozen=True, slots=True)
class NodesSeen:
    """What came of asking all nodes that a replica may be placed on."""

    reports: tuple[NodeReport, ...]
    failures: Mapping[str, str]
    """By the name of each node that could not be asked: why."""
    silent: tuple[str, ...]
    """Names of nodes that have not answered."""
    num_without_room: int
    """Nodes that are not asked, since no replica fits on them."""
    waited_sec: float
    findings: Findings

    @property
    def lacks(self) -> tuple[str, ...]:
        return (*(f"{name}: {reason}" for name, reason in self.failures.items()), *self.findings.lacks)

    @property
    def problem(self) -> str:
        """Why the job could not start on these nodes; "" where it could."""
        if self.lacks:
            return (
                "not every node that a replica may be placed on can hold one: "
                + "; ".join(self.lacks)
                + ". Or keep replicas off these nodes by workers.resources"
            )
        return _silence(self.silent, self.waited_sec) if self.silent and not self.reports else ""

    def in_words(self) -> list[str]:
        """A line for each node that answered, and for what is to be said of all."""
        lines = [_in_words(report) for report in self.reports]
        if self.silent and self.reports:
            lines.append(_silence(self.silent, self.waited_sec))
        if self.num_without_room:
            lines.append(f"{self.num_without_room} nodes have no room for a replica and were not asked")
        return [*lines, *(f"WARNING: {warning}" for warning in self.findings.warnings)]

    def as_record(self) -> dict[str, Any]:
        return {
            "nodes": [report.as_record() for report in self.reports],
            "silent": list(self.silent),
            "without_room": self.num_without_room,
            "lacks": list(self.lacks),
            "warnings": list(self.findings.warnings),
            "problem": self.problem,
            "lines": self.in_words(),
        }


class NodeProbes:
    """What is known of the nodes of one cluster that Ray is connected to."""

    def __init__(
        self, job: JobConfig, witness: str, note: Callable[[str], None], engine_version: str = ""
    ) -> None:
        """`witness` is an object that the driver has put into the store, by which nodes know it; the labels
        there are of `engine_version`, "" where there are none."""
        self._job = job = with_absolute_paths(job)
        self._note = note
        self._noted: set[str] = set()
        output = job.output
        self._question = asdict(
            Question(
                engine=job.teacher.engine,
                model=job.teacher.model,
                revision=job.teacher.revision,
                store=output.uri,
                storage_options=output.storage_options,
                witness=witness,
            )
        )
        own = NodeReport(**report_here(self._question, ip=""))
        self._rules = NodeRules(job, own, engine_version, stored_weights(job))
        self._reports: dict[str, NodeReport] = {}
        """By node id: of those that lack nothing."""

    def is_known(self, node_id: str) -> bool:
        """Whether the node has answered and lacks nothing."""
        return node_id in self._reports

    def ask(self, node_id: str, ip: str | None = None) -> Any:
        """Ray's reference to the answer of a node, whose address is `ip`."""
        pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
        options: Any = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": pinned}
        if ip is None:
            ip = next((one["NodeManagerAddress"] for one in ray.nodes() if one["NodeID"] == node_id), "")
        return ray.remote(report_here).options(**options).remote(self._question, ip)

    def take(self, node_id: str, answer: dict[str, Any]) -> str:
        """What a node that joined lacks, in words; "" where replicas can go there."""
        report = _report_of(answer)
        if isinstance(report, str):
            return report
        versions = (known.packages.get("vllm", "") for known in self._reports.values())
        engine_version = self._rules.engine_version or next(versions, "")
        findings = replace(self._rules, engine_version=engine_version).judge([report])
        if findings.lacks:
            return "; ".join(findings.lacks)
        self._reports[node_id] = report
        self.warn(self._rules.judge([*self._reports.values()]).warnings)
        return ""

    def warn(self, warnings: Sequence[str]) -> None:
        """Tells each warning once."""
        for warning in warnings:
            if warning not in self._noted:
                self._noted.add(warning)
                self._note(f"WARNING: {warning}")

    def ask_all(self, is_stopped: Callable[[], bool] = lambda: False) -> NodesSeen:
        """Ask every node that a replica may be placed on, and judge them together.

        Where some are silent for PATIENCE_SEC they are told of, and the others' answers have to do; where all
        are, they are waited for as long as an engine may take to load (`workers.start_sec`), since Ray may
        have an environment to build. Raises StoppedError.
        """
        nodes, num_others = nodes_with_room(self._job.workers, ray.nodes())
        asked = {self.ask(node["NodeID"], node["NodeManagerAddress"]): node for node in nodes}
        waiting = list(asked)
        reports: dict[str, NodeReport] = {}
        failures: dict[str, str] = {}
        unclear: list[str] = []
        begun_sec, told = time.monotonic(), False
        while waiting:
            if is_stopped():
                raise StoppedError(STOPPED_EARLY)
            done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SEC)
            for ref in done:
                _sort(ref, asked[ref], reports, failures, unclear)
            waited_sec = time.monotonic() - begun_sec
            if waiting and waited_sec > PATIENCE_SEC and not told:
                told = True
                self._note(_silence([_name(asked[ref]) for ref in waiting], PATIENCE_SEC))
            is_late = waited_sec > (PATIENCE_SEC if reports else self._job.workers.start_sec)
            if waiting and is_late:
                break
        for ref in waiting:
            ray.cancel(ref)
        findings = self._rules.judge(list(reports.values()))
        if not findings.lacks:
            self._reports |= reports
        silent = (*unclear, *(_name(asked[ref]) for ref in waiting))
        waited_sec = time.monotonic() - begun_sec
        return NodesSeen(tuple(reports.values()), failures, silent, num_others, waited_sec, findings)


def check_nodes(
    job: JobConfig,
    engine_version: str,
    note: Callable[[str], None],
    is_stopped: Callable[[], bool] = lambda: False,
) -> NodeProbes | None:
    """Before replicas start: None on this machine alone, whose own checks were made before.

    Raises ConfigError for what would fail replicas on a node that they may be placed on.
    """
    if job.workers.address is None:
        return None
    probes = NodeProbes(job, LEASE_NAME, note, engine_version)
    seen = probes.ask_all(is_stopped)
    if seen.problem:
        raise ConfigError(seen.problem)
    probes.warn(seen.findings.warnings)
    return probes


def look_at_nodes(job: JobConfig, note: Callable[[str], None]) -> NodesSeen:
    """On demand, without a driver's lease: what the nodes of the job's cluster have and lack.

    Raises ConfigError where the job names no cluster, or the store's place cannot be used from here.
    """
    from labeler.on_ray.runtime import ray_for

    if job.workers.address is None:
        raise ConfigError("no cluster is named: set workers.address or RAY_ADDRESS to the one to look at")
    with ray_for(job), _witness_in(check_output(job)) as witness:
        return NodeProbes(job, witness, note).ask_all()


@contextmanager
def _witness_in(objects: Objects) -> Iterator[str]:
    """Name of a small object in the store, which is removed at the end, with the folder if that is new."""
    name = f"{PROBE_PREFIX}{secrets.token_hex(8)}.json"
    is_new = objects.is_local and not os.path.exists(objects.uri)
    objects.put(name, b"{}")
    try:
        yield name
    finally:
        with contextlib.suppress(StoreError, OSError):  # `verify --repair` removes what is left
            objects.delete(name)
            if is_new:
                os.rmdir(objects.uri)


def _sort(
    ref: Any,
    node: Mapping[str, Any],
    reports: dict[str, NodeReport],
    failures: dict[str, str],
    unclear: list[str],
) -> None:
    """Put an answer where it belongs. A process that crashed says nothing of what is lacking there: its node
    counts as silent, and is asked again when a replica is placed on it. A node that went belongs nowhere."""
    try:
        report = _report_of(ray.get(ref, timeout=60))
    except (RayTaskError, RuntimeEnvSetupError) as error:
        report = first_cause(error)
    except RayError:
        if any(one["Alive"] and one["NodeID"] == node["NodeID"] for one in ray.nodes()):
            unclear.append(_name(node))
        return
    if isinstance(report, str):
        failures[_name(node)] = report
    else:
        reports[node["NodeID"]] = report


def _report_of(answer: dict[str, Any]) -> NodeReport | str:
    try:
        return NodeReport(**answer)
    except TypeError:
        return (
            "an answer of another version of penumbra; install the same one on every node, or submit with "
            "--ship-code"
        )


def _silence(names: Sequence[str], seconds: float) -> str:
    return (
        f"{len(names)} of the nodes have not answered within {seconds:.0f} s: {named(names)}. Ray is "
        "still building their environment (--runtime-env), or cannot start the job's interpreter there: it "
        "must be on the node and have Ray (--python PATH); the node's logs of the runtime environment and of "
        "its raylet, in /tmp/ray/session_latest/logs, say more"
    )


def _in_words(report: NodeReport) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.packages.items())
    gpus = (
        f"{len(report.gpus)} GPUs ({report.gpus[0]}, driver {report.gpu_driver})" if report.gpus else "no GPU"
    )
    return (
        f"{report.name}: Python {report.python}, {versions}; {gpus}; teacher {report.model}; store "
        f"{report.store}; {report.cache_free_bytes / GB:,.0f} GB free at {report.cache}"
    )


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
