"""What Kubernetes refuses though its schema allows it: labels of other letters, containers without image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.describe.kubernetes.operator_rules import problems_of_operator
from cluster.describe.kubernetes.pod_rules import problems_of_pod
from cluster.describe.kubernetes.pods import POLICY_LABEL, templates_in
from cluster.describe.kubernetes.restricted import problems_if_restricted
from cluster.describe.settings.cluster import ClusterConfig
from cluster.describe.settings.kubernetes_names import LABEL_NAME, LABEL_VALUE
from logitstore.common.config_file import ConfigError


def check_objects(cluster: ClusterConfig, documents: Sequence[dict[str, Any]]) -> None:
    """Raises ConfigError for what `[kubernetes]` brings and Kubernetes, or KubeRay, would refuse."""
    for document in documents:
        _check_labels(str(document["kind"]), document["metadata"])
        for place, template in templates_in(document):
            metadata, spec = template.get("metadata"), template.get("spec")
            _check_labels(place, metadata)
            if isinstance(spec, Mapping):
                _check_images(place, spec)
                _check_rules(cluster, place, spec)
            if cluster.kubernetes.network_policy and place != "submitter":
                _check_policy_label(cluster, place, metadata)
        if (problem := next(problems_of_operator(document), None)) is not None:
            raise ConfigError(f"KubeRay would start no pods: {problem}")


def _check_rules(cluster: ClusterConfig, place: str, spec: Mapping[str, Any]) -> None:
    if (problem := next(problems_of_pod(spec), None)) is not None:
        raise ConfigError(f"Kubernetes would refuse the pod ({place}): {problem}; correct it in [kubernetes]")
    if not cluster.kubernetes.restricted:
        return
    if (problem := next(problems_if_restricted(spec), None)) is not None:
        raise ConfigError(
            f"a restricted namespace would refuse the pod ({place}): {problem}; correct it in [kubernetes], "
            "or set kubernetes.restricted = false"
        )


def _check_policy_label(cluster: ClusterConfig, place: str, metadata: object) -> None:
    labels = metadata.get("labels") if isinstance(metadata, Mapping) else None
    found = labels.get(POLICY_LABEL) if isinstance(labels, Mapping) else None
    if found != cluster.name:
        raise ConfigError(
            f"label {POLICY_LABEL} = {found!r} ({place}), but the network policy covers the pods where it is "
            f"{cluster.name!r}; leave this label out of [kubernetes]"
        )


def _check_labels(place: str, metadata: object) -> None:
    labels, annotations = (
        metadata.get(kind) if isinstance(metadata, Mapping) else None for kind in ("labels", "annotations")
    )
    for name, value in labels.items() if isinstance(labels, Mapping) else ():
        if (
            not LABEL_NAME.fullmatch(str(name))
            or not isinstance(value, str)
            or not LABEL_VALUE.fullmatch(value)
        ):
            raise ConfigError(
                f"label {name!r} = {value!r} ({place}): a label is a text of at most 63 letters, digits, "
                "'-', '_' and '.', with a letter or digit at both ends; correct it in [kubernetes], with a "
                "number in quotes, or make it an annotation"
            )
    for name in annotations if isinstance(annotations, Mapping) else ():
        if not LABEL_NAME.fullmatch(str(name)):
            raise ConfigError(
                f"annotation {name!r} ({place}): its name has at most 63 letters, digits, '-', '_' and '.', "
                "after a domain and '/' if it has one; correct it in [kubernetes]"
            )


def _check_images(place: str, spec: Mapping[str, Any]) -> None:
    lists = [spec.get(name) for name in ("containers", "initContainers")]
    found = [one for items in lists if isinstance(items, list) for one in items if isinstance(one, Mapping)]
    names = ", ".join(str(one.get("name")) for one in found if one.get("image"))
    for container in found:
        if not container.get("image"):
            raise ConfigError(
                f"container {container.get('name')!r} ({place}) has no image; give it one, or name the one "
                f"that is meant: {names}"
            )
