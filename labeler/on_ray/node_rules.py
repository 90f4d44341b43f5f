"""What keeps a node's replicas from working, or may make their labels differ, by the nodes' reports. Pure.

One fact refuses a job and another only warns, by what a store pins: its manifest names the engine's version,
so another one of vLLM is refused; versions that it does not name may move the last bits of labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from labeler.config.loading import JobConfig
from labeler.on_ray.lacking import install_remedy
from labeler.on_ray.node_report import NodeReport
from labeler.planning.fit.gpu_memory import GB, StoredWeights

ALWAYS_NEEDED = ("ray", "numpy", "pyarrow", "zstandard", "pydantic", "fsspec")
NEEDED_BY_ENGINE: Mapping[str, tuple[str, ...]] = {
    "vllm": ("vllm", "torch", "transformers"),
    "openai": ("openai", "transformers"),
    "fake": (),
}
MAY_CHANGE_LABELS = ("torch", "transformers")
"""Packages of the engine's computation whose versions the manifest does not name."""
MOST_NAMED = 5
"""Nodes named in one line."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found of all nodes together; each line names its nodes, the value, the rule and the remedy."""

    lacks: tuple[str, ...]
    """What would fail the replicas there."""
    warnings: tuple[str, ...]
    """What merely may."""


@dataclass(frozen=True, slots=True)
class NodeRules:
    """What nodes must have for one job."""

    job: JobConfig
    driver: NodeReport
    """Report of the driver's own process: nodes must be able to read what it sends."""
    engine_version: str
    """vLLM's version by which the store's present labels were made; "" where there are none."""
    weights: StoredWeights | None
    """Weights of a teacher that nodes fetch, as far as they are known."""

    def judge(self, reports: Sequence[NodeReport]) -> Findings:
        lacks = [(report.name, lack) for report in reports for lack in self.lacks_of(report)]
        lacks += _of_two_engines(reports) if self.job.teacher.engine == "vllm" else []
        warnings = [(report.name, line) for report in reports for line in self._warnings_of(report)]
        warnings += _of_mixed(reports) if self.job.teacher.engine == "vllm" else []
        return Findings(tuple(_gathered(lacks)), tuple(_gathered(warnings)))

    def lacks_of(self, report: NodeReport) -> Iterator[str]:
        """Whatever fails a replica on this node."""
        yield from self._other_versions(report)
        needed = [*NEEDED_BY_ENGINE[self.job.teacher.engine], *ALWAYS_NEEDED]
        missing = [name for name in needed if name not in report.packages]
        if missing:
            yield (
                f"no {', '.join(missing)} in {report.executable}, which a replica with teacher.engine = "
                f"{self.job.teacher.engine!r} imports; {install_remedy(missing[0])}"
            )
        vllm, stored = report.packages.get("vllm"), self.engine_version
        if self.job.teacher.engine == "vllm" and stored and vllm not in (None, stored):
            yield (
                f"vLLM {vllm}, but the store's labels are of {stored} and all labels of a store are made "
                "alike; install that version there, or write to another store"
            )
        yield from self._store_lacks(report)
        if report.model == "absent":
            yield (
                f"the teacher {self.job.teacher.model!r} cannot be had there: {report.model_problem}; bring "
                "its folder to the same path on every node, or name a Hugging Face id that they can fetch"
            )

    def _other_versions(self, report: NodeReport) -> Iterator[str]:
        if _minor(report.python) != _minor(self.driver.python):
            yield (
                f"Python {report.python}, but the driver runs {self.driver.python} and what they send each "
                "other is made for one minor version; take an environment of the same Python on every node "
                "(submit with --python PATH)"
            )
        if report.code != self.driver.code:
            yield (
                f"other sources of penumbra ({report.code}) than the driver's ({self.driver.code}), and both "
                "must be of one version; install the same one on every node, or submit with --ship-code"
            )
        ray, own_ray = report.packages.get("ray"), self.driver.packages.get("ray")
        if ray is not None and ray != own_ray:
            yield (
                f"Ray {ray}, but the driver has {own_ray} and the processes of a cluster must have one "
                "version; install the same one in every environment"
            )

    def _store_lacks(self, report: NodeReport) -> Iterator[str]:
        uri = repr(self.job.output.uri)
        match report.store:
            case "no package":
                yield (
                    f"output.uri = {uri} cannot be opened there: {report.store_problem}; install that "
                    "package in the nodes' environment"
                )
            case "not the same":
                yield (
                    f"output.uri = {uri} is another place there: {report.store_problem}; name a place that "
                    "every node shares, such as an s3:// address or a folder of a network disk"
                )
            case "not writable":
                yield (
                    f"output.uri = {uri} cannot be written there: {report.store_problem}; give the nodes the "
                    "right to, or name another place"
                )
            case _:
                return

    def _warnings_of(self, report: NodeReport) -> Iterator[str]:
        if report.store == "no answer":
            yield (
                f"output.uri = {self.job.output.uri!r} does not answer there now: {report.store_problem}; "
                "labels wait for it for output.retry_sec"
            )
        weights = self.weights
        if report.model == "fetchable" and weights and weights.num_bytes > report.cache_free_bytes:
            yield _full_disk(weights, report)


def _full_disk(weights: StoredWeights, report: NodeReport) -> str:
    return (
        f"the teacher's weights are about {weights}, and the disk of {report.cache}, where they are fetched "
        f"to, has {report.cache_free_bytes / GB:,.1f} GB free; make room there, or set HF_HOME on the nodes"
    )


def _of_two_engines(reports: Sequence[NodeReport]) -> list[tuple[str, str]]:
    """Nodes with another vLLM than most: the first replica's is the store's, and the others are refused."""
    versions = [version for report in reports if (version := report.packages.get("vllm"))]
    if len(set(versions)) < 2:
        return []
    most = max(sorted(set(versions)), key=versions.count)
    return [
        (
            report.name,
            f"vLLM {version}, other nodes have {most}, and all labels of a store are made alike; install "
            "one version on all, or choose the nodes by workers.resources",
        )
        for report in reports
        if (version := report.packages.get("vllm")) and version != most
    ]


def _of_mixed(reports: Sequence[NodeReport]) -> list[tuple[str, str]]:
    """What differs between nodes and may move the last bits of their labels."""
    found = []
    for what in (*MAY_CHANGE_LABELS, "GPUs"):
        kinds = {report.name: _kind(report, what) for report in reports}
        if len(set(kinds.values()) - {""}) < 2:
            continue
        by_kind = "; ".join(
            f"{kind} on {named([name for name in kinds if kinds[name] == kind])}"
            for kind in sorted(set(kinds.values()) - {""})
        )
        found.append(
            (
                "",
                f"nodes differ in {what} ({by_kind}), which may move the last bits of labels; for labels "
                "that are made alike use the same everywhere, or choose nodes by workers.resources",
            )
        )
    return found


def _kind(report: NodeReport, what: str) -> str:
    return ", ".join(sorted(set(report.gpus))) if what == "GPUs" else report.packages.get(what, "")


def _gathered(found: Sequence[tuple[str, str]]) -> Iterator[str]:
    """One line for all nodes of which the same is said."""
    nodes: dict[str, list[str]] = {}
    for node, line in found:
        nodes.setdefault(line, []).append(node)
    for line, names in nodes.items():
        shown = named([name for name in names if name])
        yield f"{shown}: {line}" if shown else line


def named(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more nodes" if more > 0 else "")


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
