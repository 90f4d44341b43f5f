"""The settings of a sweep: every combination of the values that some settings shall take."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logitstore.common.config_file import ConfigError, apply_override
from trainer.run.config import TrainConfig, checked_config, resolved

SEED = "training.seed"
ORDER_SEED = "data.seed"
SEEDS = (SEED, ORDER_SEED)
"""Their values are tries of one setting, and none is better than another."""
JUDGED_ON = ("data.held_out_fraction", "evaluation.max_sequences")
"""They choose the rows by which runs are compared."""
DEFAULT_SEEDS = 2
"""Seeds of every setting where nothing names any."""
MAX_RUNS = 10_000
LONGEST_NAME = 236
"""Characters of a run's folder: 255, which file systems allow, less what ".json" and a part of it add."""
_UNSAFE = re.compile(r"[^A-Za-z0-9.=_-]+")


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting and its values, in the order given."""

    name: str
    """Dotted: "loss.temperature"."""
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One run of the sweep."""

    name: str
    """Name of its folder: "temperature=2_alpha=0.5_seed=0"."""
    values: dict[str, Any]
    """By setting; the seed too."""
    config: TrainConfig


def read_axis(text: str) -> Axis:
    """ "loss.temperature=1,2,5" -> its values, as TOML has them, else as text.

    Raises ConfigError.
    """
    name, sign, given = text.partition("=")
    try:
        values = tomllib.loads(f"values = [{given}]")["values"]
    except tomllib.TOMLDecodeError:
        values = [part.strip() for part in given.split(",")]
    if not sign or "." not in name or not values or "" in values:
        raise ConfigError(
            f"--over {text!r} must look like section.key=value,value: for example loss.temperature=1,2,5"
        )
    return Axis(name.strip(), tuple(values))


def short_names(names: Sequence[str]) -> list[str]:
    """ "temperature" for "loss.temperature"; settings whose last word is the same keep their names whole."""
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 else name for short, name in zip(last, names, strict=True)]


def points_of(
    document: Mapping[str, Any], axes: Sequence[Axis], folder: str, path: str | None
) -> list[Point]:
    """Every combination, each a checked configuration of its own folder below `folder`.

    A seed is that of the order of reading too, unless that is an axis of its own: students that begin with
    the same weights, without dropout, would otherwise learn the same from every seed.
    The student is evaluated before training in the first run alone where all begin with the same weights.
    Raises ConfigError for a value that a run would refuse, before anything runs.
    """
    names = [axis.name for axis in axes]
    _check_axes(axes)
    points: list[Point] = []
    known: dict[str, str] = {}
    shorts = short_names(names)
    same_start = not any(name.startswith("student.") for name in names) and "model" in document.get(
        "student", {}
    )
    for values in itertools.product(*(axis.values for axis in axes)):
        own = copy.deepcopy(dict(document))
        for name, value in zip(names, values, strict=True):
            _set(own, name, value)
            if name == SEED and ORDER_SEED not in names:
                _set(own, ORDER_SEED, value)
        label = "_".join(f"{short}={value}" for short, value in zip(shorts, values, strict=True))
        name = _file_name(label)
        _set(own, "output.folder", f"{folder}/runs/{name}")
        if points and same_start:
            _set(own, "evaluation.before", False)
        points.append(Point(name, dict(zip(names, values, strict=True)), checked_config(own, path)))
        same = known.setdefault(json.dumps(what_is_trained(resolved(points[-1].config))), name)
        if len(known) < len(points):
            raise ConfigError(
                f"--over names a value twice, in {same} and {name}; every value is tried once for each seed"
            )
    if len({point.name for point in points}) != len(points):
        raise ConfigError("two combinations of --over would have one folder; give values of other names")
    return points


def what_is_trained(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings without its folder, and without what only its place in a sweep says: whether the
    student is evaluated before training."""
    evaluation = {name: value for name, value in settings.get("evaluation", {}).items() if name != "before"}
    return {**settings, "output": None, "evaluation": evaluation}


def _check_axes(axes: Sequence[Axis]) -> None:
    """Raises ConfigError for settings that no sweep can be over, and for too many runs."""
    names = [axis.name for axis in axes]
    if len(set(names)) != len(names):
        raise ConfigError(
            f"--over names {next(n for n in names if names.count(n) > 1)!r} twice; list all values"
        )
    if judging := [name for name in names if name in JUDGED_ON or name.startswith("evaluation.stores")]:
        raise ConfigError(
            f"--over names {judging[0]}, which says what the students are judged on, and only "
            "those judged on the same rows can be compared; leave it out, and give its value with --set"
        )
    if any(name.startswith(("output.", "data.stores")) for name in names):
        raise ConfigError(
            "a sweep has one store and folders of its own; leave output and data.stores out of --over"
        )
    num_runs = 1
    for axis in axes:
        num_runs *= len(axis.values)
    if num_runs > MAX_RUNS:
        raise ConfigError(
            f"--over makes {num_runs:,} runs, at most {MAX_RUNS:,} are taken; give fewer values"
        )


def _file_name(label: str) -> str:
    """Of at most LONGEST_NAME characters, the last of them a digest where some are left out."""
    name = _UNSAFE.sub("-", label)
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.blake2b(label.encode(), digest_size=4).hexdigest()
    return f"{name[: LONGEST_NAME - len(digest) - 1]}-{digest}"


def _set(document: dict[str, Any], name: str, value: Any) -> None:
    section, _, key = name.rpartition(".")
    apply_override(document, f"{section}.{key}=null")  # makes the sections, and refuses what is none
    table: Any = document
    for part in section.split("."):
        table = table[part]
    table[key] = value
