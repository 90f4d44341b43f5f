"""Twenty seeds of a recipe with repeats and an evaluation set's questions among them, and what is found.

Both steps run as in a recipe, one after the other at their default settings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from labeler.curation.settings import DecontaminateSettings, DedupeSettings
from labeler.curation.sifting import Source, decontaminate, dedupe

Step = Literal["dedupe", "decontaminate", "none"]

STEP_OF_PLANT: dict[str, Step] = {
    "seed": "none",
    "case and marks": "dedupe",
    "a word left out": "dedupe",
    "paraphrase": "dedupe",
    "something else": "none",
    "evaluation, word for word": "decontaminate",
    "evaluation, paraphrased": "decontaminate",
}
"""Which step shall drop what was planted."""
NUM_SEEDS = 20
NUM_OF_EACH = 5


@dataclass(frozen=True, slots=True)
class Found:
    """What the two steps made of one kind of record."""

    plant: str
    wanted: Step
    num_planted: int
    num_dropped: dict[Step, int]
    """By the step that did it."""


def planted_seeds(data: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of seeds, whose ids begin with what they are, and the evaluation set."""
    bases = [json.loads(line) for line in (data / "near_prompts.jsonl").read_text().splitlines()]
    made: dict[str, list[str]] = {"seed": [base["prompt"] for base in bases[:NUM_SEEDS]]}
    groups = [bases[start : start + NUM_OF_EACH] for start in range(0, len(bases), NUM_OF_EACH)]
    made["case and marks"] = [in_capitals(base["prompt"]) for base in groups[0]]
    made["a word left out"] = [without_a_word(base["prompt"]) for base in groups[1]]
    made["paraphrase"] = [base["paraphrase"] for base in groups[2]]
    made["something else"] = [base["other"] for base in groups[3]]
    made["evaluation, word for word"] = [base["prompt"] for base in groups[4]]
    made["evaluation, paraphrased"] = [base["paraphrase"] for base in groups[5]]
    seeds = [
        {"id": f"{plant}/{number}", "prompt": text}
        for plant, texts in made.items()
        for number, text in enumerate(texts)
    ]
    return seeds, [{"question": base["prompt"]} for base in (*groups[4], *groups[5])]


def find_planted(data: Path, folder: Path) -> list[Found]:
    """What the two steps drop of the planted seeds; they write into `folder`."""
    seeds, evaluation = planted_seeds(data)
    given, questions = folder / "seeds.jsonl", folder / "evaluation.jsonl"
    for path, records in ((given, seeds), (questions, evaluation)):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    new, clean = folder / "new.jsonl", folder / "clean.jsonl"
    dedupe(Source(str(given)), new, DedupeSettings())
    decontaminate(Source(str(new)), clean, DecontaminateSettings(against=(str(questions),)))
    dropped: dict[Step, list[str]] = {
        "dedupe": _plants_in(folder / "new.dropped.jsonl"),
        "decontaminate": _plants_in(folder / "clean.dropped.jsonl"),
    }
    plants = [str(record["id"]).partition("/")[0] for record in seeds]
    return [
        Found(
            plant,
            wanted,
            plants.count(plant),
            {step: names.count(plant) for step, names in dropped.items()},
        )
        for plant, wanted in STEP_OF_PLANT.items()
    ]


def recall_and_precision(found: Sequence[Found], step: Step) -> tuple[float, float]:
    """Shares of what a step shall drop that it drops, and of what it drops that it shall."""
    planted = sum(one.num_planted for one in found if one.wanted == step)
    right = sum(one.num_dropped[step] for one in found if one.wanted == step)
    dropped = sum(one.num_dropped[step] for one in found)
    return right / planted, right / dropped if dropped else 1.0


def _plants_in(path: Path) -> list[str]:
    return [
        json.loads(line)["id"].partition("/")[0] for line in path.read_text(encoding="utf-8").splitlines()
    ]


def in_capitals(text: str) -> str:
    """The same words in other case and with other marks."""
    return text.upper().replace(".", "!").replace(",", "")


def without_a_word(text: str) -> str:
    """Without the word in the middle."""
    words = text.split()
    return " ".join(words[: len(words) // 2] + words[len(words) // 2 + 1 :])
