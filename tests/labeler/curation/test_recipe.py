"""From seeds to a labeled store: each step once, whatever happens between."""

from __future__ import annotations

import json
import shlex
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import labeler.curation.recipe as recipe_module
import labeler.driver.run as run_module
from labeler.__main__ import main
from labeler.config.loading import JobConfig
from labeler.curation.asking import AskPaths, asking_job
from labeler.curation.expand import sampling_of, text_of
from labeler.curation.recipe import run_recipe
from labeler.curation.recipe_file import checked_recipe
from labeler.curation.settings import ExpandSettings
from labeler.driver.run import RunOptions
from labeler.prompting.byte_tokenizer import ByteTokenizer
from logitstore import LogitStore
from logitstore.common.config_file import ConfigError
from logitstore.common.exit_status import ExitStatus
from logitstore.job_objects import JobStatus
from logitstore.tokenizer_objects import put_tokenizer
from tests.logitstore.exchange.test_texts import CHATML, byte_tokenizer, store_of

SEEDS = [
    {"id": "a", "question": "What is the capital of France?"},
    {"id": "b", "question": "what is the capital of france"},
    {"id": "c", "question": "Why is the grass green in most of the world?"},
    {"id": "d", "question": "How many prime numbers are there below one hundred?"},
]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_recipe(folder: Path, further: str = "") -> Path:
    (folder / "seeds.jsonl").write_text("".join(json.dumps(one) + "\n" for one in SEEDS))
    (folder / "eval.jsonl").write_text(json.dumps(SEEDS[3]) + "\n")
    path = folder / "recipe.toml"
    path.write_text(
        f"""
[recipe]
seeds = "{folder}/seeds.jsonl"
out = "{folder}/out"
[teacher]
engine = "fake"
[expand]
n = 2
max_tokens = 400
[dedupe]
[decontaminate]
against = ["{folder}/eval.jsonl"]
[labels]
top_k = 512
[sampling]
max_tokens = 8
{further}"""
    )
    return path


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_recipe_runs_through_and_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path)
    real, done = recipe_module._do, []

    def stopped_after(*given: Any, **named: Any) -> dict[str, Any]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(given[1])
        return real(*given, **named)

    monkeypatch.setattr(recipe_module, "_do", stopped_after)
    assert main(["recipe", str(path), "--quiet"]) == 130
    assert done == ["expand", "dedupe"]
    monkeypatch.setattr(
        recipe_module, "_do", lambda *given, **named: done.append(given[1]) or real(*given, **named)
    )
    assert main(["recipe", str(path)]) == 0
    assert done == ["expand", "dedupe", "decontaminate", "label"]
    out = capsys.readouterr().out
    assert "expand: done before" in out
    assert f"next: penumbra train run --student MODEL --labels {tmp_path}/out/labels" in out
    expanded = lines(tmp_path / "out" / "1-expand.jsonl")
    assert [one["id"] for one in expanded[:4]] == ["a", "b", "c", "d"]
    assert {one["parent"] for one in expanded[4:]} <= {"a", "b", "c", "d"}
    unique = {one["id"] for one in lines(tmp_path / "out" / "2-dedupe.jsonl")}
    assert "b" not in unique
    assert {"a", "c", "d"} <= unique
    clean = {one["id"] for one in lines(tmp_path / "out" / "3-decontaminate.jsonl")}
    assert "d" not in clean
    labeled = {one.record_id for one in LogitStore.open(tmp_path / "out" / "labels").iter_sequences()}
    assert labeled <= clean
    assert {"a", "c"} <= labeled
    done.clear()
    assert main(["recipe", str(path), "--quiet"]) == 0
    assert done == [], "everything was done before"
    assert main(["recipe", str(path), "--quiet", "--set", "dedupe.jaccard=0.5"]) == 2
    assert "2-dedupe.jsonl was made from other seeds or settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("[labels2]\ntop_k = 3\n", "[labels2] is no section of a recipe"),
        ("[filters]\nempty = 'no'\n", "filters.empty"),
        ("[limits]\nwrong = 1\n", "limits.wrong is not a setting"),
        ("[judge]\n[workers]\ncores = 0\n", "workers.cores"),
    ],
)
def test_every_section_is_checked_before_the_first_step(
    change: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", str(write_recipe(tmp_path, change))]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


API = """
engine = "openai"
model = "m"
api = { base_url = "http://127.0.0.1:1/v1", endpoint = "chat" }
"""


def test_a_judge_that_can_see_no_probabilities_is_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, "[judge]\n")
    text = path.read_text().replace('engine = "fake"\n', API).replace("top_k = 512", "rows = false")
    path.write_text(text)
    assert main(["recipe", str(path)]) == 2
    assert "a judge reads the probabilities of digits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_server_of_texts_alone_writes_prompts(tmp_path: Path) -> None:
    teacher = tomllib.loads(API)
    document = {"teacher": teacher, "labels": {"top_k": 8}, "limits": {"max_cost": 1.0}}
    document["cost"] = {"price_per_million_output_tokens": 1.0}
    paths = AskPaths(tmp_path / "prompts.jsonl")
    job = asking_job(document, paths, sampling_of(ExpandSettings()), rows=False)
    assert (job.labels.rows, job.teacher.api.endpoint, job.limits.max_cost) == (False, "chat", 1.0)
    teacher["api"]["endpoint"] = "completions"
    job = asking_job(document, paths, sampling_of(ExpandSettings()), rows=False)
    assert (job.labels.rows, job.labels.top_k) == (True, 8)


