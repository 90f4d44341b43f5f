"""Tasks of EleutherAI's lm-evaluation-harness, with models that answer from the book."""

from __future__ import annotations

import importlib
import logging
import math
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from logitstore.common.command import nearest
from logitstore.common.config_file import ConfigError
from logitstore.common.terminal import first_line
from trainer.parity.records import MAX_TOKENS, Request, Scored, Scores

ANSWER_SEC = 5.0
FEWSHOT_SEED = 1234
"""The harness' own."""


@dataclass(frozen=True, slots=True)
class HarnessTask:
    """One task that is loaded."""

    name: str
    task: Any
    """lm_eval.api.task.Task."""
    questions: Mapping[str, str]
    """By number of the document, as text: the question alone, without examples before it."""
    bare: Mapping[str, str]
    """The longest field of the document that the question holds word for word: without what the task writes
    around it."""


def load_tasks(specs: Sequence[str], *, limit: int | None, num_fewshot: int | None) -> list[HarnessTask]:
    """The tasks of "gsm8k", or of "gsm8k=FILE", which takes its documents from a file.

    Raises ConfigError for unknown names and for data that is neither on the machine nor to be had.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not _hub_answers():
        _forbid_the_hub()
    manager = importlib.import_module("lm_eval.tasks").TaskManager()
    known = {*manager.all_tasks, *manager.all_groups, *manager.all_tags}
    found: list[HarnessTask] = []
    for spec in specs:
        name, _, file = spec.partition("=")
        if name not in known:
            raise ConfigError(
                f"--tasks {name!r} is no file here and no task of lm-eval; {nearest(name, sorted(known))}"
                if len(name) < 60
                else f"--tasks {name!r} is no file here"
            )
        for task in _loaded(manager, name, file, limit):
            if any(other.name == task.name for other in found):
                raise ConfigError(
                    f"--tasks names {task.name} twice, and results are told by the task's name; give it once"
                )
            _set_fewshot(task, num_fewshot, f"--tasks {spec}" if file else "")
            found.append(task)
    return found


def score(
    task: HarnessTask, model: Any, *, items: Sequence[str], chat: bool, max_tokens: int | None
) -> dict[str, Scores]:
    """Scores of the documents `items` by "metric" or "metric, filter", as the task itself counts.

    `model` is an AnsweringModel. Raises ConfigError for a task that has no mean over items.
    """
    evaluator = importlib.import_module("lm_eval.evaluator")
    adapter = _adapter(model, max_tokens)
    # Drawn on from where the first model's ended, examples would differ between teacher and student.
    task.task.set_fewshot_seed(seed=FEWSHOT_SEED)
    results = evaluator.evaluate(
        lm=adapter,
        task_dict={"tasks": {task.name: task.task}, "groups": {}, "group_map": {}},
        samples={task.name: [int(item) for item in items]},
        bootstrap_iters=0,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    found: dict[str, list[Scored]] = {}
    metric_of: dict[str, str] = {}
    means = {name for name, how in task.task.aggregation().items() if _is_mean(how)}
    for sample in results["samples"][task.name]:
        for metric in sample["metrics"]:
            if metric in means and isinstance(sample[metric], (bool, int, float, np.number, np.bool_)):
                name = metric if sample["filter"] == "none" else f"{metric}, {sample['filter']}"
                metric_of[name] = metric
                found.setdefault(name, []).append(_scored(task, sample, metric, adapter.confidences))
    if not found:
        raise ConfigError(
            f"--tasks {task.name}: none of its figures ({', '.join(task.task.aggregation())}) is a "
            "mean over items, so two models cannot be compared item by item; choose another task"
        )
    better = task.task.higher_is_better()
    return {
        name: Scores(sorted(scored, key=lambda one: int(one.item_id)), better.get(metric_of[name], True))
        for name, scored in found.items()
    }


def _is_mean(how: Any) -> bool:
    return getattr(how, "__name__", "") == "mean"  # a partial has no name


def _scored(task: HarnessTask, sample: Mapping[str, Any], metric: str, known: Mapping[str, float]) -> Scored:
    item = str(sample["doc_id"])
    responses = [response[0] for response in sample["resps"]]
    if isinstance(responses[0], str):
        confidence, output = known.get(sample["arguments"][0][0]), responses[0]
    elif task.task.OUTPUT_TYPE == "multiple_choice":
        confidence, output = _chosen(task, sample, metric, [logprob for logprob, _ in responses])
    else:  # the probability of the right text says how good the model is, not how sure
        confidence, output = None, "greedy" if responses[0][1] else "not greedy"
    value = float(sample[metric])
    return Scored(item, task.questions[item], str(sample["target"]), output, value, confidence)


def _chosen(
    task: HarnessTask, sample: Mapping[str, Any], metric: str, logprobs: list[float]
) -> tuple[float | None, str]:
    """The choice that the metric counts, and its share of the choices' probabilities as the metric weighs
    them; None for a metric that weighs otherwise."""
    choices = [str(choice) for choice in task.task.doc_to_choice(sample["doc"])]
    lengths = {
        "acc_norm": [len(choice) for choice in choices],
        "acc_bytes": [len(choice.encode()) for choice in choices],
    }.get(metric, [1] * len(choices))
    # Some metrics ask for each choice without its question too, after those with it.
    weighed = [logprob / max(length, 1) for logprob, length in zip(logprobs, lengths, strict=False)]
    best = max(range(len(weighed)), key=weighed.__getitem__)
    share = 1 / sum(math.exp(value - weighed[best]) for value in weighed)
    return (share if metric in ("acc", "acc_norm", "acc_bytes") else None), choices[best]


def _loaded(manager: Any, name: str, file: str, limit: int | None) -> list[HarnessTask]:
    spec: Any = name
    if file:
        # Examples come from the same file: the harness leaves the question itself out of them.
        own = {
            "task": name, "dataset_path": "json", "dataset_name": None, "test_split": "test",
            "training_split": None, "validation_split": None, "fewshot_split": "test",
            "dataset_kwargs": {"data_files": {"test": os.path.abspath(file)}},
        }  # fmt: skip
        spec = {"group": f"{name} of a file", "task": [own]}
    # What a task makes of a document is its own code, and templates.
    undefined = importlib.import_module("jinja2").TemplateError
    try:
        return [
            HarnessTask(task.task_name, task, *_questions(task, limit))
            for task in manager.load([spec])["tasks"].values()
        ]
    except (
        OSError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        ImportError,
        undefined,
    ) as error:
        if file:
            raise ConfigError(
                f"--tasks {name}={file}: the task cannot read it ({_reason(error)}); "
                "give records with the fields of the task's own data set"
            ) from error
        raise ConfigError(
            f"--tasks {name}: its data set is not on this machine and cannot be had "
            f"({_reason(error)}); give its records by {name}=FILE.jsonl, or the network"
        ) from error


def _set_fewshot(task: HarnessTask, given: int | None, file: str) -> None:
    """`file`: what names the file that examples come from too, "" where they come from elsewhere."""
    number = given if given is not None else task.task.get_config("num_fewshot") or 0
    task.task.set_config(key="num_fewshot", value=number)
    if file and number >= (num_records := len(task.task.eval_docs)):
        raise ConfigError(
            f"{file}: {number} examples before a question do not come from a file of {num_records} records; "
            "give more records, or fewer examples with --fewshot"
        )


def _reason(error: Exception) -> str:
    return first_line(error) or type(error).__name__


def _questions(task: Any, limit: int | None) -> tuple[dict[str, str], dict[str, str]]:
    questions, bare = {}, {}
    for number, document in enumerate(islice(task.eval_docs, limit)):
        text = task.doc_to_text(document)
        # The number of the right one among several texts, where the task has several.
        text = text if isinstance(text, str) else "\n".join(filter(_is_text, document.values()))
        inside = [value for value in document.values() if _is_text(value) and value.strip() in text]
        questions[str(number)] = text
        bare[str(number)] = max(inside, key=len, default=text)
    return questions, bare


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _hub_answers() -> bool:
    place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(place, timeout=ANSWER_SEC).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _forbid_the_hub() -> None:
    """Otherwise libraries try again for minutes. They read the setting once, when they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            sys.modules[name].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def _adapter(model: Any, max_tokens: int | None) -> Any:
    """An `lm_eval` model around an AnsweringModel."""
    base: Any = importlib.import_module("lm_eval.api.model").LM

    class Adapter(base):
        def __init__(self) -> None:
            super().__init__()
            self.confidences: dict[str, float] = {}
            """Confidence of each generated answer, by prompt."""
            self._is_chat = False

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            self._is_chat = True
            return model.rendered(chat_history, begins_answer=add_generation_prompt)

        @property
        def tokenizer_name(self) -> str:
            return model.name

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return model.tokenizer.chat_template if chat_template else None

        def generate_until(self, requests: list[Any]) -> list[str]:
            asked = [self._request(*request.args) for request in requests]
            answers = model.answers(asked)
            for request, answer in zip(asked, answers, strict=True):
                if answer.confidence is not None:
                    self.confidences[request.prompt] = answer.confidence
            return [answer.text for answer in answers]

        def _request(self, prompt: str, settings: Mapping[str, Any]) -> Request:
            until = settings.get("until") or ()
            until = (until,) if isinstance(until, str) else tuple(until)
            length = max_tokens or settings.get("max_gen_toks") or MAX_TOKENS
            return Request(prompt, self._is_chat, until, int(length))

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return model.loglikelihoods([request.args for request in requests], is_chat=self._is_chat)

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise ConfigError(
                "a task of perplexity has no answers to compare; `penumbra train eval` compares probabilities"
            )

    return Adapter()
