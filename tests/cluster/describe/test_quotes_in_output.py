"""Quotes, substitutions and comment signs in any field of a cluster stay that field's text in every description."""

from __future__ import annotations

import shlex
import typing
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import yaml
from cluster.describe.config import SCRIPTS, ClusterConfig, Kind
from pydantic import BaseModel, ValidationError

from cluster.describe import render as describing
from cluster.describe.render import render
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.test_render import ONE_KIND, a_job

pytestmark = pytest.mark.slow  # Ray's validator and Kubernetes' schemas take seconds to load

PLAIN = "plainword"
HOSTILE = ("a\"b'c", "$(touch /pwned)", "`touch /pwned`;x", "x # y", "a: b", "{{x}}", "- &y *z !w")
CONTROLS = ("a\nb", "a\rb", "a\x1b[2Jb", "a\u2028b", "a\x00b")
FieldPath = tuple[str, ...]


def fields_of(model: type[BaseModel], path: FieldPath = ()) -> Iterator[tuple[FieldPath, str]]:
    """Path and form of every text, list of texts and table of a section, sections within it included."""
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields_of(kind, (*path, name))
        elif kind is str and name not in SCRIPTS:
            yield (*path, name), "text"
        elif typing.get_origin(kind) is tuple and get_args(kind)[0] is str:
            yield (*path, name), "list"
        elif typing.get_origin(kind) is dict:
            yield (*path, name), "table"


FIELDS = [
    *fields_of(ClusterConfig),
    (("groups", "accelerator"), "text"),
    (("groups", "machine"), "text"),
    (("groups", "name"), "text"),
]


def cluster_with(path: FieldPath, form: str, text: str) -> ClusterConfig:
    found: dict[str, Any] = {**ONE_KIND}
    place = found
    for name in path[:-1]:
        inner = place.get(name, {})
        place[name] = [dict(inner[0])] if name == "groups" else dict(inner)
        place = place[name][0] if name == "groups" else place[name]
    if form == "list":
        place[path[-1]] = [f"--x={text}" if path[-1] in ("directives", "run_options") else text]
    else:
        place[path[-1]] = {"L4": text} if form == "table" else text
    return ClusterConfig.model_validate(found)


def test_lists_and_tables_are_among_the_fields() -> None:
    assert {
        (("slurm", "directives"), "list"),
        (("slurm", "gpu_types"), "table"),
        (("kubernetes", "pod"), "table"),
        (("docker", "run_options"), "list"),
        (("currency",), "text"),
    } <= set(FIELDS)


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_control_characters_are_refused_everywhere(control: str) -> None:
    for path, form in FIELDS:
        with pytest.raises(ValidationError):
            cluster_with(path, form, control)


def test_control_characters_in_a_key_are_refused() -> None:
    for section, name in (("slurm", "gpu_types"), ("kubernetes", "gpu_labels"), ("aws", "node")):
        with pytest.raises(ValidationError):
            ClusterConfig.model_validate(ONE_KIND | {section: {name: {"L4\ntouch /x": "v"}}})


def shape_of(value: Any, text: str) -> Any:
    """The tree without what the field says in it: what must not depend on a text's characters."""
    if isinstance(value, dict):
        return {str(key).replace(text, PLAIN): shape_of(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [shape_of(item, text) for item in value]
    return type(value).__name__


def leaves_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves_of(item)
    elif isinstance(value, str):
        yield value


def assert_words(script: str, text: str) -> None:
    """In every line that a shell reads, `text` stands within one word."""
    for line in script.splitlines():
        if text in line and not line.startswith("#"):
            assert any(text in word for word in shlex.split(line.rstrip("\\"))), line


SHELL_WORDS = ("ray start", " -m labeler", " -m ray", "docker run")


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_field_stays_itself(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a validator refuses is not written; what it lets through is the same text without it.
    monkeypatch.setattr(describing, "_checked_ray_yaml", lambda config: describing._yaml([config]))
    monkeypatch.setattr(describing, "_checked_kuberay", describing._yaml)
    monkeypatch.setattr(describing.secrets, "token_hex", lambda _: "abcdef")
    tried = 0
    for path, form in FIELDS:
        try:
            plain = render(cluster_with(path, form, PLAIN), kind, a_job(), job_file="job.toml")
        except (ValidationError, ConfigError):
            continue
        for text in HOSTILE:
            try:
                hostile = render(cluster_with(path, form, text), kind, a_job(), job_file="job.toml")
            except (ValidationError, ConfigError):
                continue
            tried += 1
            if kind in ("slurm", "dockerfile"):
                assert len(hostile.splitlines()) == len(plain.splitlines()), (path, text)
                assert_words(hostile, text)
            else:
                one, other = list(yaml.safe_load_all(hostile)), list(yaml.safe_load_all(plain))
                assert shape_of(one, text) == shape_of(other, PLAIN), (path, text)
                for leaf in leaves_of(one):
                    if any(word in leaf for word in SHELL_WORDS):
                        assert_words(leaf, text)
    assert tried > 20, "nearly everything was refused, which shows nothing"
