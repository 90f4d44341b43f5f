"""The list of settings is read from the models, so that it cannot differ from what they accept."""

from __future__ import annotations

import importlib
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from logitstore.common.settings_list import Setting, as_markdown, as_text, settings_of


class Place(BaseModel):
    """One store."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    uri: str
    """Where it lies."""
    weight: float = Field(default=1.0, gt=0)


class Job(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    mode: Literal["generate", "score"] = "score"
    """What is done: a | b."""
    stop: tuple[str, ...] = ()
    limit: int | None = None
    stores: tuple[Place, ...] = ()
    main: Place | None = None
    """The first of them."""


def test_kinds_defaults_and_meanings() -> None:
    assert list(settings_of(Job)) == [
        Setting("mode", '"generate" or "score"', '"score"', "What is done: a | b."),
        Setting("stop", "list of text", "[]", ""),
        Setting("limit", "integer or none", "none", ""),
        Setting("stores", "sections", "absent", "One store."),
        Setting("stores[].uri", "text", "required", "Where it lies."),
        Setting("stores[].weight", "number, above 0", "1", ""),
        Setting("main", "section", "absent", "The first of them."),
        Setting("main.uri", "text", "required", "Where it lies."),
        Setting("main.weight", "number, above 0", "1", ""),
    ]


def test_forms() -> None:
    assert "[[stores]] (absent unless written)\n# One store.\nuri = required    # text" in as_text(Job)
    assert '| `mode` | "generate" or "score" | `"score"` | What is done: a \\| b. |' in as_markdown(Job)


@pytest.mark.parametrize(
    ("module", "name", "some"),
    [
        ("labeler.config.settings", "JobConfig", "labels.top_k"),
        ("trainer.run.config", "TrainConfig", "loss.alpha"),
    ],
)
def test_every_setting_of_the_product_is_listed_and_explained(module: str, name: str, some: str) -> None:
    found = list(settings_of(getattr(importlib.import_module(module), name)))
    names = [setting.name for setting in found]
    assert some in names
    assert len(names) == len(set(names)) > 30
    assert [setting.name for setting in found if not setting.meaning] == []
