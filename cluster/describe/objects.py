"""What Kubernetes refuses though its schema allows it: labels of other letters, containers without image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.describe.pods import templates_in
from logitstore.common.config_file import ConfigError

_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?")
_NAME = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def check_objects(documents: Sequence[dict[str, Any]]) -> None:
    """Raises ConfigError for a label or container that `[kubernetes]` brings and Kubernetes would refuse."""
    for document in documents:
        _check_labels(str(document["kind"]), document["metadata"])
        for place, template in templates_in(document):
            _check_labels(place, template.get("metadata"))
            _check_images(place, template.get("spec"))


def _check_labels(place: str, metadata: object) -> None:
    labels = metadata.get("labels") if isinstance(metadata, Mapping) else None
    for name, value in labels.items() if isinstance(labels, Mapping) else ():
        if not _NAME.fullmatch(str(name)) or not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ConfigError(
                f"label {name!r} = {value!r} ({place}): a label is a text of at most 63 letters, digits, "
                "'-', '_' and '.', with a letter or digit at both ends; correct it in [kubernetes], with a "
                "number in quotes, or make it an annotation"
            )


def _check_images(place: str, spec: object) -> None:
    if not isinstance(spec, Mapping):
        return
    lists = [spec.get(name) for name in ("containers", "initContainers")]
    found = [one for items in lists if isinstance(items, list) for one in items if isinstance(one, Mapping)]
    names = ", ".join(str(one.get("name")) for one in found if one.get("image"))
    for container in found:
        if not container.get("image"):
            raise ConfigError(
                f"container {container.get('name')!r} ({place}) has no image; give it one, or name the one "
                f"that is meant: {names}"
            )
