"""Which steps of a recipe are done, of these settings, in this version and in an earlier one."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import labeler.curation.recipe as recipe_module
import labeler.driver.run as run_module
from labeler.config.loading import JobConfig
from labeler.curation.recipe import run_recipe
from labeler.curation.recipe_file import Recipe, checked_recipe, label_document
from labeler.curation.sifting import Source
from labeler.driver.run import RunOptions
from labeler.errors import OwnJobError
from logitstore.common.config_file import ConfigError
from logitstore.common.exit_status import ExitStatus
from logitstore.job_objects import JobStatus
from tests.logitstore.exchange.test_texts import CHATML, store_of


@pytest.mark.parametrize(
    ("change", "is_other"),
    [
        ({"filters": {"min_tokens": 3}}, True),
        ({"labels": {"top_k": 4}}, True),
        ({"teacher": {"engine": "fake", "fake": {"seconds_per_token": 0.001}}}, False),
        ({"workers": {"replicas": 2}}, False),
    ],
)
def test_a_finished_step_is_of_other_settings_where_a_job_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], is_other: bool
) -> None:
    """A change of the filters was passed over, and one of what any job may change was refused."""
    (tmp_path / "seeds.jsonl").write_text(json.dumps({"id": "a", "prompt": "Why is the grass green?"}))
    document: dict[str, Any] = {
        "recipe": {"seeds": str(tmp_path / "seeds.jsonl"), "out": str(tmp_path / "out")},
        "teacher": {"engine": "fake"},
        "labels": {"top_k": 8},
    }

    def labeled(job: JobConfig, options: RunOptions) -> tuple[ExitStatus, JobStatus]:
        store_of(Path(job.output.uri), [("q", "Chlorophyll.<|e|>")], CHATML)
        return ExitStatus.DONE, JobStatus("finished", sequences=1)

    monkeypatch.setattr(run_module, "run", labeled)
    run_recipe(checked_recipe(document, "recipe.toml"))
    said: list[str] = []
    again = checked_recipe({**document, **change}, "recipe.toml")
    if is_other:
        with pytest.raises(ConfigError, match="was made from other seeds or settings"):
            run_recipe(again, say=said.append)
        return
    run_recipe(again, say=said.append)
    assert said[-1].startswith("label: done before")


def recipe_of(folder: Path, **sections: Any) -> dict[str, Any]:
    (folder / "seeds.jsonl").write_text(json.dumps({"id": "a", "prompt": "Why is the grass green?"}))
    place = {"seeds": str(folder / "seeds.jsonl"), "out": str(folder / "out")}
    return {"recipe": place, "teacher": {"engine": "fake"}, **sections}


def done_at_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that are done, each of which leaves one prompt or a file that stands for a store."""
    done = list[str]()

    def one_step(recipe: Recipe, name: str, source: Source, out: Path, **_: Any) -> dict[str, Any]:
        done.append(name)
        out.write_text(json.dumps({"id": "a", "prompt": "Why is the sky blue?"}))
        return {"num_new": 1}

    monkeypatch.setattr(recipe_module, "_do", one_step)
    return done


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_prompts_come_from_a_teacher_behind_an_api_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """The job of a step that asks has settings of labels that serve it; a labeling job's were looked at."""
    done = done_at_once(monkeypatch)
    api = {"base_url": "http://127.0.0.1:1/v1", "endpoint": endpoint}
    document = recipe_of(tmp_path, expand={})
    document["teacher"] = {"engine": "openai", "model": "m", "api": api}
    if endpoint == "completions":
        document["judge"] = {}
    steps = ["expand", "judge"] if "judge" in document else ["expand"]
    run_recipe(checked_recipe(document, "recipe.toml"), say=lambda _: None)
    run_recipe(checked_recipe(document, "recipe.toml"), say=lambda _: None)
    assert done == steps


def test_prompts_do_not_depend_on_the_settings_of_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = done_at_once(monkeypatch)
    run_recipe(checked_recipe(recipe_of(tmp_path, expand={}), "recipe.toml"), say=lambda _: None)
    further = {
        "labels": {"temperatures": [1.0, 3.0]},
        "sampling": {"max_tokens": 8},
        "filters": {"min_tokens": 2},
    }
    changed = recipe_of(tmp_path, expand={}, **further)
    run_recipe(checked_recipe(changed, "recipe.toml"), say=lambda _: None)
    assert done == ["expand", "label"]
    changed["input"] = {"system_prompt": "Be brief."}
    with pytest.raises(ConfigError, match="or by an earlier version"):
        run_recipe(checked_recipe(changed, "recipe.toml"), say=lambda _: None)


