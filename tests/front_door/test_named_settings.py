"""What messages, advice and pages call a setting is one that a configuration takes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from cluster.describe.settings.cluster import ClusterConfig
from cluster.rounds.config import RoundsFile
from labeler.config.settings import JobConfig
from trainer.run.config import TrainConfig

ROOT = Path(__file__).parents[2]
PACKAGES = ("labeler", "trainer", "cluster", "logitstore", "benchmarks")
FILE_ENDINGS = {"json", "jsonl", "toml", "lock", "html", "pkl", "parquet", "codebooks"}
NOT_A_SETTING = {
    ("labels", "extra_columns"), ("labels", "support"), ("labels", "teacher_vocab_size"), ("input", "parts"),
}  # fmt: skip
"""Fields of a store's manifest, as FORMAT.md calls them."""


def settings_by_section() -> dict[str, set[str]]:
    """Of all configurations together: a message may mean any of them."""
    found: dict[str, set[str]] = {}
    for model in (JobConfig, TrainConfig, ClusterConfig, RoundsFile):
        for name, field in model.model_fields.items():
            kind = field.annotation
            for one in (kind, *getattr(kind, "__args__", ())):
                if isinstance(one, type) and issubclass(one, BaseModel):
                    found.setdefault(name, set()).update(one.model_fields)
    return found


SETTINGS = settings_by_section()
NAMED = re.compile(rf"(?<![\w./\"'-])({'|'.join(SETTINGS)})\.([a-z_]*[a-z])\b(?![(_])")


def unknown_settings(text: str) -> list[str]:
    return [
        f"{section}.{name}"
        for section, name in NAMED.findall(text)
        if name not in SETTINGS[section] | FILE_ENDINGS and (section, name) not in NOT_A_SETTING
    ]


def sentences(path: Path) -> Iterator[tuple[str, str]]:
    """(where, text) of a page, or of each text in a module."""
    if path.suffix == ".md":
        yield path.name, path.read_text()
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield f"{path.name}:{node.lineno}", node.value


def test_a_name_that_no_configuration_has_is_found() -> None:
    assert unknown_settings("label with a higher labels.max_tokens, or data.top_k") == ["labels.max_tokens"]
    assert unknown_settings("sampling.max_tokens; build/labels.parquet; plan/input.json; data.pkl") == []


@pytest.mark.parametrize("package", PACKAGES)
def test_settings_are_called_by_their_names(package: str) -> None:
    paths = [*(ROOT / package).rglob("*.py"), *(ROOT / package).rglob("*.md")]
    assert len(paths) > 10
    wrong = [
        f"{where}: {name}"
        for path in paths
        for where, text in sentences(path)
        for name in unknown_settings(text)
    ]
    assert wrong == []
