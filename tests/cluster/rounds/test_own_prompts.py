"""Rounds of a student that sees another prompt than its teacher: it answers its own, and the teacher's is scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.rounds.config import Documents, RoundsConfig
from cluster.rounds.ledger import Ledger
from cluster.rounds.running import Rejected, rejected_answers
from cluster.rounds.steps import Rounds
from labeler.config.loading import load_job
from labeler.prompting.byte_tokenizer import ByteTokenizer
from logitstore.common.config_file import ConfigError
from logitstore.manifest.fields import STUDENT_PROMPTS
from logitstore.store import LogitStore
from tests.cluster.rounds.rounds_here import label

BYTES = ByteTokenizer(512)
TEACHERS = (
    "<|start|>system\nAnswer like a pirate.<|end|>\n<|start|>user\nquestion {}?<|end|>\n<|start|>assistant\n"
)


def rounds_in(folder: Path, given: dict[str, Any]) -> Rounds:
    records = [
        {"uid": str(i), "prompt": f"question {i}?", "own": f"q{i}",
         "messages": [{"role": "user", "content": f"question {i}?"}],
         "own_messages": [{"role": "user", "content": f"q{i}"}]}
        for i in range(3)
    ]  # fmt: skip
    (folder / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    job = {
        "teacher": {"engine": "fake"},
        "input": {"uri": f"{folder}/prompts.jsonl", "id": "uid", "system_prompt": "Answer like a pirate."}
        | given,
        "labels": {"mode": "generate", "top_k": 8},
        "sampling": {"max_tokens": 6, "n": 2, "temperature": 1.0},
        "filters": {"empty": "keep"},
        "output": {"uri": f"{folder}/store", "codebook_units": 0},
    }
    train = {"student": {"model": ""}, "data": {"stores": []}}
    config = RoundsConfig(folder=f"{folder}/rounds", job="job.toml", train="train.toml")

    def command(arguments: Sequence[str]) -> str:
        label(arguments[2])
        return ""

    return Rounds(config, Documents(job=job, train=train), command)


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ({"kind": "prompt", "student_system_prompt": ""}, "<|start|>user\nquestion {}?<|end|>\n"),
        (
            {"kind": "prompt", "student_system_prompt": "Be dull."},
            "<|start|>system\nBe dull.<|end|>\n<|start|>user\nquestion {}?<|end|>\n",
        ),
        (
            {"kind": "prompt", "fields": {"student_prompt": "own"}, "student_system_prompt": ""},
            "<|start|>user\nq{}<|end|>\n",
        ),
        ({"kind": "messages", "fields": {"student_messages": "own_messages"}}, "<|start|>user\nq{}<|end|>\n"),
    ],
)
def test_a_student_answers_its_own_prompt_and_the_teacher_scores_behind_its_own(
    tmp_path: Path, given: dict[str, Any], own: str
) -> None:
    rounds = rounds_in(tmp_path, given)
    assert rounds.answer(1) == {"sequences": 6, "rejects": {}}
    answers = {
        (one.record_id, one.sample_index): one
        for one in LogitStore.open(rounds.places(1).answers).iter_sequences()
    }
    assert rounds.texts(1) == {"records": 6}
    rounds.score(1)
    scores = LogitStore.open(rounds.places(1).scores)
    assert STUDENT_PROMPTS in scores.manifest.features
    scored = list(scores.iter_sequences())
    assert len(scored) == 6
    for one in scored:
        number, _, sample = one.record_id.partition("#")
        answer = answers[number, int(sample or 0)]
        seen = BYTES.decode(answer.token_ids_T[: answer.prompt_length].tolist())
        assert seen == own.format(number) + "<|start|>assistant\n", "the student answered another prompt"
        learned = one.for_student()
        assert learned.token_ids_T.tolist() == answer.token_ids_T.tolist()
        assert learned.label_start == answer.prompt_length
        assert BYTES.decode(one.token_ids_T[: one.prompt_length].tolist()) == TEACHERS.format(number)


def test_answers_that_the_teacher_rejects_are_counted(tmp_path: Path) -> None:
    """Too long behind the teacher's prompt, say: they were missing from the training without a word."""
    rounds = rounds_in(tmp_path, {"kind": "prompt", "student_system_prompt": ""})
    rounds.answer(1)
    records = rounds.texts(1)
    lines = Path(rounds.places(1).texts).read_text().splitlines()
    wrong = json.dumps(json.loads(lines[2]) | {"token_ids": [9999]})
    Path(rounds.places(1).texts).write_text("\n".join([*lines[:2], wrong, *lines[3:]]) + "\n")
    scored = rounds.score(1)
    assert (records["records"], scored["sequences"]) == (6, 5)
    ledger = Ledger({}, {"1/texts": records, "1/score": scored, "2/texts": records, "2/score": {"rows": 9}})
    (found,) = rejected_answers(ledger)
    assert found == Rejected("1", "score", 1, 6, {"bad_token_id": 1})


def test_answers_that_are_rejected_as_the_student_writes_them_are_counted(tmp_path: Path) -> None:
    """Empty ones, say, and prompts that it was not given: they were missing without a word."""
    rounds = rounds_in(tmp_path, {"kind": "prompt"})
    rounds.documents.job["filters"] = {"length": "drop", "min_tokens": 6, "empty": "keep"}
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"uid": "3", "prompt": ""}\n')
    answered, records = rounds.answer(1), rounds.texts(1)
    rejects = answered["rejects"]
    assert rejects["empty"] == 1
    assert (rejects["filter_too_short"] > 0, sum(rejects.values()) + answered["sequences"]) == (
        True,
        3 * 2 + 1,
    )
    (found,) = rejected_answers(Ledger({}, {"1/answer": answered, "1/texts": records}))
    assert found.text("rounds") == (
        f"round 1: {sum(rejects.values())} of 7 prompts or answers of the student were rejected (1 empty, "
        f"{rejects['filter_too_short']} filter_too_short), as rounds/round-1/answers says"
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["input.kind=prompt"], "no record has a prompt of the student's own"),
        (["input.kind=prompt_response", "input.student_system_prompt=''"], r"lets it answer nothing"),
    ],
)
def test_a_prompt_that_nobody_sees_is_refused(settings: list[str], says: str) -> None:
    base = ["teacher.engine=fake", "input.uri=in", "output.uri=out", "input.prompt_seen=student"]
    with pytest.raises(ConfigError, match=says):
        load_job(None, [*base, *settings], {})
