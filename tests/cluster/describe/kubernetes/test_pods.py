"""Pods in Kubernetes: what they ask for and see, what a user adds, what their namespace demands."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.describe.kubernetes import kuberay
from cluster.describe.render import render
from cluster.describe.settings.cluster import ClusterConfig
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import TWO_KINDS, a_job, pod_templates, two_kinds, validate_pod

pytestmark = pytest.mark.slow  # Kubernetes' schemas take seconds to load


def test_what_is_not_spot_stays_off_spot_nodes() -> None:
    """Google's are not tainted, so that a pod without a selector may be placed there."""
    (rendered,) = yaml.safe_load_all(render(two_kinds(), "kuberay-cluster", None, job_file="job.toml"))
    head, spot, on_demand = pod_templates(rendered)
    for template in (head, on_demand):
        validate_pod(template)
        nodes = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (rule,) = nodes["nodeSelectorTerms"][0]["matchExpressions"]
        assert rule == {"key": "cloud.example/spot", "operator": "NotIn", "values": ["true"]}
    assert "affinity" not in spot["spec"]
    kubernetes = TWO_KINDS["kubernetes"] | {"spot_label": ""}
    groups = [group | {"spot": False} for group in TWO_KINDS["groups"]]
    unmarked = two_kinds(groups=groups, kubernetes=kubernetes)
    assert "affinity" not in render(unmarked, "kuberay-cluster", None, job_file="job.toml")


def with_pod(pod: dict[str, Any]) -> str:
    kubernetes = TWO_KINDS["kubernetes"] | {"pod": pod}
    return render(two_kinds(kubernetes=kubernetes), "kuberay-cluster", None, job_file="job.toml")


@pytest.mark.parametrize(
    ("pod", "says"),
    [
        ({"spec": {"containers": [{"name": "ray-worker", "resuorces": {}}]}}, "resuorces"),
        ({"spec": {"containers": [{"image": "y"}]}}, "'name' is a required property"),
        ({"spec": {"tolerations": {"key": "x"}}}, "spec.tolerations"),
        ({"metadata": {"labels": ["x"]}}, "metadata.labels"),
        ({"spec": {"nodeSelector": {"pool": 1}}}, "spec.nodeSelector.pool"),
    ],
)
def test_what_kubernetes_would_refuse_of_an_addition_is_refused(pod: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=r"not a pod \(group l4\)") as refused:
        with_pod(pod)
    assert says in str(refused.value)
    assert "correct what is added by [kubernetes]" in str(refused.value)


def test_a_validator_without_the_schema_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.describe.kubernetes.schemas.KUBERNETES", "1.99")
    with pytest.raises(ConfigError, match=r"does not know Kubernetes 1\.99, .* install a newer one, or none"):
        with_pod({})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", "shm", "ray-worker"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "metadata",
                    "spec",
                    "containers",
                    "volumes",
                    "name",
                    "labels",
                    "env",
                    "resources",
                    "tolerations",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["metadata", "spec"]), ANYTHING, max_size=2))
def test_additions_of_any_form_are_valid_or_refused_in_words(pod: dict[str, Any]) -> None:
    try:
        text = with_pod(pod)
    except (ConfigError, ValidationError):
        return
    for template in pod_templates(list(yaml.safe_load_all(text))[-1]):
        validate_pod(template)


def test_pods_that_cannot_be_checked_are_said_to_be_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "pods were not held against Kubernetes' schema: pip install kubernetes-validate"
    assert said not in with_pod({})
    monkeypatch.setattr("cluster.describe.kubernetes.schemas.find_spec", lambda name: None)
    assert said in with_pod({"spec": {"tolerations": {"key": "x"}}})


def test_every_pod_may_run_in_a_restricted_namespace() -> None:
    """The rules of Kubernetes' Pod Security Standards at the level "restricted", those of Linux."""
    kubernetes = TWO_KINDS["kubernetes"] | {"restricted": True, "pull_secrets": ["registry"]}
    cluster = two_kinds(kubernetes=kubernetes, cache={"claim": "models"})
    ray = list(yaml.safe_load_all(render(cluster, "kuberay-job", a_job(), job_file="job.toml")))[-1]
    templates = [*pod_templates(ray), ray["spec"]["submitterPodTemplate"]]
    sidecar = ray["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"]
    for template in templates:
        validate_pod(template)
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] != 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        contexts = [one["securityContext"] for one in [*spec["containers"], *spec.get("initContainers", [])]]
        for context in (*contexts, sidecar):
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
        kinds = {kind for volume in spec.get("volumes", []) for kind in volume.keys() - {"name"}}
        assert kinds <= {"emptyDir", "configMap", "persistentVolumeClaim", "secret", "projected"}
    on_machine = two_kinds(kubernetes=kubernetes, cache={"host_path": "/nvme"})
    with pytest.raises(ConfigError, match="which a restricted namespace forbids"):
        render(on_machine, "kuberay-cluster", None, job_file="job.toml")


