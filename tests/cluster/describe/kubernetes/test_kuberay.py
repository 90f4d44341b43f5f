"""What is rendered for KubeRay, against its schema and Kubernetes' own."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from cluster.describe.kubernetes import kuberay
from cluster.describe.render import _checked_kuberay, render
from cluster.describe.settings.cluster import ClusterConfig, Kind
from cluster.errors import JobRefusedError
from labeler.config.loading import JobConfig
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import TWO_KINDS, a_job, pod_templates, two_kinds, validate_pod

pytestmark = pytest.mark.slow  # Kubernetes' schemas take seconds to load


@pytest.mark.parametrize("kind", ["kuberay-cluster", "kuberay-job"])
def test_kubernetes_accepts_the_pods_and_our_schema_the_rest(kind: Kind) -> None:
    text = render(two_kinds(), kind, a_job(), job_file="job.toml")
    assert "&id" not in text
    documents = list(yaml.safe_load_all(text))
    ray = documents[-1]
    templates = pod_templates(ray)
    assert len(templates) == 3
    for template in templates:
        validate_pod(template)
    workers = (ray["spec"].get("rayClusterSpec") or ray["spec"])["workerGroupSpecs"]
    assert [json.loads(json.loads(one["rayStartParams"]["resources"])) for one in workers] == [
        {"group-l4": 1},
        {"group-h100": 1},
    ]
    assert workers[0]["template"]["spec"]["nodeSelector"] == {
        "nvidia.com/gpu.product": "NVIDIA-L4",
        "cloud.example/spot": "true",
    }
    if kind == "kuberay-job":
        import kubernetes_validate

        kubernetes_validate.validate(documents[0], "1.33", strict=True)
        carried = JobConfig.model_validate(json.loads(documents[0]["data"]["job.json"]))
        assert carried == a_job()


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda spec: spec.update(rayVersoin="2"), "rayVersoin"),
        (lambda spec: spec["workerGroupSpecs"][0].pop("groupName"), "groupName"),
        (lambda spec: spec["workerGroupSpecs"][0].update(maxReplicas="4"), "maxReplicas"),
        (lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "num-cpus"),
        (lambda spec: spec["autoscalerOptions"].update(upscalingMode="Fast"), "upscalingMode"),
    ],
)
def test_our_schema_refuses_what_kuberay_would(break_it: Any, says: str) -> None:
    document = kuberay.ray_cluster(two_kinds())
    break_it(document["spec"])
    with pytest.raises(ConfigError, match=says):
        _checked_kuberay(two_kinds(), [document])


def test_a_job_in_kubernetes_needs_a_store_outside_its_pods() -> None:
    job = a_job().model_copy(update={"output": a_job().output.model_copy(update={"uri": "runs/store"})})
    with pytest.raises(ConfigError, match=r"output\.uri .* is a path, which no pod has"):
        kuberay.ray_job(two_kinds(), job, "0a1b2c")


def test_two_jobs_in_kubernetes_have_names_of_their_own() -> None:
    """The second `kubectl apply` would else replace the settings that the first one's head has mounted."""
    other = a_job().model_copy(
        update={"output": a_job().output.model_copy(update={"uri": "s3://b/Other_Run/"})}
    )
    kind: Kind = "kuberay-job"
    names = set()
    for job in (a_job(), a_job(), other):
        texts = render(two_kinds(), kind, job, job_file="job.toml")
        config, ray = yaml.safe_load_all(texts)
        assert config["metadata"]["name"] == ray["metadata"]["name"]
        volumes = ray["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
        assert {"name": "job", "configMap": {"name": ray["metadata"]["name"]}} in volumes
        assert len(ray["metadata"]["name"]) <= 47
        names.add(ray["metadata"]["name"])
    assert len(names) == 3
    assert any(name.startswith("distill-other-run-") for name in names)


def test_a_teacher_in_a_folder_is_refused_where_no_pod_has_it() -> None:
    job = a_job().model_copy(
        update={"teacher": a_job().teacher.model_copy(update={"model": "./models/llama"})}
    )
    with pytest.raises(ConfigError, match=r"teacher\.model './models/llama' is a path"):
        kuberay.ray_job(two_kinds(), job, "0a1b2c")


def test_a_chat_template_in_a_file_is_refused_where_no_pod_has_it() -> None:
    job = a_job()
    job = job.model_copy(update={"input": job.input.model_copy(update={"chat_template": "chat.jinja"})})
    with pytest.raises(ConfigError, match=r"input\.chat_template 'chat.jinja' is a path, which no pod has"):
        kuberay.ray_job(two_kinds(), job, "0a1b2c")


def test_given_ids_in_a_folder_are_refused_where_no_pod_has_it() -> None:
    job = a_job()
    job = job.model_copy(update={"labels": job.labels.model_copy(update={"given": "runs/first"})})
    with pytest.raises(ConfigError, match=r"labels\.given 'runs/first' is a path, which no pod has"):
        kuberay.ray_job(two_kinds(), job, "0a1b2c")


def test_what_is_added_to_a_description_reaches_it_and_is_validated() -> None:
    more = {
        "pod": {"spec": {"runtimeClassName": "nvidia", "containers": [
            {"name": "ray-worker", "env": [{"name": "NCCL_SOCKET_IFNAME", "value": "eth0"}]}]}},
        "head_pod": {"spec": {"nodeSelector": {"pool": "system"}}},
        "metadata": {"labels": {"team": "nlp"}},
        "queue": "gpu-queue",
        "pull_secrets": ["registry"],
        "priority_class": "batch",
        "autoscale": False,
    }  # fmt: skip
    config = two_kinds(kubernetes=TWO_KINDS["kubernetes"] | more)
    (ray,) = yaml.safe_load_all(render(config, "kuberay-cluster", None, job_file="job.toml"))
    assert ray["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpu-queue", "team": "nlp"}
    assert ray["spec"]["authOptions"] == {"mode": "token"}
    assert ray["spec"]["enableInTreeAutoscaling"] is False
    head = ray["spec"]["headGroupSpec"]["template"]["spec"]
    assert head["nodeSelector"] == {"pool": "system"}
    for group, count in zip(ray["spec"]["workerGroupSpecs"], (4, 2), strict=True):
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == count
        pod = group["template"]["spec"]
        assert pod["runtimeClassName"] == "nvidia"
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["priorityClassName"] == "batch"
        (container,) = pod["containers"]
        assert container["image"] == config.image
        assert [one["name"] for one in container["env"]][-1] == "NCCL_SOCKET_IFNAME"
        assert "RAY_USAGE_STATS_ENABLED" in [one["name"] for one in container["env"]]
    wrong = two_kinds(kubernetes=TWO_KINDS["kubernetes"] | {"metadata": {"labels": {"team": 7}}})
    with pytest.raises(ConfigError, match="not a RayCluster"):
        render(wrong, "kuberay-cluster", None, job_file="job.toml")


def test_a_job_in_kubernetes_carries_no_secret() -> None:
    output = a_job().output.model_copy(update={"storage_options": {"secret": "abc"}})
    with pytest.raises(JobRefusedError, match=r"output\.storage_options\.secret"):
        kuberay.ray_job(two_kinds(), a_job().model_copy(update={"output": output}), "0a1b2c")


@pytest.mark.parametrize(
    ("kubernetes", "says"),
    [
        ({"spot_label": "a=b"}, "no value for 'L4'"),
        ({"gpu_labels": {"L4": "a", "H100": "b"}}, "spot_label is missing"),
    ],
)
def test_nodes_that_cannot_be_told_apart_are_refused(kubernetes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        kuberay.ray_cluster(two_kinds(kubernetes=kubernetes))


def test_a_network_policy_lets_in_the_own_namespace_and_kuberays_operator() -> None:
    """The operator asks the head how a RayJob is, from a namespace of its own, under Helm's or kustomize's label."""
    kubernetes = TWO_KINDS["kubernetes"] | {"network_policy": True}
    cluster = ClusterConfig.model_validate(TWO_KINDS | {"kubernetes": kubernetes})
    policy, rendered = yaml.safe_load_all(render(cluster, "kuberay-cluster", None, job_file="job.toml"))
    labels = policy["spec"]["podSelector"]["matchLabels"]
    for group in [rendered["spec"]["headGroupSpec"], *rendered["spec"]["workerGroupSpecs"]]:
        assert labels.items() <= group["template"]["metadata"]["labels"].items()
    (rule,) = policy["spec"]["ingress"]
    assert rule["from"][0] == {"podSelector": {}}
    assert [peer["podSelector"]["matchLabels"] for peer in rule["from"][1:]] == [
        {"app.kubernetes.io/name": "kuberay-operator"},
        {"app.kubernetes.io/component": "kuberay-operator"},
    ]
    assert all(peer["namespaceSelector"] == {} for peer in rule["from"][1:])
    assert (policy["spec"]["policyTypes"], policy["metadata"]["namespace"]) == (
        ["Ingress"], rendered["metadata"]["namespace"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kubernetes", "says"),
    [
        ({"metadata": {"name": "mine"}}, "would be that of everything rendered"),
        ({"metadata": {"namespace": "mine"}}, "would be that of everything rendered"),
        ({"metadata": {"labels": {"team": "n l p"}}}, "label 'team' = 'n l p'"),
        ({"queue": "our queue"}, "label 'kueue.x-k8s.io/queue-name' = 'our queue'"),
        ({"pod": {"metadata": {"labels": {"year": "-2026"}}}}, "label 'year' = '-2026' .group l4."),
        ({"pod": {"spec": {"containers": [{"name": "worker", "env": []}]}}}, "no image.*meant: ray-worker"),
        ({"head_pod": {"spec": {"initContainers": [{"name": "wait"}]}}}, "'wait' .head. has no image"),
    ],
)
def test_what_only_the_api_server_would_refuse_is_refused_here(kubernetes: dict[str, Any], says: str) -> None:
    def rendered() -> str:
        cluster = two_kinds(kubernetes=TWO_KINDS["kubernetes"] | kubernetes)
        return render(cluster, "kuberay-cluster", None, job_file="job.toml")

    with pytest.raises(ValueError, match=says):  # ConfigError, or pydantic's own
        rendered()


def test_what_is_of_another_kind_replaces_what_was_rendered() -> None:
    """Kubernetes takes one source of a volume and of a variable, and several mounts of a volume."""
    container = {
        "name": "ray-worker",
        "env": [
            {"name": "RAY_USAGE_STATS_ENABLED", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
        ],
        "volumeMounts": [{"name": "shm", "mountPath": "/mnt/shm"}],
    }
    spec = {"containers": [container], "volumes": [{"name": "shm", "hostPath": {"path": "/dev/shm"}}]}
    cluster = two_kinds(kubernetes=TWO_KINDS["kubernetes"] | {"pod": {"spec": spec}})
    rendered = kuberay.ray_cluster(cluster)["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    (worker,) = rendered["containers"]
    assert container["env"][0] in worker["env"]
    assert [one["name"] for one in worker["env"]].count("RAY_USAGE_STATS_ENABLED") == 1
    assert [one["mountPath"] for one in worker["volumeMounts"] if one["name"] == "shm"] == [
        "/dev/shm",
        "/mnt/shm",
    ]
    assert {"name": "shm", "hostPath": {"path": "/dev/shm"}} in rendered["volumes"]
    more = {"spec": {"volumes": [{"name": "shm", "emptyDir": {"sizeLimit": "8G"}}]}}
    cluster = two_kinds(kubernetes=TWO_KINDS["kubernetes"] | {"pod": more})
    rendered = kuberay.ray_cluster(cluster)["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8G"}} in rendered["volumes"]


def test_a_queue_that_admits_nothing_that_grows_is_told_of() -> None:
    def head(autoscale: bool) -> str:
        kubernetes = TWO_KINDS["kubernetes"] | {"queue": "gpus", "autoscale": autoscale}
        return render(two_kinds(kubernetes=kubernetes), "kuberay-cluster", None, job_file="job.toml")

    assert "set kubernetes.autoscale = false" in head(True)
    assert "kubernetes.autoscale" not in head(False)
