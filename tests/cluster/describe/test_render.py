"""Every rendered description against the validator of whoever will read it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from cluster.__main__ import main
from cluster.describe import grafana, kuberay, ray_yaml
from cluster.describe.fit.machines import CATALOGS, LIST_PRICES, machine_for, price_lines, read_prices
from cluster.describe.fit.placement import check_placement
from cluster.describe.render import _checked_kuberay, _checked_ray_yaml, render
from cluster.describe.settings.cluster import ClusterConfig, GroupConfig, Kind
from cluster.errors import JobRefusedError
from labeler.config.loading import JobConfig, TeacherConfig
from logitstore.common.config_file import ConfigError

pytestmark = pytest.mark.slow  # Ray's validator and Kubernetes' schemas take seconds to load

TWO_KINDS = {
    "name": "distill",
    "image": "registry.example/penumbra:1",
    "groups": [
        {"name": "l4", "count": 4, "accelerator": "L4", "gpus": 4, "cores": 48, "spot": True},
        {"name": "h100", "count": 2, "min_count": 1, "accelerator": "H100", "gpus": 8, "cores": 192},
    ],
    "aws": {"worker_profile": "labeler"},
    "gcp": {"project": "a-project", "zone": "us-central1-a", "worker_account": "labeler@a-project.example"},
    "kubernetes": {
        "namespace": "distill",
        "service_account": "labeler",
        "secret": "store-keys",
        "gpu_labels": {"L4": "NVIDIA-L4", "H100": "NVIDIA-H100-80GB-HBM3"},
        "spot_label": "cloud.example/spot=true",
    },
}
ONE_KIND = TWO_KINDS | {
    "groups": TWO_KINDS["groups"][:1],
    "on_premise": {"head_ip": "10.0.0.1", "worker_ips": [f"10.0.0.{i}" for i in range(2, 6)]},
    "slurm": {"partition": "gpu", "account": "lab", "hours": 1.5, "setup": "module load cuda"},
}


def two_kinds(**changes: Any) -> ClusterConfig:
    return ClusterConfig.model_validate(TWO_KINDS | changes)


def one_kind(**changes: Any) -> ClusterConfig:
    return ClusterConfig.model_validate(ONE_KIND | changes)


def a_job(replicas: int = 8, gpus: float = 2, tensor_parallel: int = 2, **workers: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "teacher": {
                "model": "org/teacher",
                "tensor_parallel_size": tensor_parallel,
                "pipeline_parallel_size": workers.get("machines", 1),
            },
            "input": {"uri": "s3://bucket/prompts.jsonl", "kind": "text"},
            "output": {"uri": "s3://bucket/store"},
            "workers": {"replicas": replicas, "gpus": gpus} | workers,
        }
    )


CORES = {"l4": 48, "h100": 192}


def comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("#"))


@pytest.mark.parametrize("kind", ["ray-aws", "ray-gcp", "ray-on-premise"])
def test_ray_accepts_its_yaml_and_the_groups_are_in_it(kind: Kind) -> None:
    cluster = one_kind() if kind == "ray-on-premise" else two_kinds()
    text = render(cluster, kind, a_job(), job_file="job.toml")  # runs Ray's own validation
    config = yaml.safe_load(text)
    assert config["cluster_name"] == "distill"
    assert config["docker"]["image"] == "registry.example/penumbra:1"
    assert "Needs:" in comments(text)
    assert re.search(r"in all, with every machine up: \d+\.\d\d USD/h", comments(text))
    assert "on each of 4 machines" in comments(text)
    if kind != "ray-on-premise":
        types = config["available_node_types"]
        assert {name: (node.get("min_workers"), node.get("max_workers")) for name, node in types.items()} == {
            "head": (0, 0),
            "l4": (0, 4),
            "h100": (1, 2),
        }
        assert types["l4"]["resources"]["GPU"] == 4
        assert types["h100"]["resources"]["group-h100"] == 1


def test_spot_machines_are_asked_for_as_each_cloud_says_it() -> None:
    aws, gcp = ray_yaml.aws(two_kinds()), ray_yaml.gcp(two_kinds())
    assert aws["available_node_types"]["l4"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in aws["available_node_types"]["h100"]["node_config"]
    scheduling = gcp["available_node_types"]["l4"]["node_config"]["scheduling"]
    assert scheduling == [
        {
            "provisioningModel": "SPOT",
            "instanceTerminationAction": "DELETE",
            "onHostMaintenance": "TERMINATE",
        }
    ]


@pytest.mark.parametrize("make", [ray_yaml.aws, ray_yaml.gcp])
def test_a_clouds_machines_have_a_driver_and_rights_and_install_nothing(make: Any) -> None:
    from ray.autoscaler._private.util import prepare_config

    written = make(two_kinds())
    filled = prepare_config(
        yaml.safe_load(yaml.safe_dump(written))
    )  # with Ray's defaults, as `ray up` reads it
    installs = [filled[name] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")]
    assert installs == [[], [], []]
    types = written["available_node_types"]
    for name in ("l4", "h100"):
        config = types[name]["node_config"]
        assert "labeler" in json.dumps(config.get("IamInstanceProfile") or config["serviceAccounts"])
    assert {"IamInstanceProfile", "serviceAccounts"}.isdisjoint(types["head"]["node_config"])
    assert json.dumps(types).count("nvidia") == 3  # each machine's image has NVIDIA's driver


@pytest.mark.parametrize(
    "break_it",
    [
        lambda config: config.update(max_wrokers=3),
        lambda config: config["provider"].update(region=7),
        lambda config: config["available_node_types"]["l4"].pop("node_config"),
        lambda config: config.update(head_node_type="boss"),
    ],
)
def test_ray_refuses_what_is_wrong(break_it: Any) -> None:
    config = ray_yaml.aws(two_kinds())
    break_it(config)
    with pytest.raises(ConfigError, match="Ray refuses"):
        _checked_ray_yaml(config)


def pod_templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def validate_pod(template: dict[str, Any]) -> None:
    """Kubernetes' own schema, strict: a field that it does not know is an error."""
    import kubernetes_validate

    metadata = template.get("metadata", {}) | {"name": "pod"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    kubernetes_validate.validate(pod, "1.33", strict=True)


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


def test_a_misspelt_pod_field_is_noticed() -> None:
    import kubernetes_validate

    template = pod_templates(kuberay.ray_cluster(two_kinds()))[1]
    template["spec"]["containers"][0]["resuorces"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate_pod(template)


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
        _checked_kuberay([document])


def test_a_job_in_kubernetes_needs_a_store_outside_its_pods() -> None:
    job = a_job().model_copy(update={"output": a_job().output.model_copy(update={"uri": "runs/store"})})
    with pytest.raises(ConfigError, match="lost with its pod"):
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


def test_clouds_take_what_is_added_and_containers_get_their_variables() -> None:
    aws = ray_yaml.aws(
        two_kinds(
            aws={"worker_profile": "w", "node": {"SubnetIds": ["subnet-1"]}},
            docker={"env_file": "/etc/penumbra.env", "run_options": ["-v /models:/models"]},
        )
    )
    for kind in aws["available_node_types"].values():
        assert kind["node_config"]["SubnetIds"] == ["subnet-1"]
        assert kind["node_config"]["BlockDeviceMappings"], "what was rendered stays"
    assert aws["docker"]["run_options"][1:] == ["--env-file /etc/penumbra.env", "-v /models:/models"]
    gcp = ray_yaml.gcp(two_kinds(gcp=TWO_KINDS["gcp"] | {"node": {"labels": {"team": "nlp"}}}))
    for kind in gcp["available_node_types"].values():
        (disk,) = kind["node_config"]["disks"]
        assert disk["initializeParams"]["diskType"].endswith("/diskTypes/pd-balanced")
        assert kind["node_config"]["labels"] == {"team": "nlp"}
    _checked_ray_yaml(aws)
    _checked_ray_yaml(gcp)


@pytest.mark.parametrize("kind", ["ray-aws", "ray-gcp", "ray-on-premise"])
def test_a_launched_cluster_asks_for_a_token(kind: Kind) -> None:
    config = yaml.safe_load(render(one_kind(), kind, None, job_file="job.toml"))
    for start in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token ray start" in start
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_a_job_in_kubernetes_carries_no_secret() -> None:
    output = a_job().output.model_copy(update={"storage_options": {"secret": "abc"}})
    with pytest.raises(JobRefusedError, match=r"output\.storage_options\.secret"):
        kuberay.ray_job(two_kinds(), a_job().model_copy(update={"output": output}), "0a1b2c")


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
    ("kubernetes", "says"),
    [
        ({"spot_label": "a=b"}, "no value for 'L4'"),
        ({"gpu_labels": {"L4": "a", "H100": "b"}}, "spot_label is missing"),
    ],
)
def test_nodes_that_cannot_be_told_apart_are_refused(kubernetes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        kuberay.ray_cluster(two_kinds(kubernetes=kubernetes))


def test_a_dockerfile_copies_only_what_there_is() -> None:
    root = Path(__file__).parents[3]
    text = render(one_kind(), "dockerfile", None, job_file="job.toml")
    joined = re.sub(r"\\\n", " ", text)
    instructions = [
        line.split(maxsplit=1) for line in joined.splitlines() if line and not line.startswith("#")
    ]
    known = {"FROM", "ENV", "RUN", "COPY", "WORKDIR", "USER", "CMD"}
    assert instructions[0][0] == "FROM"
    assert {name for name, _ in instructions} <= known
    for name, rest in instructions:
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert source == "README.md" or (root / source).exists(), source
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    cpu_only = render(one_kind(groups=[{"name": "cpu", "count": 1}]), "dockerfile", None, job_file="job.toml")
    for one, extra in ((text, "label"), (cpu_only, "label-cpu")):
        assert f"--extra {extra} " in one
        assert any(name.startswith("ray[default]") for name in extras[extra])
    # Ray's launcher starts Ray from login shells, where Debian sets the path anew.
    profile = re.search(r"RUN echo '(.*)' > /etc/profile\.d/\S+\.sh\n", text)
    assert profile is not None
    path = subprocess.run(
        ["bash", "-c", f'PATH=/bin; {profile[1]}; echo "$PATH"'], capture_output=True, text=True, check=True
    )
    assert path.stdout == "/opt/venv/bin:/bin\n"


def test_commands_in_a_rendered_file_can_be_typed_as_they_stand() -> None:
    forward = "kubectl -n distill port-forward svc/distill-head-svc 8265"
    submit = "penumbra cluster submit job.toml --address http://127.0.0.1:8265"
    said: list[tuple[Kind, str]] = [
        ("kuberay-cluster", forward),
        ("kuberay-cluster", submit),
        ("ray-aws", submit),
    ]
    for kind, command in said:
        assert command in comments(render(two_kinds(), kind, None, job_file="job.toml"))
    entrypoint = kuberay.ray_job(two_kinds(python="/opt/my python"), a_job(), "0a1b2c")[1]["spec"][
        "entrypoint"
    ]
    assert entrypoint == "'/opt/my python' -P -m labeler run /etc/penumbra/job.json"


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('name = "a"\n[[groups]]\nname = "cpu"\ncount = 2\n')
    assert main(["render", str(file), "--kind", "grafana", "--out", str(tmp_path / "none" / "file")]) == 2
    assert "none/file" in capsys.readouterr().err


def test_grafana_panels_do_not_overlap_and_have_queries() -> None:
    board = json.loads(render(two_kinds(), "grafana", None, job_file="job.toml"))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= grafana.GRID_WIDTH
        taken |= cells
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert target["expr"].count("{") == target["expr"].count("}")
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_prometheus_reads_rays_list_of_targets() -> None:
    config = yaml.safe_load(render(two_kinds(), "prometheus", None, job_file="job.toml"))
    (scrape,) = config["scrape_configs"]
    assert scrape["file_sd_configs"][0]["files"][0].endswith("prom_metrics_service_discovery.json")


def test_replicas_fit_or_the_rule_is_named() -> None:
    assert check_placement(two_kinds(), a_job(replicas=16), CORES) == [
        "group l4: up to 2 on each of 4 machines",
        "group h100: up to 4 on each of 2 machines",
        UNKNOWN_SIZE,
    ]
    only = check_placement(two_kinds(), a_job(replicas=2, gpus=8, resources={"group-h100": 0.001}), CORES)
    assert only[0] == "group h100: up to 1 on each of 2 machines"
    with pytest.raises(ConfigError, match="room for 16"):
        check_placement(two_kinds(), a_job(replicas=17), CORES)
    with pytest.raises(ConfigError, match="no group can hold one"):
        check_placement(two_kinds(), a_job(replicas=1, gpus=16, tensor_parallel=16), CORES)


def model_of(folder: Path, num_layers: int) -> str:
    """A model of 2 x 0.23e9 bytes a layer, whose config.json is here."""
    config = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 14336, "vocab_size": 1000}
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": num_layers}))
    return str(folder)


def test_a_teacher_too_large_for_a_groups_gpus_is_refused(tmp_path: Path) -> None:
    """60 GB on two GPUs of 24 GB each: Ray would place half of the replicas there, and none would load."""
    teacher = {"model": model_of(tmp_path, 130), "tensor_parallel_size": 2, "max_model_len": 2048}
    job = a_job(replicas=8).model_copy(update={"teacher": TeacherConfig.model_validate(teacher)})
    with pytest.raises(ConfigError) as refused:
        check_placement(two_kinds(), job, CORES)
    for words in (
        "a GPU of group l4 has 24 GB",
        "each GPU of a replica needs about",
        "{ group-h100 = 0.001 }",
    ):
        assert words in str(refused.value)
    workers = job.workers.model_copy(update={"resources": {"group-h100": 0.001}})
    lines = check_placement(two_kinds(), job.model_copy(update={"workers": workers}), CORES)
    assert lines[0] == "group h100: up to 4 on each of 2 machines"
    assert "by its config.json" in lines[1]
    larger = [TWO_KINDS["groups"][0] | {"gpu_memory_gb": 48}, TWO_KINDS["groups"][1]]
    roomy = ClusterConfig.model_validate(TWO_KINDS | {"groups": larger})
    assert len(check_placement(roomy, job, CORES)) == 3
    huge = job.model_copy(
        update={"teacher": job.teacher.model_copy(update={"model": model_of(tmp_path, 400)})}
    )
    with pytest.raises(ConfigError, match="larger"):
        check_placement(two_kinds(), huge, CORES)


def test_a_guess_from_a_name_warns_and_an_unknown_size_is_said() -> None:
    teacher = a_job().teacher.model_copy(update={"model": "org/Teacher-32B"})
    lines = check_placement(two_kinds(), a_job(replicas=2).model_copy(update={"teacher": teacher}), CORES)
    assert lines[2].startswith("WARNING: a GPU of group l4 has 24 GB")
    assert "32B in its name" in lines[2]


def large_teacher(replicas: int, machines: int, gpus: int) -> tuple[ClusterConfig, JobConfig]:
    """Five machines of eight GPUs, and a job of `machines` stages of `gpus` GPUs each."""
    cluster = one_kind(groups=[TWO_KINDS["groups"][1] | {"count": 5}], kubernetes={})
    return cluster, a_job(replicas=replicas, gpus=gpus, tensor_parallel=gpus, machines=machines)


@pytest.mark.parametrize("kind", ["ray-aws", "kuberay-job", "slurm"])
@pytest.mark.parametrize(
    ("replicas", "machines", "gpus", "says"),
    [
        (2, 2, 8, "up to 2, each on 2 of 5 machines at once"),
        (5, 2, 4, "up to 5, each on 2 of 5 machines at once"),
        (1, 5, 8, "up to 1, each on 5 of 5 machines at once"),
    ],
)
def test_replicas_of_several_machines_are_placed(
    kind: Kind, replicas: int, machines: int, gpus: int, says: str
) -> None:
    cluster, job = large_teacher(replicas, machines, gpus)
    assert f"group h100: {says}" in comments(render(cluster, kind, job, job_file="job.toml"))


@pytest.mark.parametrize(
    ("replicas", "machines", "gpus", "says"),
    [
        (3, 2, 8, "8 GPUs and 1 cores on each of 2 machines of a group, but the cluster has room for 2"),
        (1, 6, 1, "no group can hold one"),
    ],
)
def test_replicas_of_more_machines_than_there_are_are_refused(
    replicas: int, machines: int, gpus: int, says: str
) -> None:
    cluster, job = large_teacher(replicas, machines, gpus)
    with pytest.raises(ConfigError, match=says):
        render(cluster, "ray-aws", job, job_file="job.toml")


UNKNOWN_SIZE = "GPU memory is not checked: nothing here says how large 'org/teacher' is"


def test_a_replica_is_not_spread_over_different_machines() -> None:
    with pytest.raises(ConfigError, match=r"each of the groups l4, h100; choose one: .* group-h100 = 0\.001"):
        check_placement(two_kinds(), a_job(replicas=1, machines=2), CORES)
    chosen = a_job(replicas=4, machines=2, resources={"group-l4": 0.001})
    assert check_placement(two_kinds(), chosen, CORES) == [
        "group l4: up to 4, each on 2 of 4 machines at once",
        UNKNOWN_SIZE,
    ]


def test_a_group_that_is_asked_for_must_exist_and_have_enough_of_its_resource() -> None:
    for resources in ({"group-a100": 0.001}, {"group-l4": 0.001, "group-h100": 0.001}):
        with pytest.raises(ConfigError, match="of the groups l4, h100; name one"):
            check_placement(two_kinds(), a_job(replicas=1, resources=resources), CORES)
    half = a_job(replicas=4, gpus=1, tensor_parallel=1, resources={"group-h100": 0.5})
    assert check_placement(two_kinds(), half, CORES) == [
        "group h100: up to 2 on each of 2 machines",
        UNKNOWN_SIZE,
    ]


def test_what_kubernetes_keeps_for_itself_is_not_counted() -> None:
    cpu = two_kinds(groups=[{"name": "cpu", "count": 1, "cores": 8}])
    job = a_job(replicas=8, gpus=0, tensor_parallel=1)
    assert "up to 8" in render(cpu, "ray-aws", job, job_file="job.toml")
    with pytest.raises(ConfigError, match="room for 7"):
        render(cpu, "kuberay-cluster", job, job_file="job.toml")


def test_prices_add_up_and_yours_replace_ours() -> None:
    lines = price_lines(two_kinds(head={"price_per_hour": 0.5}), "aws")
    l4 = machine_for(two_kinds().groups[0], "aws").price_per_hour * 0.4 * 4
    h100 = machine_for(two_kinds().groups[1], "aws").price_per_hour * 2
    assert f"{0.5 + l4 + h100:.2f} USD/h" in lines[-2]
    assert "written from memory" in lines[-1]
    assert price_lines(two_kinds(), None)[1].endswith("at AWS's price; set price_per_hour")
    unknown = two_kinds(groups=[{"name": "own", "count": 1, "accelerator": "MI300X", "gpus": 8}])
    assert price_lines(unknown, None, head=False) == ["own: 1 machines, price unknown (set price_per_hour)"]


def test_a_file_of_prices_replaces_the_list(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    machine = machine_for(two_kinds().groups[1], "aws")
    path.write_text(
        json.dumps({"as_of": "2026-11", "source": "our contract", "per_hour": {machine.name: 1.25}})
    )
    lines = price_lines(two_kinds(), "aws", prices=read_prices(path))
    assert "h100: 2 x 1.25 = 2.50 USD/h" in lines
    assert lines[-1] == f"prices of 2026-11: our contract; of other machines: the list of {LIST_PRICES.as_of}"
    assert lines[1] == price_lines(two_kinds(), "aws")[1], "others keep the list's price"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no json", "cannot be used"),
        ("[1]", "cannot be used"),
        ('{"as_of": "x", "source": "y", "per_hour": {"m": "much"}}', "cannot be used"),
        ('{"as_of": "x", "source": "y", "per_hour": {"m": -1}}', "'m' is -1.0, it must be at least 0"),
    ],
)
def test_prices_that_cannot_be_used_are_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_prices(path)
    with pytest.raises(ConfigError, match="is not there"):
        read_prices(tmp_path / "none.json")


