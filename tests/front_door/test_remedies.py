"""What an error tells a user to do is done here, word by word, until the command takes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from cluster.describe.settings.cluster import ClusterConfig
from labeler.config.input_settings import FIELDS_BY_KIND
from labeler.config.loading import JobConfig, load_job
from logitstore.common.config_file import ConfigError, explain_problem
from logitstore.common.settings_list import settings_of
from trainer.run.config import TrainConfig, load_config

REMEDY = re.compile(r"--set ([\w.]+=[^\s;]+)")
LOADERS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "label": (JobConfig, lambda overrides: load_job(None, overrides, {})),
    "train": (TrainConfig, lambda overrides: load_config(None, overrides)),
}


def refusal(load: Callable[..., Any], overrides: list[str]) -> str:
    with pytest.raises(ConfigError) as refused:
        load(overrides)
    return str(refused.value)


def given_until_taken(load: Callable[..., Any], start: list[str]) -> tuple[Any, list[str]]:
    """What was loaded in the end, and all that was given on the way."""
    given = list(start)
    while len(given) < 12:
        try:
            return load(given), given
        except ConfigError as error:
            remedies = REMEDY.findall(text := str(error))
        if not remedies:
            pytest.fail(f"no remedy in: {text}")
        given += remedies
    pytest.fail(f"not taken after doing all that was told: {given}")


@pytest.mark.parametrize("start", [[], ["teacher.engine=vllm"], ["input.limit=3"], ["labels.top_k=8"]])
def test_giving_what_is_missing_as_told_makes_a_job(start: list[str]) -> None:
    job, given = given_until_taken(LOADERS["label"][1], start)
    assert (job.input.uri, job.output.uri) == ("URI", "URI")
    assert len(given) > len(start)


@pytest.mark.parametrize("start", [[], ["loss.alpha=0.5"], ["data.num_workers=0"]])
def test_giving_what_is_missing_as_told_makes_a_run(start: list[str]) -> None:
    config, given = given_until_taken(LOADERS["train"][1], start)
    assert config.output.folder
    assert len(given) > len(start)


def test_a_missing_kind_names_all_kinds() -> None:
    text = refusal(LOADERS["label"][1], ["teacher.model=x", "input.uri=a.jsonl", "output.uri=b"])
    assert "input.kind is missing" in text
    for kind in FIELDS_BY_KIND:
        assert f'"{kind}"' in text


@pytest.mark.parametrize("program", LOADERS)
def test_one_wrong_letter_in_any_setting_gets_its_right_name(program: str) -> None:
    model, load = LOADERS[program]
    wrong = []
    for setting in settings_of(model):
        section, _, last = setting.name.rpartition(".")
        if setting.kind in ("section", "sections", "table") or "[]" in setting.name or len(last) < 4:
            continue
        misspelled = f"{section}.{last}x"
        text = refusal(load, [f"{misspelled}=1"])
        if f"{misspelled} is not a setting; did you mean {setting.name}?" not in text:
            wrong.append((misspelled, text))
    assert wrong == []


def test_a_wrong_section_gets_its_right_name_and_a_strange_one_all_there_are() -> None:
    text = refusal(LOADERS["label"][1], ["label.top_k=8", "zebra.x=1"])
    assert "label is not a setting; did you mean labels?" in text
    assert "zebra is not a setting; correct its name or remove it; the top level has: teacher, input" in text
    assert "did you mean sampling" not in text
    moved = refusal(LOADERS["label"][1], ["output.top_k=8"])
    assert re.search(r"output.top_k is not a setting; did you mean \w+.top_k\?", moved)


def test_a_setting_in_a_list_is_named_without_set() -> None:
    problem = {"type": "missing", "loc": ("groups", 0, "name"), "msg": "", "input": {}}
    assert explain_problem(problem, ClusterConfig, what="cluster") == (
        "groups.0.name is missing; add it to the file"
    )
    unknown = {"type": "extra_forbidden", "loc": ("groups", 0, "nam"), "msg": "", "input": 1}
    assert "did you mean groups[].name?" in explain_problem(unknown, ClusterConfig, what="cluster")
    no_groups = {"type": "missing", "loc": ("groups",), "msg": "", "input": {}}
    assert "add a table [[groups]]" in explain_problem(no_groups, ClusterConfig, what="cluster")
