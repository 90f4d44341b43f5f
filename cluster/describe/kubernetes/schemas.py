"""Documents against KubeRay's fields, and their pods against Kubernetes' own schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from cluster.describe.kubernetes.kuberay import API_VERSION
from cluster.describe.kubernetes.pods import templates_in
from logitstore.common.config_file import ConfigError

KUBERNETES = "1.33"
"""Whose schema pods are held against."""


def has_pod_schema() -> bool:
    """Whether the package that has it is installed."""
    return find_spec("kubernetes_validate") is not None


def check_schemas(documents: Sequence[dict[str, Any]]) -> None:
    """Raises ConfigError for a field or value that is none."""
    import jsonschema

    text = (files("cluster.describe.kubernetes") / "kuberay_schema.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    for document in documents:
        if document["apiVersion"] != API_VERSION:
            continue
        try:
            jsonschema.validate(document, schema)
        except jsonschema.ValidationError as error:
            of_version = error.json_path.endswith(".rayVersion")
            where = "ray_version, as 2.60.0" if of_version else "what is added by [kubernetes]"
            raise ConfigError(
                f"not a {document['kind']}: {error.json_path}: {error.message}; correct {where}"
            ) from None
    _check_pods(documents)


def _check_pods(documents: Sequence[dict[str, Any]]) -> None:
    """Kubernetes' own schema, where its package is installed: `kubernetes.pod` may add anything.

    Raises ConfigError for a field or value that Kubernetes would refuse.
    """
    if not has_pod_schema():
        return
    import kubernetes_validate

    for document in documents:
        for place, template in templates_in(document):
            pod = {"apiVersion": "v1", "kind": "Pod", **template}
            pod["metadata"] = {"name": "pod", **template.get("metadata", {})}
            try:
                kubernetes_validate.validate(pod, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(map(str, error.path))
                raise ConfigError(
                    f"not a pod ({place}): {path}: {error.message}; correct what is added by [kubernetes] "
                    f"(the schema is that of Kubernetes {KUBERNETES})"
                ) from None
            except kubernetes_validate.utils.VersionNotSupportedError:
                raise ConfigError(
                    f"the installed kubernetes-validate does not know Kubernetes {KUBERNETES}, whose schema "
                    "pods are held against; install a newer one, or none"
                ) from None
