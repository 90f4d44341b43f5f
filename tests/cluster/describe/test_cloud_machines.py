"""What is added to the machines of a cloud wins over what is rendered, and is refused where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cluster.describe import ray_yaml
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import TWO_KINDS, one_kind, two_kinds

pytestmark = pytest.mark.slow  # boto's description of EC2


def ec2(groups: list[dict[str, Any]] = TWO_KINDS["groups"], **aws: Any) -> dict[str, dict[str, Any]]:
    types = ray_yaml.aws(two_kinds(aws=aws, groups=groups))["available_node_types"]
    return {name: one["node_config"] for name, one in types.items()}


def compute(groups: list[dict[str, Any]] = TWO_KINDS["groups"], **gcp: Any) -> dict[str, dict[str, Any]]:
    place = {"project": "a-project", "zone": "us-central1-a"}
    types = ray_yaml.gcp(two_kinds(gcp=place | gcp, groups=groups))["available_node_types"]
    return {name: one["node_config"] for name, one in types.items()}


def test_a_disk_of_ec2_is_merged_by_its_device() -> None:
    """Appended, the machine would have two disks at one device, which EC2 refuses."""
    disk = {"DeviceName": "/dev/sda1", "Ebs": {"Encrypted": True, "VolumeSize": 500}}
    scratch = {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"}
    for machine in ec2(node={"BlockDeviceMappings": [disk, scratch]}).values():
        root, second = machine["BlockDeviceMappings"]
        ebs = {"VolumeSize": 500, "VolumeType": "gp3", "Throughput": 500, "Encrypted": True}
        assert root == {"DeviceName": "/dev/sda1", "Ebs": ebs}
        assert second == scratch


def test_the_boot_disk_of_compute_engine_is_merged() -> None:
    key = {"kmsKeyName": "projects/p/k"}
    machines = compute(node={"disks": [{"boot": True, "diskEncryptionKey": key}]}, local_ssds=0)
    for machine in machines.values():
        (disk,) = machine["disks"]
        assert disk["diskEncryptionKey"] == key
        assert disk["initializeParams"]["diskSizeGb"] == 200


def test_what_is_added_is_not_written_over() -> None:
    options = {"MarketType": "spot", "SpotOptions": {"MaxPrice": "1.5"}}
    assert ec2(node={"InstanceMarketOptions": options})["l4"]["InstanceMarketOptions"] == options
    run = {"maxRunDuration": {"seconds": "3600"}, "onHostMaintenance": "MIGRATE"}
    for scheduling in (run, [run]):
        machines = compute(node={"scheduling": scheduling})
        spot = {"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"}
        assert machines["l4"]["scheduling"] == [spot | run]
        assert machines["head"]["scheduling"] == [run]


def test_a_group_has_machines_of_its_own() -> None:
    """A capacity block is of one kind of machine: in aws.node it would be asked for by the head too."""
    block = {"InstanceMarketOptions": {"MarketType": "capacity-block"}}
    groups = [
        TWO_KINDS["groups"][0],
        TWO_KINDS["groups"][1] | {"aws_node": block, "gcp_node": {"labels": {"a": "b"}}},
    ]
    machines = ec2(groups, node={"KeyName": "team"})
    assert {name: machine.get("InstanceMarketOptions") for name, machine in machines.items()} == {
        "head": None, "l4": {"MarketType": "spot"}, "h100": block["InstanceMarketOptions"],
    }  # fmt: skip
    assert {machine["KeyName"] for machine in machines.values()} == {"team"}
    labels = compute(groups, node={"labels": {"team": "nlp"}})
    assert [one["labels"] for one in labels.values()] == [{"team": "nlp"}] * 2 + [{"team": "nlp", "a": "b"}]


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"SubnetId": "subnet-1"}, "it chooses one of SubnetIds"),
        ({"MaxCount": 3}, "said by min_count and count"),
        ({"SecurityGroupId": ["sg-1"]}, r"EC2 would refuse the machine \(head\).*SecurityGroupId"),
        ({"Placement": {"Zone": "a"}}, "Unknown parameter in Placement"),
        ({"EbsOptimized": "yes"}, "Invalid type for parameter EbsOptimized"),
        ({"IamInstanceProfile": {"Arn": "arn"}}, r"aws\.worker_profile says it too"),
    ],
)
def test_a_machine_that_ec2_would_refuse_is_refused(node: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ec2(node=node, worker_profile="labeler")


def test_two_accounts_of_one_machine_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"gcp\.worker_account says it too; keep one"):
        compute(node={"serviceAccounts": [{"email": "a"}]}, worker_account="b@c.example")


def test_a_zone_is_no_region_nor_a_region_a_zone() -> None:
    with pytest.raises(ConfigError, match=r"is a zone; write region = 'us-gov-west-1'"):
        ray_yaml.aws(two_kinds(region="us-gov-west-1b"))
    with pytest.raises(ConfigError, match="'us-central1' is no zone"):
        compute(zone="us-central1")


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        (["10.0.0.1", "10.0.0.2"], "is named twice by"),
        (["10.0.0.2", "10.0.0.2"], "is named twice by"),
        (["10.0.0.2", "fd00::5"], "'fd00::5' is neither an IPv4 address nor a name"),
        (["10.0.0.2", "10.0.0.3 "], "'10.0.0.3 ' is neither"),
    ],
)
def test_machines_of_ones_own_that_cannot_be_are_refused(workers: list[str], says: str) -> None:
    group = TWO_KINDS["groups"][0] | {"count": 2}
    cluster = one_kind(groups=[group], on_premise={"head_ip": "10.0.0.1", "worker_ips": workers})
    with pytest.raises(ConfigError, match=says):
        ray_yaml.on_premise(cluster)


@pytest.mark.parametrize("address", ["10.0.0.256", "10.0.0", "1.2.3.4.5", "010.0.0.1"])
def test_numbers_that_are_no_address_are_not_looked_up_as_a_name(address: str) -> None:
    workers = [f"10.0.0.{number}" for number in range(2, 6)]
    cluster = one_kind(on_premise={"head_ip": address, "worker_ips": workers})
    with pytest.raises(ConfigError, match="is neither an IPv4 address nor a name"):
        ray_yaml.on_premise(cluster)


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        (
            "ssh_user",
            ["-oProxyCommand=x", "two words", "a$b", ""],
            ["ada@lab.example", "LAB\\ada", "a.b-c_d"],
        ),
        ("ssh_private_key", ["$HOME/.ssh/key", "-i", ""], ["~/.ssh/key", "/a b/key", "keys/one"]),
    ],
)
def test_who_logs_in_and_by_which_key(field: str, wrong: list[str], right: list[str]) -> None:
    for text in wrong:
        with pytest.raises(ValidationError, match="write"):
            one_kind(on_premise={field: text})
    for text in right:
        assert getattr(one_kind(on_premise={field: text}).on_premise, field) == text


@pytest.mark.parametrize(
    ("cloud", "machine", "is_arm"),
    [
        *(("aws", name, True) for name in ("g5g.xlarge", "c7gn.large", "im4gn.large", "t4g.small", "a1.large")),
        *(("aws", name, False) for name in ("g6.12xlarge", "g4dn.xlarge", "g4ad.xlarge", "p5.48xlarge", "m7i.large")),
        *(("gcp", name, True) for name in ("t2a-standard-4", "c4a-standard-8", "a4x-highgpu-4g")),
        *(("gcp", name, False) for name in ("g2-standard-48", "a3-highgpu-8g", "c4-standard-8", "t2d-standard-4")),
    ],
)  # fmt: skip
def test_a_machine_with_arm_processors_wants_an_image_for_them(
    cloud: str, machine: str, is_arm: bool
) -> None:
    """It would have been asked for, refused or begun to boot, and been asked for again."""
    group = TWO_KINDS["groups"][0] | {"machine": machine, "count": 4}
    make = ray_yaml.aws if cloud == "aws" else ray_yaml.gcp
    cluster = one_kind(groups=[group])
    own = {"machine_image": "images/for-arm64"}
    if is_arm:
        with pytest.raises(ConfigError, match=f"machine '{machine}' has ARM processors"):
            make(cluster)
        assert make(one_kind(groups=[group], **{cloud: TWO_KINDS[cloud] | own}))
    else:
        assert make(cluster)
