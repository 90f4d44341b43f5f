"""A job with the real engine and a teacher whose files disagree about where a turn ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.jobs.running_job import started
from logitstore.store import LogitStore
from tests.labeler import engines

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    engines.needs_model,
]

QUESTIONS = ("What is the capital of France?", "What is the capital of Italy?")


def _teacher_that_ends_elsewhere(folder: Path) -> Path:
    """The demo's teacher, but config.json and generation_config.json name the end of text, 0, alone."""
    folder.mkdir()
    for path in engines.MODEL.iterdir():
        if path.name in ("config.json", "generation_config.json"):
            content = json.loads(path.read_text()) | {"eos_token_id": 0}
            (folder / path.name).write_text(json.dumps(content))
        else:
            (folder / path.name).symlink_to(path.resolve())
    return folder


def test_responses_end_where_the_tokenizer_and_the_chat_template_say(tmp_path: Path) -> None:
    records = [{"id": f"q{i}", "prompt": question} for i, question in enumerate(QUESTIONS)]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    model = _teacher_that_ends_elsewhere(tmp_path / "teacher")
    overrides = [
        *("teacher.engine=vllm", f"teacher.model='{model}'", "teacher.max_model_len=256", "labels.top_k=8"),
        *(f"input.uri='{tmp_path / 'in.jsonl'}'", "input.kind=prompt", "input.id=id", "labels.mode=generate"),
        *("sampling.temperature=0", "sampling.max_tokens=60", f"output.uri='{tmp_path / 'store'}'"),
    ]
    with started(overrides) as job:
        exit_status, output = job.finish(timeout_sec=500)
    assert exit_status == 0, output
    store = LogitStore.open(tmp_path / "store")
    responses = {sequence.record_id: sequence for sequence in store.iter_sequences()}
    assert sorted(responses) == ["q0", "q1"]
    for sequence in responses.values():
        response_T = sequence.token_ids_T[sequence.prompt_length :]
        assert sequence.finish_reason == "stop"
        assert (int(response_T[-1]), int((response_T == 2).sum())) == (2, 1)
        assert sequence.loss_mask_N.all()
