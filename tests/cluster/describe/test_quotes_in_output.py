"""Quotes, substitutions and comment signs in any field of a cluster stay that field's text in every description."""

from __future__ import annotations

import functools
import json
import shlex
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from cluster.describe import render as describing
from cluster.describe.render import render
from cluster.describe.settings.cluster import ClusterConfig, Kind
from cluster.describe.settings.one_line import SCRIPTS
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import ONE_KIND, a_job

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
        elif typing.get_origin(kind) is tuple and _plain(get_args(kind)[0]) is str:
            yield (*path, name), "list"
        elif typing.get_origin(kind) is dict:
            yield (*path, name), "table"


def _plain(kind: Any) -> Any:
    return get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


FIELDS = [
    *fields_of(ClusterConfig),
    (("groups", "accelerator"), "text"),
    (("groups", "machine"), "text"),
    (("groups", "name"), "text"),
]


Field = tuple[FieldPath, str]
Texts = dict[Field, str]
"""What each of several fields says."""


def cluster_with(texts: Texts, container: str = "") -> ClusterConfig:
    found = json.loads(json.dumps(ONE_KIND))
    found["slurm"]["container"] = container
    for (path, form), text in texts.items():
        place = found
        for name in path[:-1]:
            place = place.setdefault(name, {})
            place = place[0] if name == "groups" else place
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
            cluster_with({(path, form): control})


def test_control_characters_in_a_key_are_refused() -> None:
    for section, name in (("slurm", "gpu_types"), ("kubernetes", "gpu_labels"), ("aws", "node")):
        with pytest.raises(ValidationError):
            ClusterConfig.model_validate(ONE_KIND | {section: {name: {"L4\ntouch /x": "v"}}})


def shape_of(value: Any, texts: Iterable[str]) -> Any:
    """The tree without what the fields say in it: what must not depend on a text's characters."""
    if isinstance(value, dict):
        return {blanked(str(key), texts): shape_of(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [shape_of(item, texts) for item in value]
    return type(value).__name__


def blanked(key: str, texts: Iterable[str]) -> str:
    for text in texts:
        key = key.replace(text, "")
    return key


def leaves_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves_of(item)
    elif isinstance(value, str):
        yield value


def assert_words(script: str, texts: Iterable[str]) -> None:
    """In every line that a shell reads, each of the texts stands within one word."""
    for line in script.splitlines():
        found = [text for text in texts if text in line]
        if found and not line.startswith("#"):
            words = shlex.split(line.rstrip("\\"))
            assert all(any(text in word for word in words) for text in found), line


SHELL_WORDS = ("ray start", " -m labeler", " -m ray", "docker run", "mkdir")


@functools.cache
def batches(text: str) -> tuple[tuple[Field, ...], ...]:
    """The fields that may say `text`, in groups that may say it together."""
    left = [field for field in FIELDS if is_accepted({field: text})]
    found = []
    while left:
        batch: Texts = {}
        for field in left:
            if is_accepted(batch | {field: text}):
                batch[field] = text
        found.append(tuple(batch))
        left = [field for field in left if field not in batch]
    return tuple(found)


def is_accepted(texts: Texts) -> bool:
    try:
        cluster_with(texts)
    except ValidationError:
        return False
    return True


def numbered(fields: Iterable[Field], text: str) -> Texts:
    """A text for each field that no other has, so that it can be told whose it is."""
    return {field: f"{text}{FIELDS.index(field):03d}" for field in fields}


def rendered(
    kind: Kind, fields: tuple[Field, ...], text: str, container: str
) -> tuple[str, tuple[Field, ...]]:
    """The description with `text` in as many of the fields as the kind takes it in, and which those are."""
    try:
        described = cluster_with(numbered(fields, text), container)
        return render(described, kind, a_job(), job_file="job.toml"), fields
    except (ValidationError, ConfigError):
        if len(fields) <= 1:
            return "", ()
    half = len(fields) // 2
    first, second = fields[:half], fields[half:]
    kept = rendered(kind, first, text, container)[1] + rendered(kind, second, text, container)[1]
    return rendered(kind, kept, text, container) if kept else ("", ())


SHOWN: dict[Kind, set[Field]] = {}
"""Fields that a kind was rendered with."""


@pytest.mark.parametrize(
    ("kind", "container"),
    [*((kind, "") for kind in get_args(Kind)), ("slurm", "apptainer"), ("slurm", "pyxis")],
)
def test_a_field_stays_itself(kind: Kind, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a validator refuses is not written; what it lets through is the same text without it.
    monkeypatch.setattr(describing, "_checked_ray_yaml", lambda config: describing._yaml([config]))
    monkeypatch.setattr(describing, "_checked_kuberay", lambda _, documents: describing._yaml(documents))
    monkeypatch.setattr(describing.ray_yaml, "check_instance", lambda *_: None)
    monkeypatch.setattr(describing.skypilot, "_check_added", lambda _: None)
    monkeypatch.setattr(describing.secrets, "token_hex", lambda _: "abcdef")
    shown = SHOWN.setdefault(kind, set())
    for text in HOSTILE:
        for batch in batches(text):
            hostile, fields = rendered(kind, batch, text, container)
            if not fields:
                continue
            described = cluster_with(numbered(fields, PLAIN), container)
            plain = render(described, kind, a_job(), job_file="job.toml")
            shown.update(fields)
            texts, plain_texts = (list(numbered(fields, one).values()) for one in (text, PLAIN))
            if kind in ("slurm", "dockerfile"):
                assert len(hostile.splitlines()) == len(plain.splitlines()), text
                assert_words(hostile, texts)
                continue
            one, other = (list(yaml.load_all(said, yaml.CSafeLoader)) for said in (hostile, plain))
            assert shape_of(one, texts) == shape_of(other, plain_texts), text
            for leaf in leaves_of(one):
                if any(word in leaf for word in SHELL_WORDS):
                    assert_words(leaf, texts)
    assert len(shown) > 20, "nearly everything was refused, which shows nothing"


def test_every_field_was_shown_by_some_kind() -> None:
    """A field that takes such a text at all must have been rendered with it, or this file looks past it."""
    if set(SHOWN) != set(get_args(Kind)):
        pytest.skip("the kinds were not all rendered in this process")
    takes = {field for text in HOSTILE for batch in batches(text) for field in batch}
    assert takes == set().union(*SHOWN.values())