def test_what_an_earlier_version_recorded_as_done_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest was of the sections as they are written; the advice was to remove labels that were paid."""
    done, said = done_at_once(monkeypatch), list[str]()
    document = recipe_of(tmp_path, expand={"n": 2}, labels={"top_k": 8}, filters={"min_tokens": 2})
    recipe = checked_recipe(document, "recipe.toml")
    run_recipe(recipe, say=said.append)
    ledger = json.loads(recipe.ledger.read_text())
    digest = f"{Source(recipe.settings.seeds).fingerprint()}:None"
    for name, section in (("expand", recipe.sections["expand"].model_dump(mode="json")), ("label", {})):
        job = {part: document.get(part, {}) for part in ("teacher", "labels", "sampling", "input")}
        text = json.dumps([name, {**section, "job": job}, digest], sort_keys=True)
        ledger[name]["made_from"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        digest = ledger[name]["output_digest"]
    recipe.ledger.write_text(json.dumps(ledger))
    said.clear()
    run_recipe(recipe, say=said.append)
    assert done == ["expand", "label"]
    assert said == [
        "expand: done before, 1 new",
        "label: recorded by an earlier version, without [filters]; a change of them is not seen",
        "label: done before, 1 new",
    ]
    said.clear()
    run_recipe(recipe, say=said.append)
    assert said == ["expand: done before, 1 new", "label: done before, 1 new"]
    document["filters"] = {"min_tokens": 3}
    with pytest.raises(ConfigError, match="labels was made from other seeds or settings"):
        run_recipe(checked_recipe(document, "recipe.toml"), say=said.append)


QUESTION = {"question": "Why is the grass green?", "answer": "Chlorophyll."}


@pytest.mark.parametrize(
    ("seed", "recipe", "told", "kind", "fields"),
    [
        ({"prompt": "Why?"}, {}, {}, "prompt", {}),
        (QUESTION, {}, {}, "prompt_response", {"prompt": "question", "response": "answer"}),
        (
            {"instruction": "Add.", "input": "1, 2"},
            {},
            {},
            "prompt",
            {"prompt": "instruction", "context": "input"},
        ),
        ({"messages": [{"role": "user", "content": "Why?"}]}, {}, {}, "messages", {}),
        ({"prompt": "Why?", "other": "Who?"}, {"field": "other"}, {}, "prompt", {"prompt": "other"}),
        (QUESTION, {}, {"fields": {"prompt": "answer"}}, "prompt", {"prompt": "answer"}),
    ],
)
def test_seeds_are_labeled_by_the_fields_that_the_steps_before_have_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: dict[str, Any],
    recipe: dict[str, Any],
    told: dict[str, Any],
    kind: str,
    fields: dict[str, str],
) -> None:
    """Steps were done, and paid, whose prompts the last one found in no field `prompt`."""
    document = recipe_of(tmp_path, dedupe={"by": ["minhash"]}, labels={"top_k": 8}, input=told)
    (tmp_path / "seeds.jsonl").write_text(json.dumps(seed))
    document["recipe"] |= recipe
    jobs = list[JobConfig]()

    def labeled(job: JobConfig, options: RunOptions) -> tuple[ExitStatus, JobStatus]:
        jobs.append(job)
        return ExitStatus.DONE, JobStatus("finished")

    monkeypatch.setattr(run_module, "run", labeled)
    for _ in range(2):
        run_recipe(checked_recipe(document, "recipe.toml"), say=lambda _: None)
    assert {(job.input.kind, job.labels.mode) for job in jobs} == {(kind, "generate")}
    assert {role: name for role, name in jobs[0].input.fields.items() if role != name} == {
        role: name for role, name in fields.items() if role != name
    }


def test_seeds_that_cannot_be_labeled_are_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = done_at_once(monkeypatch)
    document = recipe_of(tmp_path, dedupe={}, labels={"top_k": 8})
    (tmp_path / "seeds.jsonl").write_text(json.dumps({"text": "A page of a book."}))
    with pytest.raises(ConfigError, match="has no prompt to answer"):
        run_recipe(checked_recipe(document, "recipe.toml"), say=lambda _: None)
    assert done == []


def test_the_first_seeds_alone_are_labeled_where_no_step_comes_before(tmp_path: Path) -> None:
    document = recipe_of(tmp_path, labels={"top_k": 8})
    document["recipe"] |= {"seeds": "s3://bucket/seeds.jsonl", "limit": 2}
    recipe = checked_recipe(document, "recipe.toml")
    told = label_document(recipe, str(recipe.labeled_prompts))["input"]
    assert (told["uri"], told["limit"]) == ("s3://bucket/seeds.jsonl", 2)
    later = checked_recipe({**document, "dedupe": {}}, "recipe.toml")
    assert "limit" not in label_document(later, str(later.labeled_prompts))["input"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            ExitStatus.WRONG,
            r"exit status 2, see above\); correct what is said there and give the recipe again",
        ),
        (ExitStatus.STOPPED, r"exit status 4, see above\); to go on, give the recipe again"),
    ],
)
def test_a_recipe_ends_with_the_status_of_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: ExitStatus, words: str
) -> None:
    """It said that it goes on, whatever was wrong, and ended with 1."""
    monkeypatch.setattr(run_module, "run", lambda *_: (status, JobStatus("stopped")))
    document = recipe_of(tmp_path, labels={"top_k": 8})
    with pytest.raises(OwnJobError, match=words) as caught:
        run_recipe(checked_recipe(document, "recipe.toml"), say=lambda _: None)
    assert pickle.loads(pickle.dumps(caught.value)).exit_status is status