@pytest.mark.parametrize("name", ["input", "labels", "teacher", "expand", "recipe"])
def test_a_section_that_is_no_table_is_told(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f"{name} = 3\n")
    assert main(["recipe", str(path)]) == 2
    told = capsys.readouterr().err
    assert f"{name} = 3 is no section" in told
    if name != "recipe":
        assert main(["expand", str(path), "--out", str(tmp_path / "out.jsonl")]) == 2
        assert f"{name} = 3 is no section" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["auto", None])
def test_the_kind_of_a_recipes_prompts_is_found_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(one) + "\n" for one in SEEDS))
    document: dict[str, Any] = {
        "recipe": {"seeds": str(tmp_path / "seeds.jsonl"), "out": str(tmp_path / "out")},
        "teacher": {"engine": "fake"},
        "labels": {"top_k": 8},
        "input": {"kind": kind} if kind else {"fields": {"prompt": "question"}},
    }
    jobs, said = list[JobConfig](), list[str]()

    def labeled(job: JobConfig, options: RunOptions) -> tuple[ExitStatus, JobStatus]:
        jobs.append(job)
        return ExitStatus.DONE, JobStatus("finished")

    monkeypatch.setattr(run_module, "run", labeled)
    run_recipe(checked_recipe(document, "recipe.toml"), say=said.append)
    assert (jobs[0].input.kind, jobs[0].input.fields) == ("prompt", {"prompt": "question"})
    assert jobs[0].labels.mode == "generate"
    assert any("found: input.kind" in line for line in said) == (kind == "auto")


ANSWERS = {"a": "Paris<|e|>", "b": "paris<|e|>", "c": "Chlorophyll.<|e|>", "d": "26<|e|>"}
GRADE = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    keep = asked["answer"] == asked["record"].get("right")
    print(json.dumps({"id": asked["id"], "sample": asked["sample"], "keep": keep}), flush=True)
