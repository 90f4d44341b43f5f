"""lm-eval itself, with two small models: its tasks on files, offline, and tasks of this test's own.

tools/setup.sh has installed it in .venv/aside/lm_eval.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from logitstore.common.config_file import ConfigError
from tests.logitstore.exchange.test_texts import store_of
from tests.trainer.parity.models import WITH_START, byte_model
from trainer.__main__ import main
from trainer.parity.harness import HarnessTask, score
from trainer.parity.models.answer_book import AnswerBook
from trainer.parity.models.model import AnsweringModel
from trainer.parity.records import Request

LM_EVAL = Path(__file__).parents[3] / ".venv" / "aside" / "lm_eval"
ENDINGS = {"until": ["\n"], "do_sample": False}


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """lm-eval can be imported, and no hub answers; afterwards all is as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(LM_EVAL))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("huggingface_hub.constants", "datasets.config"):
            patch.setattr(importlib.import_module(name), "HF_HUB_OFFLINE", True)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one of which has a chat template, and questions."""
    folder = tmp_path_factory.mktemp("parity")
    byte_model(folder / "teacher", seed=0)
    byte_model(folder / "student", seed=1)
    byte_model(folder / "chat", seed=2, template=WITH_START)
    sums = [{"question": question(n), "answer": f"He has {2 * n + 1}.\n#### {2 * n + 1}"} for n in range(12)]
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sums))
    (folder / "own.jsonl").write_text(
        "".join(
            json.dumps({"q": f"Which is {n}?", "options": [f"{n}", f"the {n + 1}"], "a": n % 2, "ctx": "So"})
            + "\n"
            for n in range(8)
        )
    )
    return folder


def question(number: int) -> str:
    return f"Tom has {number} apples and buys {number + 1} more. How many apples has he now in all?"


def own_task(folder: Path, tmp_path: Path, **settings: Any) -> HarnessTask:
    """A task as one of lm-eval's own files describes it, on own.jsonl."""
    config = {
        "task": "own", "dataset_path": "json", "test_split": "test", "fewshot_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(folder / "own.jsonl")}}, "num_fewshot": 0,
        "doc_to_text": "Q: {{q}}\nA:", "doc_to_target": "{{options[a]}}",
        "output_type": "generate_until", "generation_kwargs": ENDINGS, "metric_list": [metric("exact_match")],
        **settings,
    }  # fmt: skip
    place = tmp_path / "own.yaml"
    place.write_text(json.dumps(config))  # which is YAML too
    tasks = importlib.import_module("lm_eval.tasks")
    manager = tasks.TaskManager(include_defaults=False, include_path=str(tmp_path))
    (task,) = manager.load(["own"])["tasks"].values()
    texts = {str(number): f"Which is {number}?" for number in range(8)}
    return HarnessTask("own", task, texts, texts)


def metric(name: str, *, higher_is_better: bool = True) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": higher_is_better}


@dataclass
class Watched:
    """A model, and what it was asked."""

    model: AnsweringModel
    requests: list[Request]
    pairs: list[tuple[str, str]]