@pytest.mark.parametrize("cloud", sorted(CATALOGS))
def test_every_machine_of_the_list_can_be_asked_for(cloud: str) -> None:
    for accelerator, count in CATALOGS[cloud][0]:
        group = GroupConfig(name="g", count=1, accelerator=accelerator, gpus=count)
        assert machine_for(group, cloud) is CATALOGS[cloud][0][accelerator, count]
    with pytest.raises(ConfigError, match="known are"):
        machine_for(GroupConfig(name="g", count=1, accelerator="TPU", gpus=3), cloud)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("accelerator = 'L4'", "gpus = 0"),
        ("min_count = 9", "above count"),
        ("nmae = 'x'", "not a setting"),
        ("price_per_hour = -1", "greater than or equal"),
    ],
)
def test_a_wrong_description_names_value_rule_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, says: str
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(f'name = "a"\n[[groups]]\nname = "cpu"\ncount = 2\n{change}\n')
    assert main(["render", str(file), "--kind", "ray-aws"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_command_writes_every_kind(tmp_path: Path, kind: Kind) -> None:
    file, job, out = tmp_path / "cluster.toml", tmp_path / "job.toml", tmp_path / "out"
    file.write_text(
        'name = "small"\nimage = "i:1"\n[[groups]]\nname = "cpu"\ncount = 2\n[gcp]\nproject = "p"\nzone = "z-1-a"\n'
        '[on_premise]\nhead_ip = "10.0.0.1"\nworker_ips = ["10.0.0.2", "10.0.0.3"]\n'
    )
    job.write_text(
        '[teacher]\nengine = "fake"\n[input]\nuri = "s3://b/in"\nkind = "text"\n[output]\nuri = "s3://b/o"\n'
    )
    assert main(["render", str(file), "--kind", kind, "--job", str(job), "--out", str(out), "--quiet"]) == 0
    assert out.stat().st_size > 100


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
    groups = [rendered["spec"]["headGroupSpec"], *rendered["spec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        assert {"name": "cache", **volume} in pod["volumes"]
        (container,) = pod["containers"]
        assert {"name": "cache", "mountPath": "/cache/huggingface"} in container["volumeMounts"]
        assert {"name": "HF_HOME", "value": "/cache/huggingface"} in container["env"]
        asked = container["resources"]["requests"].get("ephemeral-storage")
        assert asked == ("300G" if "size_gb" in cache else None)
    with pytest.raises(ValueError, match="the cache is in one place"):
        ClusterConfig.model_validate(TWO_KINDS | {"cache": {"claim": "a", "size_gb": 1}})


def test_a_network_policy_lets_in_the_own_namespace_alone() -> None:
    kubernetes = TWO_KINDS["kubernetes"] | {"network_policy": True}
    cluster = ClusterConfig.model_validate(TWO_KINDS | {"kubernetes": kubernetes})
    policy, rendered = yaml.safe_load_all(render(cluster, "kuberay-cluster", None, job_file="job.toml"))
    labels = policy["spec"]["podSelector"]["matchLabels"]
    for group in [rendered["spec"]["headGroupSpec"], *rendered["spec"]["workerGroupSpecs"]]:
        assert labels.items() <= group["template"]["metadata"]["labels"].items()
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {}}]}]
    assert (policy["spec"]["policyTypes"], policy["metadata"]["namespace"]) == (
        ["Ingress"], rendered["metadata"]["namespace"],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["ray-aws", "ray-gcp", "ray-on-premise"])
