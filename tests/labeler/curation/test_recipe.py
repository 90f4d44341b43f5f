"""From seeds to a labeled store: each step once, whatever happens between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import labeler.curation.recipe as recipe_module
from labeler.__main__ import main
from labeler.curation.expand import text_of
from labeler.prompting.byte_tokenizer import ByteTokenizer
from logitstore import LogitStore

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
    ],
)
def test_every_section_is_checked_before_the_first_step(
    change: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", str(write_recipe(tmp_path, change))]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