"""


def test_a_recipe_ends_with_the_responses_that_a_program_finds_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seeds = [{**one, "right": {"a": "Paris", "d": "25"}.get(one["id"])} for one in SEEDS]
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(one) + "\n" for one in seeds))
    (tmp_path / "grade.py").write_text(GRADE)
    document: dict[str, Any] = {
        "recipe": {"seeds": str(tmp_path / "seeds.jsonl"), "out": str(tmp_path / "out")},
        "teacher": {"engine": "fake"},
        "input": {"fields": {"prompt": "question"}, "id": "id"},
        "labels": {"top_k": 8},
        "check": {"program": shlex.join([sys.executable, str(tmp_path / "grade.py")])},
    }

    def labeled(job: JobConfig, options: RunOptions) -> tuple[ExitStatus, JobStatus]:
        base = store_of(tmp_path / "base", [("q", answer) for answer in ANSWERS.values()], CHATML)
        store = LogitStore.create(job.output.uri, base.manifest)
        named = [replace(one, record_id=name) for one, name in zip(base, ANSWERS, strict=True)]
        store.commit_unit("u", 0, named, seconds=0.0, worker="w")
        put_tokenizer(store.objects, {"tokenizer.json": byte_tokenizer().to_str().encode()})
        return ExitStatus.DONE, JobStatus("finished", sequences=4)

    monkeypatch.setattr(run_module, "run", labeled)
    said = list[str]()
    last = run_recipe(checked_recipe(document, "recipe.toml"), say=said.append)
    assert last == tmp_path / "out" / "right"
    assert [one.record_id for one in LogitStore.open(last).iter_sequences()] == ["a"]
    assert said[-1] == "check: 4 read, 1 kept, 3 wrong, 4 problems, 3 unsolved, 0 restarts"
    monkeypatch.setattr(run_module, "run", None)
    assert run_recipe(checked_recipe(document, "recipe.toml"), say=said.append) == last
    assert [line.partition(",")[0] for line in said[-2:]] == ["label: done before", "check: done before"]
    (tmp_path / "grade.py").write_text(GRADE.replace("==", "!="))
    with pytest.raises(ConfigError, match="right was made from other seeds or settings"):
        run_recipe(checked_recipe(document, "recipe.toml"), say=said.append)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": None}, "no step writes any"),
        ({"input": {}}, "set input.id"),
        ({"check": {"program": "grade 'half"}}, "close its quotes"),
        ({"check": {}}, "program"),
    ],
)
def test_a_check_that_cannot_be_done_is_refused_before_the_first_step(
    change: dict[str, Any], words: str
) -> None:
    document = {
        "recipe": {"seeds": "seeds.jsonl", "out": "out"},
        "teacher": {"engine": "fake"},
        "input": {"id": "id"},
        "dedupe": {},
        "labels": {"top_k": 8},
        "check": {"program": "grade"},
    }
    given = {name: value for name, value in {**document, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=words):
        checked_recipe(given, "recipe.toml")


def test_all_steps_of_a_recipe_have_one_budget(tmp_path: Path) -> None:
    recipe = checked_recipe(tomllib.loads(write_recipe(tmp_path, "[judge]\n").read_text()), "recipe.toml")
    out = tmp_path / "out"
    assert recipe.stores_of_others("expand") == []
    for name in ("1-expand.asked", "4-judge.asked", "labels"):
        (out / name).mkdir(parents=True)
    assert recipe.stores_of_others("expand") == [str(out / "4-judge.asked"), str(out / "labels")]
    assert recipe.stores_of_others("judge") == [str(out / "1-expand.asked"), str(out / "labels")]
    assert recipe.stores_of_others("label") == [str(out / "1-expand.asked"), str(out / "4-judge.asked")]


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (' "Name a river."\n', "Name a river."),
        ('"A" and "B"', '"A" and "B"'),
        ("plain", "plain"),
        ("  \n", ""),
    ],
)
def test_a_reply_becomes_a_prompt_without_what_surrounds_it(reply: str, text: str) -> None:
    tokenizer = ByteTokenizer(512)
    ids = [*reply.encode(), *tokenizer.ends.token_ids]
    assert text_of(ids, tokenizer) == text


def test_a_step_that_leaves_nothing_is_told_before_the_next_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.toml"
    (tmp_path / "seeds.jsonl").write_text(json.dumps(SEEDS[3]) + "\n")
    path.write_text(
        f'[recipe]\nseeds = "{tmp_path}/seeds.jsonl"\nout = "{tmp_path}/out"\n'
        f'[decontaminate]\nagainst = ["{tmp_path}/seeds.jsonl"]\n'
    )
    assert main(["recipe", str(path)]) == 2
    told = capsys.readouterr().err
    assert "[decontaminate] left no prompt (1 read, 0 kept, 1 ngram)" in told
    assert f"remove {tmp_path}/out/3-decontaminate.jsonl" in told
