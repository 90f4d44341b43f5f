"""A machine as EC2's RunInstances takes it, held against the description of it in boto's own package."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from logitstore.common.config_file import ConfigError

RAYS_OWN: dict[str, str] = {
    "SubnetId": "it chooses one of SubnetIds; name it there",
    "MinCount": "how many there are is said by min_count and count of the groups",
    "MaxCount": "how many there are is said by min_count and count of the groups",
}
"""Fields of RunInstances that Ray writes over."""


def check_instance(name: str, node: Mapping[str, Any]) -> None:
    """`node` is that of the node type `name`, with all that was added.

    Raises ConfigError for a field or value that EC2 would refuse, or that Ray writes over. All fields are
    looked up where botocore is installed.
    """
    for field, why in RAYS_OWN.items():
        if field in node:
            raise ConfigError(f"{field} = {node[field]!r} ({name}) would be written over by Ray: {why}")
    if find_spec("botocore") is None:
        return
    from botocore.validate import ParamValidator

    asked = {field: value for field, value in node.items() if field != "SubnetIds"}
    report = ParamValidator().validate(asked | {"MinCount": 1, "MaxCount": 1}, _shape())
    if report.has_errors():
        words = report.generate_report().replace("\n", "; ")
        raise ConfigError(
            f"EC2 would refuse the machine ({name}): {words}; correct it in aws.node, or the group's aws_node"
        )


@functools.cache
def _shape() -> Any:
    import botocore.session

    service = botocore.session.Session().get_service_model("ec2")
    return service.operation_model("RunInstances").input_shape
