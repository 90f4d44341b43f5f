"""The answers of SGLang's and llama.cpp's servers, as their own sources write them: texts kept, rows refused in words.

Neither server runs here. SGLang: python/sglang/srt/entrypoints/openai/protocol.py; llama.cpp: tools/server/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig, load_job
from labeler.config.teacher_settings import ApiTeacherConfig
from labeler.records import Lease
from labeler.teacher.openai.teacher import OpenAiTeacher
from logitstore.store import LogitStore
from tests.labeler.jobs import label_and_commit
from tests.labeler.teacher.openai.chat_stand_in import chat_reply, chat_server
from tests.labeler.teacher.openai.json_server import Reply
from tests.labeler.teacher.openai.stand_in import write_model
from tests.labeler.teacher.openai.test_texts_only import api_settings, job_settings, text_of
from tests.labeler.whole_jobs.test_storage_faults import started_worker

Server = Callable[[str, dict[str, Any]], Reply]
LONG = "long"
PROBE_IDS = [1, 2, 3]


def sglang(path: str, body: dict[str, Any]) -> Reply:
    """Nulls where nothing is, what ended the text beside the reason, errors without a frame."""
    if path == "/v1/completions":
        rows = {"text_offset": [], "token_logprobs": [-0.5], "tokens": ["a"], "top_logprobs": [{"a": -0.5}]}
        choice = {"index": 0, "text": "a", "logprobs": rows, "finish_reason": "length", "matched_stop": None}
        if body.get("return_token_ids"):
            given = body["prompt"]
            choice |= {"token_ids": [1], "prompt_token_ids": given if isinstance(given, list) else PROBE_IDS}
        return completion(body, choice)
    if body["messages"][-1]["content"].startswith(LONG):
        told = "Input length 9412 exceeds the maximum allowed input length of 8186 tokens."
        return 400, {
            "object": "error",
            "message": told,
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        }
    status, answer = chat_reply(path, body)
    for choice in answer["choices"]:
        choice |= {"logprobs": None, "matched_stop": 2 if choice["finish_reason"] == "stop" else None}
        choice["message"] = {"reasoning_content": None, "tool_calls": None, **choice["message"]}
    answer["usage"] |= {"prompt_tokens_details": None, "reasoning_tokens": 0}
    return status, {**answer, "metadata": {"weight_version": "default"}}


class LlamaCpp:
    """Refuses while the model is loaded; says how long everything took; tokens by id only in its own form."""

    def __init__(self) -> None:
        self.still_loading = 2

    def __call__(self, path: str, body: dict[str, Any]) -> Reply:
        if self.still_loading:
            self.still_loading -= 1
            return 503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
        if path == "/v1/completions":
            token = {"id": 1, "token": "a", "bytes": [97], "logprob": -0.5}
            rows = {"content": [{**token, "top_logprobs": [token]}]}
            return completion(body, {"index": 0, "text": "a", "logprobs": rows, "finish_reason": "length"})
        if body["messages"][-1]["content"].startswith(LONG):
            told = "request (9412 tokens) exceeds the available context size (8192 tokens), try increasing it"
            error = {"code": 400, "message": told, "type": "exceed_context_size_error"}
            return 400, {"error": {**error, "n_prompt_tokens": 9412, "n_ctx": 8192}}
        status, answer = chat_reply(path, body)
        timings = {"prompt_n": 11, "prompt_ms": 3.5, "predicted_n": 7, "predicted_ms": 9.25}
        return status, {**answer, "system_fingerprint": "b9999-abcdef", "timings": timings}


def completion(body: dict[str, Any], choice: dict[str, Any]) -> Reply:
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    answer = {"id": "x", "object": "text_completion", "created": 0, "model": body["model"]}
    return 200, {**answer, "choices": [choice], "usage": usage}


@pytest.mark.parametrize("server", [sglang, LlamaCpp()], ids=["sglang", "llama.cpp"])
def test_texts_of_other_servers_are_kept(tmp_path: Path, server: Server) -> None:
    records = [{"uid": name, "prompt": name} for name in ("why?", "think twice", "x" * 60, "long ago")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    with chat_server([], server) as url:
        settings = [*api_settings(tmp_path, url), "teacher.api.longest_pause_sec=0.05"]
        worker, units = started_worker(load_job(None, job_settings(tmp_path, *settings), {}))
        for number, unit in enumerate(units):
            assert label_and_commit(worker, Lease(number, unit, "w")).won
        worker.close()
    store = LogitStore.open(tmp_path / "store")
    assert {one.record_id: (text_of(one), one.finish_reason) for one in store.iter_sequences()} == {
        "why?": ("?yhw<|e|>", "stop"),
        "think twice": ("<think>\nBackwards.\n</think>\n\neciwt kniht<|e|>", "stop"),
        "x" * 60: ("x" * 20, "length"),
    }
    assert [(reject.record_id, reject.kind) for reject in store.rejects()] == [("long ago", "too_long")]


@pytest.mark.parametrize("server", [sglang, LlamaCpp()], ids=["sglang", "llama.cpp"])
def test_rows_of_other_servers_are_refused_in_words(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = "labeler.teacher.openai.teacher.PROBE_TEXT"
    monkeypatch.setattr(tokenizer, '!"#')  # Three tokens of the model's, whose ids are these.
    with chat_server([], server) as url:
        api = ApiTeacherConfig(base_url=url, tries=3, longest_pause_sec=0.05)
        config = TeacherConfig(engine="openai", model=str(write_model(tmp_path)), api=api)
        labels = LabelsConfig(mode="generate", top_k=4, temperatures=(1.0,))
        with pytest.raises(RuntimeError, match=r"gives no rows: .*; .* labels\.rows = false"):
            OpenAiTeacher(config, labels, SamplingConfig())