def test_pods_fit_their_nodes_and_have_time_to_drain() -> None:
    _, ray = kuberay.ray_job(two_kinds(), a_job(drain_sec=300), "0a1b2c")
    for template in pod_templates(ray):
        spec = template["spec"]
        variables = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
        assert (
            spec["terminationGracePeriodSeconds"]
            > int(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            > 300
        )
    from ray._private import ray_constants

    assert hasattr(ray_constants, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"), "this Ray has no such variable"
    limits = [one["spec"]["containers"][0]["resources"]["limits"] for one in pod_templates(ray)]
    assert [(one["cpu"], one["memory"]) for one in limits] == [("3", "13Gi"), ("43", "27Gi"), ("172", "27Gi")]
    assert [one.get("nvidia.com/gpu") for one in limits] == [None, "4", "8"]


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ({"claim": "models"}, {"persistentVolumeClaim": {"claimName": "models"}}),
        ({"host_path": "/mnt/nvme/hf"}, {"hostPath": {"path": "/mnt/nvme/hf", "type": "DirectoryOrCreate"}}),
        ({"size_gb": 300}, {"emptyDir": {"sizeLimit": "300G"}}),
    ],
)
def test_the_cache_is_mounted_where_hugging_face_looks(cache: dict[str, Any], volume: dict[str, Any]) -> None:
    cluster = ClusterConfig.model_validate(TWO_KINDS | {"cache": cache})
    (rendered,) = yaml.safe_load_all(render(cluster, "kuberay-cluster", None, job_file="job.toml"))
    for template in pod_templates(rendered):
        validate_pod(template)
    head, *workers = (template["spec"] for template in pod_templates(rendered))
    # The head holds no weights: it shares a cache, but room for one is not asked of it.
    for pod in workers if "size_gb" in cache else (head, *workers):
        assert {"name": "cache", **volume} in pod["volumes"]
        (container,) = pod["containers"]
        assert {"name": "cache", "mountPath": "/cache/huggingface"} in container["volumeMounts"]
        assert {"name": "HF_HOME", "value": "/cache/huggingface"} in container["env"]
        asked = container["resources"]["requests"].get("ephemeral-storage")
        assert asked == ("300G" if "size_gb" in cache else None)
    if "size_gb" in cache:
        assert "cache" not in json.dumps(head)
        assert "ephemeral-storage" not in json.dumps(head)
    with pytest.raises(ValueError, match="the cache is in one place"):
        ClusterConfig.model_validate(TWO_KINDS | {"cache": {"claim": "a", "size_gb": 1}})


def test_a_folder_of_the_machine_is_opened_to_the_images_user(tmp_path: Path) -> None:
    """Kubernetes makes it root's with mode 755, and a pod's fsGroup does not reach it."""
    cluster = ClusterConfig.model_validate(TWO_KINDS | {"cache": {"host_path": "/mnt/nvme/hf"}})
    (rendered,) = yaml.safe_load_all(render(cluster, "kuberay-cluster", None, job_file="job.toml"))
    for template in pod_templates(rendered):
        (opening,) = template["spec"]["initContainers"]
        assert opening["volumeMounts"] == [{"name": "cache", "mountPath": "/cache/huggingface"}]
        assert opening["securityContext"]["runAsUser"] == 0
        here = [str(tmp_path) if word == "/cache/huggingface" else word for word in opening["command"]]
        tmp_path.chmod(0o755)
        subprocess.run(here, check=True)
        assert tmp_path.stat().st_mode & 0o7777 == 0o1777
    other = ClusterConfig.model_validate(TWO_KINDS | {"cache": {"claim": "models"}})
    assert "initContainers" not in render(other, "kuberay-cluster", None, job_file="job.toml")


@pytest.mark.parametrize(
    ("platform", "selector"),
    [
        ("gke", {"cloud.google.com/gke-accelerator": "nvidia-l4", "cloud.google.com/gke-spot": "true"}),
        ("karpenter", {"karpenter.k8s.aws/instance-gpu-name": "l4", "karpenter.sh/capacity-type": "spot"}),
    ],
)
def test_a_platforms_node_labels_are_there_before_a_node_is(platform: str, selector: dict[str, str]) -> None:
    groups = [TWO_KINDS["groups"][0] | {"spot": True}, TWO_KINDS["groups"][1]]
    document = TWO_KINDS | {"groups": groups, "kubernetes": {"platform": platform}}
    text = render(ClusterConfig.model_validate(document), "kuberay-cluster", None, job_file="job.toml")
    (rendered,) = yaml.safe_load_all(text)
    group = rendered["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert group["nodeSelector"] == selector
    own = document | {"kubernetes": {"platform": platform, "gpu_labels": {"L4": "mine", "H100": "h"}}}
    assert ClusterConfig.model_validate(own).kubernetes.gpu_labels["L4"] == "mine"
