"""What Kubernetes refuses only when a pod is to start is refused when the cluster is described."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cluster.describe.kubernetes.pod_rules import problems_of_pod, quantity
from cluster.describe.kubernetes.restricted import problems_if_restricted
from cluster.describe.render import render
from cluster.describe.settings.cluster import ClusterConfig
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import TWO_KINDS, pod_templates, two_kinds

pytestmark = pytest.mark.slow  # Kubernetes' schemas


def described(**kubernetes: Any) -> ClusterConfig:
    return two_kinds(kubernetes=TWO_KINDS["kubernetes"] | kubernetes)


def rendered(cluster: ClusterConfig) -> str:
    return render(cluster, "kuberay-cluster", None, job_file="job.toml")


def worker(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "ray-worker", **fields}]}}


SCRATCH = {"name": "m", "emptyDir": {}}


@pytest.mark.parametrize(
    ("pod", "says"),
    [
        (worker(resources={"limits": {"memory": "200GB"}}), r"limits\.memory = '200GB' is no amount"),
        (worker(resources={"limits": {"memory": "2Gi"}}), r"requests\.memory = '27Gi' is above limits\.memory"),
        (worker(resources={"limits": {"nvidia.com/gpu": "16"}}), "which only cores and memory may"),
        (worker(volumeMounts=[{"name": "models", "mountPath": "/m"}]), "no volume is named 'models'"),
        (worker(env=[{"name": "A B", "value": "1"}]), "env 'A B' is no name"),
        ({"spec": {"volumes": [{"name": "My_Vol", "emptyDir": {}}]}}, "at most 63 small letters"),
        ({"spec": {"volumes": [SCRATCH | {"hostPath": {"path": "/x"}}]}}, "of emptyDir and of hostPath"),
        ({"spec": {"volumes": [SCRATCH]}} | {"spec": {"volumes": [SCRATCH], **worker(
            volumeMounts=[{"name": "m", "mountPath": "m"}])["spec"]}}, "mountPath 'm' must start with '/'"),
        ({"spec": {"nodeSelector": {"a b": "c"}}}, "no label that a node can have"),
        ({"spec": {"nodeSelector": {"pool": "big pool"}}}, "no label that a node can have"),
        ({"spec": {"tolerations": [{"key": "a", "effect": "NoScheduled"}]}}, "effect 'NoScheduled'"),
        ({"spec": {"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]}}, "Exists has no value"),
        ({"spec": {"tolerations": [{"effect": "NoSchedule"}]}}, "must have the operator Exists"),
        ({"spec": {"restartPolicy": "Sometimes"}}, "is not one of Always"),
        ({"metadata": {"annotations": {"a b": "1"}}}, "annotation 'a b'"),
    ],
)  # fmt: skip
def test_a_pod_that_would_never_start_is_refused(pod: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"{says}.*correct it in \[kubernetes\]"):
        rendered(described(pod=pod))
    own = [TWO_KINDS["groups"][0], TWO_KINDS["groups"][1] | {"pod": pod}]
    with pytest.raises(ConfigError, match=says):
        rendered(two_kinds(groups=own))


def test_a_pool_of_its_own_is_said_for_a_group() -> None:
    pool = {
        "spec": {"nodeSelector": {"pool": "h100"}, "tolerations": [{"key": "h100", "operator": "Exists"}]}
    }
    groups = [TWO_KINDS["groups"][0], TWO_KINDS["groups"][1] | {"pod": pool}]
    (cluster,) = yaml.safe_load_all(rendered(two_kinds(groups=groups)))
    head, l4, h100 = (template["spec"] for template in pod_templates(cluster))
    assert h100["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "pool": "h100"}
    assert pool["spec"]["tolerations"][0] in h100["tolerations"]
    assert "pool" not in l4["nodeSelector"]
    assert "nodeSelector" not in head


@pytest.mark.parametrize(
    ("accelerator", "resource", "taint"),
    [
        ("MI300X", "amd.com/gpu", "amd.com/gpu"),
        ("H100", "nvidia.com/mig-3g.40gb", "nvidia.com/gpu"),
        ("H100", "gpus.example/h100", "gpus.example/gpu"),
    ],
)
def test_gpus_of_another_name_are_asked_for_and_told_to_ray(
    accelerator: str, resource: str, taint: str
) -> None:
    groups = [TWO_KINDS["groups"][0] | {"accelerator": accelerator}]
    (cluster,) = yaml.safe_load_all(rendered(two_kinds(
        groups=groups, kubernetes=TWO_KINDS["kubernetes"] | {"gpu_resource": resource}
    )))  # fmt: skip
    group = cluster["spec"]["workerGroupSpecs"][0]
    spec = group["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"][resource] == "4"
    assert "nvidia.com/gpu" not in spec["containers"][0]["resources"]["limits"]
    assert spec["tolerations"][0]["key"] == taint
    assert group["rayStartParams"]["num-gpus"] == "4"


@pytest.mark.parametrize(
    ("pod", "says"),
    [
        (worker(securityContext={"runAsUser": 0}), "is 0, which is root"),
        (worker(securityContext={"privileged": True}), "privileged is forbidden"),
        (worker(securityContext={"capabilities": {"add": ["IPC_LOCK"]}}), "add: IPC_LOCK is forbidden"),
        (worker(ports=[{"containerPort": 80, "hostPort": 80}]), "hostPort is forbidden"),
        ({"spec": {"hostNetwork": True}}, "hostNetwork is forbidden"),
        (
            {"spec": {"volumes": [{"name": "m", "hostPath": {"path": "/x"}}]}},
            "of hostPath, which is forbidden",
        ),
        ({"spec": {"volumes": [{"name": "m", "nfs": {"server": "s", "path": "/x"}}]}}, "of nfs"),
        ({"spec": {"initContainers": [{"name": "i", "image": "busybox"}]}}, "Escalation must be false"),
        ({"spec": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}}, "is 'Unconfined'"),
        ({"spec": {"securityContext": {"runAsNonRoot": False}}}, "runAsNonRoot must be true"),
    ],
)
def test_what_is_added_keeps_to_a_restricted_namespace(pod: dict[str, Any], says: str) -> None:
    assert rendered(described(pod=pod))
    with pytest.raises(ConfigError, match=rf"restricted namespace would refuse the pod \(group l4\).*{says}"):
        rendered(described(pod=pod, restricted=True))


@pytest.mark.parametrize(
    "setting",
    [
        {"secret": "Store_Keys"},
        {"service_account": "my sa"},
        {"priority_class": "high_prio"},
        {"pull_secrets": ["-registry"]},
        {"secret": "a" * 254},
        {"namespace": "a" * 64},
        {"spot_label": "spot"},
        {"spot_label": "a b=true"},
        {"gpu_label": "gpu model"},
        {"gpu_labels": {"L4": "NVIDIA L4"}},
    ],
)
def test_a_name_that_no_object_can_have_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=rf"kubernetes\.{next(iter(setting))}"):
        described(**setting)
    with pytest.raises(ValidationError, match=r"cache\.claim"):
        two_kinds(cache={"claim": "My_Claim"})
    assert described(secret="team.store-keys.v2").kubernetes.secret


def test_a_policy_covers_the_clusters_pods_whatever_they_are_called() -> None:
    """A pod renamed by its owner's labels stood open, though a policy was asked for."""
    pod = {"metadata": {"labels": {"app.kubernetes.io/name": "distill"}}}
    policy, cluster = yaml.safe_load_all(rendered(described(pod=pod, head_pod=pod, network_policy=True)))
    wanted = policy["spec"]["podSelector"]["matchLabels"]
    for template in pod_templates(cluster):
        assert wanted.items() <= template["metadata"]["labels"].items()
    renamed = {"metadata": {"labels": {"penumbra/cluster": "other"}}}
    with pytest.raises(ConfigError, match="the network policy covers the pods where it is 'distill'"):
        rendered(described(pod=renamed, network_policy=True))