def test_the_cache_of_a_machine_is_made_and_mounted_into_the_containers_of_ray_up(kind: Kind) -> None:
    cluster = ClusterConfig.model_validate(ONE_KIND | {"cache": {"host_path": "/opt/dlami/nvme/hf"}})
    config = yaml.safe_load(render(cluster, kind, None, job_file="job.toml"))
    options = config["docker"]["run_options"]
    assert "-v /opt/dlami/nvme/hf:/cache/huggingface" in options
    assert "-e HF_HOME=/cache/huggingface" in options
    made = "sudo mkdir -p /opt/dlami/nvme/hf && sudo chmod 1777 /opt/dlami/nvme/hf"
    assert config["initialization_commands"][-1] == made
    bare = ClusterConfig.model_validate(ONE_KIND | {"cache": {"host_path": "/nvme"}, "image": ""})
    config = yaml.safe_load(render(bare, kind, None, job_file="job.toml"))
    assert config["worker_start_ray_commands"][-1].startswith("export HF_HOME=/nvme; ulimit")


def test_local_disks_of_gcp_are_asked_for_and_mounted_at_the_cache(tmp_path: Path) -> None:
    cluster = two_kinds(gcp=TWO_KINDS["gcp"] | {"local_ssds": 2}, cache={"host_path": "/mnt/nvme/hf"})
    config = yaml.safe_load(render(cluster, "ray-gcp", None, job_file="job.toml"))
    types = config["available_node_types"]
    kinds = [disk["type"] for disk in types["l4"]["node_config"]["disks"]]
    assert kinds == ["PERSISTENT", "SCRATCH", "SCRATCH"]
    assert [disk["type"] for disk in types["head"]["node_config"]["disks"]] == ["PERSISTENT"]
    script = tmp_path / "mount.sh"
    script.write_text("#!/bin/bash\n" + "\n".join(config["initialization_commands"][2:]) + "\n")
    assert "mount /dev/md0 /mnt/nvme/hf" in script.read_text()
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [shellcheck, "--exclude=SC2012", str(script)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    with pytest.raises(ValidationError, match="mounted nowhere"):
        two_kinds(gcp=TWO_KINDS["gcp"] | {"local_ssds": 2})


def test_disks_are_as_large_and_fast_as_was_said() -> None:
    groups = [TWO_KINDS["groups"][0], TWO_KINDS["groups"][1] | {"disk_gb": 900}]
    cluster = two_kinds(groups=groups, aws={"disk_mb_per_sec": 700})
    types = ray_yaml.aws(cluster)["available_node_types"]
    disks = {name: kind["node_config"]["BlockDeviceMappings"][0]["Ebs"] for name, kind in types.items()}
    assert {name: disk["VolumeSize"] for name, disk in disks.items()} == {"head": 200, "l4": 200, "h100": 900}
    assert {disk["Throughput"] for disk in disks.values()} == {700}
    types = ray_yaml.gcp(cluster)["available_node_types"]
    assert types["h100"]["node_config"]["disks"][0]["initializeParams"]["diskSizeGb"] == 900


@pytest.mark.parametrize(
    ("kind", "cache", "known"),
    [
        ("slurm", {"claim": "models"}, "set cache.host_path or cache.size_gb"),
        ("ray-aws", {"size_gb": 100}, "set cache.host_path"),
        ("skypilot", {"host_path": "/nvme"}, "set cache.bucket or cache.size_gb"),
        ("kuberay-cluster", {"bucket": "s3://b/x"}, "set cache.claim or cache.host_path or cache.size_gb"),
    ],
)
def test_a_place_of_the_cache_that_a_kind_lacks_is_said(
    kind: Kind, cache: dict[str, Any], known: str
) -> None:
    text = render(one_kind(cache=cache), kind, a_job(), job_file="job.toml")
    (line,) = [line for line in comments(text).splitlines() if "means nothing here" in line]
    assert line.endswith(known)
    assert "HF_HOME" not in text


def hub_teacher(monkeypatch: pytest.MonkeyPatch, num_layers: int) -> JobConfig:
    """A teacher of 0.47 GB a layer that machines must fetch, whose config.json is known."""
    config = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 14336, "vocab_size": 1000}
    known = config | {"num_hidden_layers": num_layers}
    monkeypatch.setattr("labeler.planning.gpu_memory._config_of", lambda model, revision: known)
    teacher = a_job().teacher.model_copy(update={"max_model_len": 2048})
    return a_job(replicas=2, gpus=8, tensor_parallel=8).model_copy(
        update={"teacher": teacher.model_copy(update={"tensor_parallel_size": 8})}
    )


