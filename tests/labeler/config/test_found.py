"""What a job is not told is found in the records and said; what it is told stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labeler.__main__ import main
from labeler.config import found
from labeler.config.found import find_settings
from labeler.config.loading import checked_job, job_document
from logitstore.common.config_file import ConfigError

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("record", "kind", "mode", "fields"),
    [
        ({"prompt": "a"}, "prompt", "generate", {}),
        ({"prompt": ["a", "b"]}, "prompt", "generate", {}),
        ({"question": "a", "answer": "b"}, "prompt_response", "score",
         {"prompt": "question", "response": "answer"}),
        ({"instruction": "a", "input": "c", "output": "b"}, "prompt_response", "score",
         {"prompt": "instruction", "response": "output", "context": "input"}),
        ({"messages": [USER, ANSWER]}, "messages", "score", {}),
        ({"messages": [USER]}, "messages", "generate", {}),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "messages",
         "score", {"messages": "conversations"}),
        ({"prompt": [USER]}, "messages", "generate", {"messages": "prompt"}),
        ({"text": "a", "meta": 1}, "text", "score", {}),
        ({"input_ids": [1, 2]}, "token_ids", "score", {"token_ids": "input_ids"}),
        ({"prompt": "a", "system": "s"}, "prompt", "generate", {"system": "system"}),
    ],
)  # fmt: skip
def test_the_kind_is_found_in_the_fields(
    record: dict[str, Any], kind: str, mode: str, fields: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    options = {"input.uri": str(tmp_path / "in.jsonl"), "output.uri": "out"}
    document = job_document(None, ["teacher.engine=fake"], {}, options=options)
    lines = find_settings(document)
    job = checked_job(document, None)
    assert (job.input.kind, job.labels.mode, job.input.fields) == (kind, mode, fields)
    assert len(lines) == 1
    assert f'input.kind = "{kind}"' in lines[0]
    assert f'labels.mode = "{mode}"' in lines[0]


def test_what_is_told_stays(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    options = {"input.uri": str(tmp_path / "in.jsonl"), "output.uri": "out", "teacher.model": "m"}
    toml = tmp_path / "job.toml"
    toml.write_text('[teacher]\nengine = "fake"\nmodel = "of the file"\n[labels]\nmode = "generate"\n')
    document = job_document(str(toml), ["output.uri=of-set"], {}, options=options)
    find_settings(document)
    job = checked_job(document, str(toml))
    assert (job.teacher.model, job.output.uri, job.labels.mode) == ("m", "of-set", "generate")
    named = job_document(None, ["input.kind=prompt", "workers.gpus=0"], {}, options=options)
    before = json.dumps(named)
    assert find_settings(named) == []
    assert json.dumps(named) == before


def test_a_field_that_some_records_lack_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "a", "prompt": "x"}\n{"id": "b", "prompt": NaN}\n{"id": "c", "prompt": "z"}\n')
    with pytest.raises(ConfigError, match="and 'prompt' fits prompt in 2 of the first 3 records only; set"):
        find_settings({"input": {"uri": str(file)}, "workers": {"gpus": 0}})


def test_a_kind_that_cannot_be_found_names_the_fields_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"a": 1, "b": 2}\n')
    with pytest.raises(ConfigError, match=r"'a', 'b'.*input.kind=KIND, one of messages, prompt,"):
        find_settings({"input": {"uri": str(tmp_path / "in.jsonl")}})


@pytest.mark.parametrize(
    ("content", "why"), [("not JSON\n", "the line is not valid JSON"), ("\n \n", "empty")]
)
def test_where_no_record_can_be_read_the_reason_is_said_and_no_setting(
    content: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=rf"begins with no record \(.*{why}") as refused:
        find_settings({"input": {"uri": str(tmp_path / "in.jsonl")}})
    assert "KIND" not in str(refused.value)


@pytest.mark.parametrize(
    ("num_gpus", "teacher", "workers", "wanted"),
    [
        (4, {}, {}, {"gpus": 1, "replicas": 4}),
        (4, {"tensor_parallel_size": 2}, {}, {"gpus": 2, "replicas": 2}),
        (4, {}, {"replicas": 1}, {"gpus": 1, "replicas": 1}),
        (0, {}, {}, {}),
        (4, {}, {"gpus": 0}, {"gpus": 0}),
        (4, {}, {"address": "ray://head"}, {"address": "ray://head"}),
        (4, {"engine": "fake"}, {}, {}),
        (8, {"engine": "vllm", "pipeline_parallel_size": 2}, {}, {"gpus": 2, "replicas": 4}),
        (8, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, {}, {"gpus": 4, "replicas": 2}),
        (2, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, {}, {"gpus": 4}),
        (8, {"engine": "openai", "api": {"requests_per_minute": 60}}, {}, {}),
    ],
)
def test_gpus_become_replicas(
    num_gpus: int,
    teacher: dict[str, Any],
    workers: dict[str, Any],
    wanted: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(found, "gpus_here", lambda: num_gpus)
    document = {"teacher": dict(teacher), "workers": dict(workers), "input": {"kind": "prompt"}}
    lines = find_settings(document)
    assert document["workers"] == wanted
    if "gpus" in wanted and "gpus" not in workers:
        assert f"found: {num_gpus} GPUs; workers.gpus = {wanted['gpus']}" in lines[0]


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"question": "a"}\n')
    arguments = ["--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.parquet")]
    assert main(["run", *arguments, "--set", "teacher.engine=fake", "--dry-run", "--settings"]) == 0
    out, err = capsys.readouterr()
    assert "prompt in the field 'question'" in err
    assert json.loads(out[: out.index("\n}\n") + 2])["output"]["uri"] == str(tmp_path / "out")