@pytest.mark.parametrize(
    ("amount", "value"),
    [("2", 2), (8, 8), ("500m", 0.5), ("16Gi", 2**34), ("1.5G", 1.5e9), ("1e3", 1000), (".5", 0.5)]
    + [(one, None) for one in ("", "GB", "1GB", "1 Gi", "-", True, "1ki", "0x10")],
)
def test_amounts_are_read_as_kubernetes_does(amount: object, value: float | None) -> None:
    assert quantity(amount) == value


@pytest.mark.parametrize(
    "image",
    [
        "docker://registry.example/penumbra:1",
        "docker:a/b",
        "Team/Penumbra:1",
        "a/b :1",
        "/images/a.sif",
        "a/b:",
    ],
)
def test_an_image_of_another_form_is_refused_where_a_registry_is_asked(image: str) -> None:
    for kind in ("kuberay-cluster", "ray-aws"):
        with pytest.raises(ConfigError, match=r"is no name of an image in a registry; write it as"):
            render(two_kinds(image=image), kind, None, job_file="job.toml")
    for good in ("penumbra", "host:5000/a/b__c:1.2_x", "a.b/c-d@sha256:" + "0" * 64, "[fd00::1]:5000/a"):
        assert good in render(two_kinds(image=good), "ray-aws", None, job_file="job.toml")


@pytest.mark.parametrize("wrong", [1, "x", None, True, [1], {"a": 1}], ids=repr)
def test_whatever_stands_in_a_pod_is_no_defect(wrong: Any) -> None:
    """Where the package of Kubernetes' schema is not installed, anything may: only sentences come of it."""
    names = ("volumes", "initContainers", "containers", "nodeSelector", "tolerations", "securityContext")
    rights = ("capabilities", "seccompProfile", "runAsUser", "privileged")
    whole: dict[str, Any] = dict.fromkeys(
        (*names, *rights, "name", "resources", "env", "volumeMounts", "ports"), wrong
    )
    within: dict[str, Any] = {
        "volumes": [whole],
        "containers": [whole | {"securityContext": whole, "volumeMounts": [whole], "env": [whole]}],
        "tolerations": [whole | {"operator": wrong, "effect": wrong, "key": wrong}],
        "securityContext": {name: {"drop": wrong, "add": wrong, "type": wrong} for name in rights},
    }
    for spec in (whole, within, whole | within):
        assert all(isinstance(one, str) for one in (*problems_of_pod(spec), *problems_if_restricted(spec)))