def watched(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watched:
    book = AnswerBook(tmp_path / f"{name}.jsonl")
    model = AnsweringModel(str(folder / name), book, option="--student", batch_size=4, tell=lambda *_: None)
    found = Watched(model, [], [])
    answers, loglikelihoods = model.answers, model.loglikelihoods

    def asked(requests: Sequence[Request]) -> Any:
        found.requests += requests
        return answers(requests)

    def compared(pairs: Sequence[tuple[str, str]], *, is_chat: bool) -> Any:
        found.pairs += pairs
        return loglikelihoods(pairs, is_chat=is_chat)

    monkeypatch.setattr(model, "answers", asked)
    monkeypatch.setattr(model, "loglikelihoods", compared)
    return found


def test_teacher_and_student_see_the_same_examples(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = own_task(folder, tmp_path, num_fewshot=2)
    found = [watched(folder, name, monkeypatch, tmp_path) for name in ("teacher", "student")]
    for one in found:
        scores = score(task, one.model, items=["1", "4", "6"], chat=False, max_tokens=4)
        assert [item.item_id for item in scores["exact_match"].items] == ["1", "4", "6"]
    prompts = [[request.prompt for request in one.requests] for one in found]
    assert prompts[0] == prompts[1]
    assert prompts[0][0].count("Q: Which is") == 3
    assert len({prompt.rpartition("Q: ")[0] for prompt in prompts[0]}) == 3, (
        "examples differ between questions"
    )


@pytest.mark.parametrize(("given", "own", "wanted"), [(None, 7, 7), (3, 7, 3), (None, None, 256)])
def test_a_task_says_how_long_answers_may_be(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: int | None,
    own: int | None,
    wanted: int,
) -> None:
    settings = ENDINGS if own is None else {**ENDINGS, "max_gen_toks": own}
    one = watched(folder, "teacher", monkeypatch, tmp_path)
    score(
        own_task(folder, tmp_path, generation_kwargs=settings),
        one.model,
        items=["0"],
        chat=False,
        max_tokens=given,
    )
    assert [(request.max_tokens, request.until) for request in one.requests] == [(wanted, ("\n",))]


def test_an_answer_that_is_begun_for_the_model_is_gone_on_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = own_task(folder, tmp_path, gen_prefix="It is")
    one = watched(folder, "chat", monkeypatch, tmp_path)
    score(task, one.model, items=["2"], chat=True, max_tokens=4)
    (request,) = one.requests
    assert request.is_chat
    assert request.prompt == (
        "<|s|><|s|>system\nBe kind.<|e|>\n<|s|>user\nQ: Which is 2?\nA:<|e|>\n<|s|>assistant\nIt is"
    )


def test_choices_are_weighed_as_their_metric_does(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = {"output_type": "multiple_choice", "doc_to_choice": "{{options}}", "doc_to_target": "a"}
    metrics = [metric("acc"), metric("acc_norm"), metric("acc_mutual_info")]
    task = own_task(folder, tmp_path, **choices, generation_kwargs=None, metric_list=metrics)
    one = watched(folder, "teacher", monkeypatch, tmp_path)
    scores = score(task, one.model, items=[str(number) for number in range(8)], chat=False, max_tokens=None)
    assert one.pairs[0] == ("Q: Which is 0?\nA:", " 0")
    logprobs = [value for value, _ in one.model.loglikelihoods(one.pairs, is_chat=False)]
    for number in range(8):
        both = [
            logprobs[one.pairs.index((f"Q: Which is {number}?\nA:", f" {choice}"))]
            for choice in (f"{number}", f"the {number + 1}")
        ]
        for name, weighed in (("acc", both), ("acc_norm", [both[0] / 1, both[1] / 5])):
            item = scores[name].items[number]
            best = weighed.index(max(weighed))
            assert item.output == (f"{number}", f"the {number + 1}")[best]
            assert item.score == float(best == number % 2)
            assert item.confidence is not None
            assert 0.5 <= item.confidence <= 1
    assert scores["acc"].items[3].confidence != scores["acc_norm"].items[3].confidence
    assert all(item.confidence is None for item in scores["acc_mutual_info"].items)


def test_the_probability_of_the_right_text_is_no_confidence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = own_task(
        folder, tmp_path, output_type="loglikelihood", generation_kwargs=None, metric_list=[metric("acc")]
    )
    one = watched(folder, "teacher", monkeypatch, tmp_path)
    scores = score(task, one.model, items=["0", "1"], chat=False, max_tokens=None)
    assert {item.confidence for item in scores["acc"].items} == {None}


def test_figures_of_which_less_is_better_and_that_are_no_mean(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = watched(folder, "teacher", monkeypatch, tmp_path)
    worse = own_task(folder, tmp_path, metric_list=[metric("exact_match", higher_is_better=False)])
    scores = score(worse, one.model, items=["0"], chat=False, max_tokens=2)
    assert not scores["exact_match"].higher_is_better
    other = own_task(folder, tmp_path, metric_list=[{**metric("exact_match"), "aggregation": "median"}])
    with pytest.raises(ConfigError, match=r"none of its figures \(exact_match\) is a mean over items"):
        score(other, one.model, items=["0"], chat=False, max_tokens=2)


@pytest.mark.slow
def test_its_tasks_on_files_from_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All as a user has it, but that the list of lm-eval's thousands of tasks is read once and not four times."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tasks = importlib.import_module("lm_eval.tasks")
    manager = tasks.TaskManager()
    monkeypatch.setattr(tasks, "TaskManager", lambda: manager)
    arc = [
        {
            "id": str(n),
            "question": f"Which is {n}?",
            "choices": {"text": [f"{n}", f"the {n}"], "label": ["A", "B"]},
            "answerKey": "A",
        }
        for n in range(5)
    ]
    (tmp_path / "arc.jsonl").write_text("".join(json.dumps(one) + "\n" for one in arc))
    store_of(tmp_path / "trained", [(question(2), " 5<|e|>"), ("Another", " one<|e|>")], None)
    names = f"gsm8k={folder}/gsm8k.jsonl,arc_easy={tmp_path}/arc.jsonl"
    given = [
        "parity", "--student", f"{folder}/student", "--teacher", f"{folder}/teacher", "--fewshot", "2",
        "--labels", f"{tmp_path}/trained", "--limit", "4", "--max-tokens", "6", "--out", f"{tmp_path}/out",
    ]  # fmt: skip
    assert main([*given, "--tasks", names]) == 0
    told, progress = capsys.readouterr()
    assert "contamination: 1 items share 13 words in a row with one of 2 training prompts" in told
    assert "student: 8 of 8 answered" in progress, "four questions of two choices each"
    record = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert {name: gap["num_items"] for name, gap in record["gaps"].items()} == {
        "gsm8k (exact_match, strict-match)": 3,
        "gsm8k (exact_match, flexible-extract)": 3,
        "arc_easy (acc)": 4,
        "arc_easy (acc_norm)": 4,
    }
    assert record["num_cut_answers"] == {"teacher": 3, "student": 3}
    assert set(record["routing"]) == set(record["gaps"])
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    sums = [one for one in items if one["task"] == "gsm8k (exact_match, strict-match)"]
    assert [(one["item"], one["question"]) for one in sums] == [
        (str(n), f"Question: {question(n)}\nAnswer:") for n in (0, 1, 3)
    ]
    assert [one["reference"].endswith(f"#### {2 * int(one['item']) + 1}") for one in sums] == [True] * 3
    answers = (tmp_path / "out" / "answers.jsonl").read_bytes()
    assert answers.count(b"\n") == 2 * (3 + 8)
    assert main([*given, "--tasks", names, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == record
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == answers, "nothing was asked again"

    assert main([*given, "--tasks", "gsm9k"]) == 2
    assert "'gsm9k' is no file here and no task of lm-eval" in capsys.readouterr().err
    assert main([*given, "--tasks", "gsm8k"]) == 2
    assert "its data set is not on this machine and cannot be had" in capsys.readouterr().err
    assert main([*given, "--tasks", f"gsm8k={folder}/own.jsonl"]) == 2
    assert "give records with the fields of the task's own data set" in capsys.readouterr().err
    assert main([*given, "--tasks", names, "--fewshot", "12"]) == 2
    assert "12 examples before a question do not come from a file of 12 records" in capsys.readouterr().err
    assert main([*given, "--tasks", f"{names},gsm8k={folder}/gsm8k.jsonl"]) == 2
    assert "--tasks names gsm8k twice" in capsys.readouterr().err
