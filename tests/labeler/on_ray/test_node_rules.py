"""What is said of nodes by their reports: what refuses a job, what only warns, and nothing of equal nodes."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeler.config.loading import JobConfig, load_job
from labeler.on_ray.lacking import install_remedy
from labeler.on_ray.node_report import NodeReport, Question, code_digest, report_here, version_of
from labeler.on_ray.node_rules import ALWAYS_NEEDED, NEEDED_BY_ENGINE, Findings, NodeRules
from labeler.planning.fit.gpu_memory import StoredWeights

VERSIONS = {
    "ray": "2.60.0",
    "vllm": "0.32.0",
    "torch": "2.13.0",
    "transformers": "5.19.0",
    "openai": "3.54.0",
    **dict.fromkeys(("numpy", "pyarrow", "zstandard", "pydantic", "fsspec"), "1"),
}
GOOD = NodeReport(
    host="gpu-1",
    ip="10.0.0.1",
    python="3.12.4",
    executable="/opt/venv/bin/python",
    code="5f1d",
    packages=VERSIONS,
    store="writable",
    store_problem="",
    model="fetchable",
    model_problem="",
    cache="/mnt/cache",
    cache_free_bytes=10**12,
    gpus=("NVIDIA L4",),
    gpu_driver="580.1",
)
OTHER = dataclasses.replace(GOOD, host="gpu-2", ip="10.0.0.2")


def job_of(engine: str = "vllm") -> JobConfig:
    more = {"openai": ["teacher.api.base_url='http://s/v1'", "labels.temperatures=[1.0]"]}.get(engine, [])
    overrides = [f"teacher.engine={engine}", "teacher.model=org/teacher-8B", "input.uri=in.jsonl", *more]
    return load_job(None, [*overrides, "input.kind=text", "output.uri=s3://bucket/store"], {})


def judged(*reports: NodeReport, engine: str = "vllm", stored: str = "") -> Findings:
    weights = StoredWeights(16e9, "8B in its name", is_sure=False) if engine == "vllm" else None
    return NodeRules(job_of(engine), GOOD, stored, weights).judge(reports)


def with_version(report: NodeReport, package: str, version: str | None) -> NodeReport:
    kept = {name: found for name, found in report.packages.items() if name != package}
    return dataclasses.replace(report, packages=kept | ({package: version} if version else {}))


@pytest.mark.parametrize(
    ("changed", "said", "remedy"),
    [
        ({"python": "3.11.7"}, "Python 3.11.7, but the driver runs 3.12.4", "--python PATH"),
        ({"code": "99"}, "other sources of penumbra (99) than the driver's (5f1d)", "--ship-code"),
        ({"store": "no package", "store_problem": "pip install gcsfs"}, "pip install gcsfs", "install that"),
        (
            {"store": "not the same", "store_problem": "no lease"},
            "another place there: no lease",
            "network disk",
        ),
        ({"store": "not writable", "store_problem": "403"}, "cannot be written there: 403", "right to"),
        ({"model": "absent", "model_problem": "no such folder"}, "no such folder", "same path"),
    ],
)
def test_a_lack_names_its_node_the_value_and_the_remedy(
    changed: dict[str, Any], said: str, remedy: str
) -> None:
    found = judged(GOOD, dataclasses.replace(OTHER, **changed))
    (lack,) = found.lacks
    assert lack.startswith("gpu-2 (10.0.0.2): ")
    assert said in lack
    assert remedy in lack
    assert found.warnings == ()


@pytest.mark.parametrize("engine", ["vllm", "openai", "fake"])
@pytest.mark.parametrize("package", sorted(VERSIONS))
def test_a_missing_package_refuses_exactly_the_engines_that_import_it(engine: str, package: str) -> None:
    found = judged(GOOD, with_version(OTHER, package, None), engine=engine)
    if package not in (*NEEDED_BY_ENGINE[engine], *ALWAYS_NEEDED):
        assert found == Findings((), ())
        return
    (lack,) = found.lacks
    assert f"no {package} in /opt/venv/bin/python" in lack
    assert install_remedy(package) in lack


def test_another_ray_than_the_drivers_is_refused() -> None:
    (lack,) = judged(with_version(OTHER, "ray", "2.59.0")).lacks
    assert "Ray 2.59.0, but the driver has 2.60.0" in lack


def test_versions_that_the_manifest_pins_are_refused_and_others_warned_of() -> None:
    third = dataclasses.replace(GOOD, host="gpu-3", ip="10.0.0.3")
    (lack,) = judged(GOOD, with_version(OTHER, "vllm", "0.33.0"), third).lacks
    assert lack.startswith("gpu-2 (10.0.0.2): vLLM 0.33.0, other nodes have 0.32.0")
    (lack,) = judged(GOOD, OTHER, stored="0.33.0").lacks
    assert lack.startswith(
        "gpu-1 (10.0.0.1), gpu-2 (10.0.0.2): vLLM 0.32.0, but the store's labels are of 0.33.0"
    )
    for package in ("torch", "transformers"):
        found = judged(GOOD, with_version(OTHER, package, "9"))
        assert found.lacks == ()
        (warning,) = found.warnings
        assert f"differ in {package}" in warning
        assert "9 on gpu-2 (10.0.0.2)" in warning
    (warning,) = judged(GOOD, dataclasses.replace(OTHER, gpus=("NVIDIA H100",) * 2)).warnings
    assert "NVIDIA H100 on gpu-2 (10.0.0.2); NVIDIA L4 on gpu-1 (10.0.0.1)" in warning
    assert judged(GOOD, with_version(OTHER, "torch", "9"), engine="openai") == Findings((), ())


def test_a_full_disk_and_a_slow_store_are_warnings() -> None:
    full = dataclasses.replace(OTHER, cache_free_bytes=10**9)
    (warning,) = judged(GOOD, full).warnings
    assert "16.0 GB" in warning
    assert "1.0 GB free" in warning
    assert judged(dataclasses.replace(full, model="cached")).warnings == (), "nothing is fetched there"
    slow = dataclasses.replace(OTHER, store="no answer", store_problem="503")
    assert judged(GOOD, slow).lacks == ()
    assert "503" in judged(GOOD, slow).warnings[0]


@given(st.lists(st.sampled_from([GOOD, OTHER, dataclasses.replace(OTHER, python="3.11.0")]), max_size=40))
def test_what_is_the_same_on_many_nodes_is_said_once(reports: list[NodeReport]) -> None:
    named = [dataclasses.replace(report, host=f"n{i}") for i, report in enumerate(reports)]
    found = judged(*named)
    bad = [report for report in named if report.python == "3.11.0"]
    assert len(found.lacks) == (1 if bad else 0)
    assert found.warnings == ()
    if len(bad) > 5:
        assert f"and {len(bad) - 5} more nodes: Python 3.11.0" in found.lacks[0]


def test_the_report_of_this_process_is_json_and_has_this_environments_versions(tmp_path: Any) -> None:
    (tmp_path / "driver.json").write_text("{}")
    asked = Question("fake", "", None, str(tmp_path), {}, "driver.json")
    answer = json.loads(json.dumps(report_here(dataclasses.asdict(asked), "10.0.0.9")))
    report = NodeReport(**answer)
    assert report.python == "{}.{}.{}".format(*sys.version_info[:3])
    assert report.code == code_digest()
    assert report.name.endswith(" (10.0.0.9)")
    assert report.store == "writable"
    assert set(ALWAYS_NEEDED) <= set(report.packages)
    assert version_of("no_such_package") == ""
    elsewhere = dataclasses.asdict(dataclasses.replace(asked, witness="other.json"))
    assert NodeReport(**report_here(elsewhere, "")).store == "not the same"


@pytest.mark.slow
@pytest.mark.vllm
def test_vllms_version_is_the_one_that_its_labels_are_marked_with() -> None:
    vllm = pytest.importorskip("vllm")
    assert version_of("vllm") == vllm.__version__
