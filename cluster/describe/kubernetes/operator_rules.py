"""What KubeRay's operator refuses though its fields allow it: it makes no pods, and says so in an event."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.describe.kubernetes.pod_rules import items_of, table_of
from cluster.describe.kubernetes.pods import templates_in

TOKEN_SINCE = (2, 52)
"""Version of Ray whose clusters may ask for a token."""
AUTOSCALER_VARIABLE = "RAY_enable_autoscaler_v2"


def problems_of_operator(document: dict[str, Any]) -> Iterator[str]:
    """Sentences for what the operator would refuse in a RayCluster or RayJob; none for other documents."""
    templates = [(place, template) for place, template in templates_in(document) if place != "submitter"]
    if not templates:
        return
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    if spec.get("authOptions", {}).get("mode") == "token" and _version(spec["rayVersion"]) < TOKEN_SINCE:
        yield (
            f"ray_version {spec['rayVersion']!r} knows no token, which Ray has since 2.52; set ray_version "
            'to what the image has, or kubernetes.auth = "off" and kubernetes.network_policy = true'
        )
    for place, template in templates:
        pod = table_of(template, "spec")
        policy = pod.get("restartPolicy", "Never")
        if spec["enableInTreeAutoscaling"] and policy != "Never":
            yield (
                f"restartPolicy {policy!r} ({place}) must be Never where KubeRay's autoscaler runs; leave it "
                "out of [kubernetes], or set kubernetes.autoscale = false"
            )
        if any(_sets_autoscaler(container) for container in items_of(pod, "containers")):
            yield f"{AUTOSCALER_VARIABLE} ({place}) is what kubernetes.autoscale sets; leave it out there"


def _sets_autoscaler(container: Mapping[str, Any]) -> bool:
    return any(variable.get("name") == AUTOSCALER_VARIABLE for variable in items_of(container, "env"))


def _version(text: str) -> tuple[int, int]:
    """Major and minor number; (0, 0) for what is no version (nightly), as the operator takes none either."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