def test_a_teacher_that_no_disk_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    job = hub_teacher(monkeypatch, 500)  # 235 GB: on eight GPUs well, on a disk of 200 GB not
    groups = [TWO_KINDS["groups"][1]]
    with pytest.raises(ConfigError) as refused:
        render(two_kinds(groups=groups), "ray-aws", job, job_file="job.toml")
    for words in ("by its config.json", "170 GB on group h100", "raise disk_gb"):
        assert words in str(refused.value)
    for changes in (
        {"groups": [groups[0] | {"disk_gb": 400}]},
        {"disk_gb": 400, "groups": groups},
        {"groups": groups, "cache": {"host_path": "/nvme"}},
    ):
        assert "refused" not in render(two_kinds(**changes), "ray-aws", job, job_file="job.toml")
    small = two_kinds(groups=groups, cache={"size_gb": 100})
    with pytest.raises(ConfigError, match="room for 100 GB"):
        render(small, "kuberay-cluster", job, job_file="job.toml")
    assert render(two_kinds(groups=groups), "kuberay-cluster", job, job_file="job.toml")
    onwards = two_kinds(groups=[groups[0] | {"disk_gb": 100, "spot": False}])
    with pytest.raises(ConfigError, match="room for 100 GB"):
        render(onwards, "slurm", job, job_file="job.toml")


def test_a_disk_that_may_be_too_small_is_a_warning_and_the_stores_size_is_told() -> None:
    job = a_job(replicas=2, gpus=8, tensor_parallel=8)
    teacher = job.teacher.model_copy(update={"model": "org/Teacher-110B"})
    labels = job.labels.model_copy(update={"mode": "generate", "top_k": 64})
    read = job.input.model_copy(update={"limit": 10_000, "slice": "1/2"})
    job = job.model_copy(update={"teacher": teacher, "labels": labels, "input": read})
    text = render(two_kinds(groups=[TWO_KINDS["groups"][1]]), "ray-aws", job, job_file="job.toml")
    assert "WARNING: the teacher's weights are about 220.0 GB (110B in its name" in text
    assert "the store takes at most about 0.3 GB" in text  # 5,000 x 512 rows of 131 B


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
