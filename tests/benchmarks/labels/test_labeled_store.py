"""Which job the measurements give the labeler for a user's prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.__main__ import build_parser
from benchmarks.labels.labeled_store import DEMO_PROMPTS, LabelingJob, configuration


def job_for(tmp_path: Path, record: Mapping[str, object], *options: str) -> LabelingJob:
    path = tmp_path / "prompts.jsonl"
    path.write_text("not JSON\n" + json.dumps(record) + "\n")
    args = build_parser(["recommend"]).parse_args(
        ["recommend", "--input", str(path), "--teacher", "some/model", *options]
    )
    return LabelingJob.of(args, temperature=args.temperature)


TURNS = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]


@pytest.mark.parametrize(
    ("record", "kind", "mode"),
    [
        ({"prompt": "a", "response": "b", "id": 1}, "prompt_response", "score"),
        ({"prompt": "a"}, "prompt", "generate"),
        ({"messages": TURNS}, "messages", "score"),
        ({"messages": TURNS[:1]}, "messages", "generate"),
        ({"text": "a"}, "text", "score"),
        ({"token_ids": [1, 2]}, "token_ids", "score"),
    ],
)
def test_the_kind_of_input_is_read_off_its_first_good_record(
    tmp_path: Path, record: Mapping[str, object], kind: str, mode: str
) -> None:
    job = configuration(job_for(tmp_path, record, "--top-k", "4,32", "--gpus", "2"))
    assert (job.input.kind, job.labels.mode, job.labels.top_k) == (kind, mode, 32)
    assert (job.teacher.model, job.workers.gpus, job.workers.replicas) == ("some/model", 2, 1)


def test_fields_by_other_names_are_given_by_role(tmp_path: Path) -> None:
    record = {"question": "a", "answer": "b"}
    with pytest.raises(ValueError, match=r"fields answer, question, none of which is a prompt"):
        configuration(job_for(tmp_path, record))
    named = configuration(job_for(tmp_path, record, "--fields", "prompt=question,response=answer"))
    assert named.input.kind == "prompt_response"
    assert named.input.field_names() == {"prompt": "question", "response": "answer"}


def test_a_temperature_beyond_the_usual_ones_is_stored(tmp_path: Path) -> None:
    within = job_for(tmp_path, {"text": "a"}, "--temperature", "3")
    beyond = job_for(tmp_path, {"text": "a"}, "--temperature", "8")
    assert within.temperatures == (1.0, 2.0, 4.0)
    assert beyond.temperatures == (1.0, 2.0, 4.0, 8.0)
    assert within.store != beyond.store


def test_all_parts_of_a_run_share_one_store() -> None:
    stores = set()
    for part in ("recommend", "storage", "decode"):
        args = build_parser([part]).parse_args([part, "--quick"])
        stores.add(LabelingJob.of(args).store)
    assert len(stores) == 1
    assert DEMO_PROMPTS.exists()
