"""input.kind = "auto": the files that people have, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeler.__main__ import main
from labeler.config.found import find_input, load_found_job
from labeler.config.loading import load_job
from labeler.planning.preflight import prepare
from logitstore.common.config_file import ConfigError

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SHAREGPT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}
ALPACA = {"instruction": "a", "input": "", "output": "b"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
BATCH = {
    "custom_id": "request-1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [USER], "tools": TOOLS, "max_tokens": 9},
}


def lines_of(*records: dict[str, Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder / "in.jsonl"

    return write


def array_of(*records: dict[str, Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "in.json").write_text(json.dumps(records, indent=1))
        return folder / "in.json"

    return write


def csv(folder: Path) -> Path:
    (folder / "in.csv").write_text('question,answer\n"a, b",c\n')
    return folder / "in.csv"


def parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist([{"messages": [USER, ANSWER], "source": "x"}]), folder / "in.parquet")
    return folder / "in.parquet"


def saved(folder: Path) -> Path:
    """As `datasets.save_to_disk` leaves one split."""
    table = pa.Table.from_pylist([{"prompt": "a"}])
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (folder / "dataset_info.json").write_text('{"features": {}}')
    return folder


def snapshot(folder: Path, *splits: str) -> Path:
    """As the hub's cache holds a data set: links to blobs, with the files of its page beside them."""
    (folder / "blobs").mkdir()
    (folder / "snapshots/abc/data").mkdir(parents=True)
    for split in splits or ("train",):
        pq.write_table(pa.Table.from_pylist([ALPACA]), folder / "blobs" / split)
        name = folder / f"snapshots/abc/data/{split}-00000-of-00001.parquet"
        name.symlink_to(folder / "blobs" / split)
    (folder / "snapshots/abc/README.md").write_text("# a data set")
    (folder / "snapshots/abc/dataset_infos.json").write_text('{"default": {}}')
    return folder / "snapshots/abc"


@pytest.mark.parametrize(
    ("write", "kind", "mode", "fields", "said"),
    [
        (array_of(ALPACA, {**ALPACA, "input": "c"}), "prompt_response", "score",
         {"prompt": "instruction", "response": "output", "context": "input"}, "Alpaca's form, 1 JSON file"),
        (saved, "prompt", "generate", {}, "1 Arrow file"),
        (snapshot, "prompt_response", "score",
         {"prompt": "instruction", "response": "output", "context": "input"}, "1 Parquet file"),
        (array_of(SHAREGPT), "messages", "score", {"messages": "conversations", "system": "system"},
         "ShareGPT's form"),
        (lines_of({"messages": [USER, ANSWER], "tools": TOOLS}), "messages", "score", {}, "OpenAI's form of chats"),
        (lines_of(BATCH), "messages", "generate", {"messages": "body.messages", "tools": "body.tools"},
         "an OpenAI batch file"),
        (csv, "prompt_response", "score", {"prompt": "question", "response": "answer"}, "1 CSV file"),
        (parquet, "messages", "score", {}, "1 Parquet file"),
        (lines_of({"text": ["a", "b"]}), "text", "score", {}, "1 JSON file"),
        (lines_of({"input_ids": [1]}), "token_ids", "score", {"token_ids": "input_ids"}, "1 JSON file"),
    ],
    ids=["alpaca array", "save_to_disk", "hub snapshot", "sharegpt", "openai", "batch", "csv", "parquet", "text",
         "ids"],
)  # fmt: skip
def test_what_people_have_is_recognised_and_said(
    write: Callable[[Path], Path],
    kind: str,
    mode: str,
    fields: dict[str, str],
    said: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    uri = write(tmp_path / "in")
    settings = ["teacher.engine=fake", f"input.uri='{uri}'", f"output.uri='{tmp_path}/store'"]
    job, lines = load_found_job(None, [*settings, "input.kind=auto"], {})
    assert (job.input.kind, job.labels.mode, job.input.fields) == (kind, mode, fields)
    assert f'found: input.kind = "{kind}"' in lines[0]
    assert said in lines[0]
    assert prepare(job).input_info.kind == kind


def test_a_batch_file_keeps_its_ids_and_says_what_is_not_read(tmp_path: Path) -> None:
    uri = lines_of({**BATCH, "priority": 1})(tmp_path)
    settings = ["teacher.engine=fake", f"input.uri='{uri}'", "output.uri=out", "input.kind=auto"]
    job, lines = load_found_job(None, settings, {})
    assert job.input.id == "custom_id"
    assert lines[0].endswith("; not read: method, url, priority")


@pytest.mark.parametrize("where", ["set", "toml"])
def test_auto_is_a_setting_and_what_is_given_stays(tmp_path: Path, where: str) -> None:
    uri = lines_of({"prompt": "not this", "q": "a", "completion": "b"})(tmp_path)
    toml = tmp_path / "job.toml"
    kind = 'kind = "auto"' if where == "toml" else ""
    toml.write_text(
        f'[teacher]\nengine = "fake"\n[input]\nuri = "{uri}"\n{kind}\nfields = {{ prompt = "q" }}\n'
        f'[labels]\nmode = "generate"\n[output]\nuri = "{tmp_path}/store"\n'
    )
    overrides = ["input.kind=auto"] if where == "set" else []
    job, _ = load_found_job(str(toml), overrides, {})
    assert (job.input.kind, job.labels.mode) == ("prompt_response", "generate")
    assert job.input.fields == {"prompt": "q", "response": "completion"}
    assert load_job(str(toml), ["input.kind=auto"], {}).input.kind == "auto"


def test_the_command_labels_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = array_of(SHAREGPT)(tmp_path)
    settings = ["teacher.engine=fake", "input.kind=auto", f"output.uri={tmp_path}/out"]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    assert main(["run", "--input", str(uri), *flags, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "1 records read: 1 in 1 units" in out
    assert "'<|start|>system\\ns<|end|>" in out
    assert "ShareGPT's form" in err


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda folder: snapshot(folder, "test", "train"), r"holds the splits test, train.*data/test-\*"),
        (lambda folder: (folder / "in.json").write_bytes("[]".encode("utf-16")) and folder, "must be UTF-8"),
        (lines_of({"a": 1}), "begins with the fields 'a'"),
    ],
    ids=["splits", "utf-16", "unknown"],
)
def test_what_cannot_be_found_is_refused_in_words(
    write: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    settings = ["teacher.engine=fake", f"input.uri='{write(tmp_path)}'", "output.uri=out", "input.kind=auto"]
    with pytest.raises(ConfigError, match=reason):
        load_found_job(None, settings, {})


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "prompt;answer\na;b\n", "must be by commas; save it anew so, or as JSONL or Parquet)"),
        ("a.txt", "a prompt\n", 'becomes JSONL with {"prompt": "..."} on each'),
    ],
)
def test_a_file_that_cannot_be_read_is_not_said_to_lack_a_setting(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    """With input.kind set it could be read no better."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as refused:
        find_input({"input": {"uri": str(tmp_path / name)}})
    assert str(refused.value).endswith(says)


def test_a_job_whose_kind_was_not_looked_for_does_not_start(tmp_path: Path) -> None:
    settings = ["teacher.engine=fake", "input.uri=in", f"output.uri='{tmp_path}/s'", "input.kind=auto"]
    with pytest.raises(ConfigError, match="is found before a job runs"):
        prepare(load_job(None, settings, {}))
