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
from cluster.describe import grafana, ray_yaml
from cluster.describe.kubernetes import kuberay
from cluster.describe.render import _checked_ray_yaml, render
from cluster.describe.settings.cluster import ClusterConfig, Kind
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import (
    ONE_KIND,
    TWO_KINDS,
    a_job,
    comments,
    one_kind,
    two_kinds,
)

pytestmark = pytest.mark.slow  # Ray's validator and Kubernetes' schemas take seconds to load


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
    entrypoint = kuberay.ray_job(two_kinds(python="/opt/my env/bin/python"), a_job(), "0a1b2c")[1]["spec"][
        "entrypoint"
    ]
    assert entrypoint == "'/opt/my env/bin/python' -P -m labeler run /etc/penumbra/job.json"


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('name = "a"\n[[groups]]\nname = "cpu"\ncount = 2\n')
    assert main(["render", str(file), "--kind", "grafana", "--out", str(tmp_path / "none" / "file")]) == 2
    assert f"{tmp_path}/none is no folder" in capsys.readouterr().err


def test_what_is_rendered_never_takes_the_place_of_its_description(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`render cluster.toml --out cluster.toml` wrote over the only description there was."""
    file = tmp_path / "cluster.toml"
    file.write_text('name = "a"\n[[groups]]\nname = "cpu"\ncount = 2\n')
    before = file.read_bytes()
    assert main(["render", str(file), "--kind", "grafana", "--out", f"{tmp_path}/./cluster.toml"]) == 2
    assert "is what is rendered from, and would be lost; name another file" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main(["render", str(file), "--kind", "grafana", "--out", str(tmp_path)]) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["cluster.toml"]


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
    text = out.read_text()
    if kind == "grafana":
        assert json.loads(text)["panels"]
        return
    assert f"`penumbra cluster render --kind {kind}` for the cluster 'small'" in comments(text)
    assert any(line and not line.startswith("#") for line in text.splitlines())


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
