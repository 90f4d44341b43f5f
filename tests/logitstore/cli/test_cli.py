"""The commands as a shell would call them: output, JSON, exit statuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import logitstore
from logitstore.__main__ import COMMANDS, main
from logitstore.cli.parser import build_parser
from logitstore.inputs.identity import record_id
from logitstore.store import LogitStore
from tests.conftest import Place
from tests.logitstore.random_labels import commit_units, make_manifest, make_sequence


def test_inspect(store: LogitStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", store.uri, "--json", "--mass", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_units"], found["num_sequences"], found["num_rows"]) == (2, 6, 66)
    assert found["digest"] == store.digest
    assert found["entries_histogram"] == {"8": 66}
    assert sum(found["column_bytes"].values()) == found["shard_bytes"]
    masses = [item["mass"]["1"] for item in found["mass_by_k"]]
    assert [item["top_k"] for item in found["mass_by_k"]] == [1, 2, 4, 8]
    assert masses == sorted(masses)
    assert masses[-1] == pytest.approx(1 - found["tail_mass"]["1"]["mean"], abs=1e-3)
    assert found["recommended_k"] == next(
        (item["top_k"] for item in found["mass_by_k"] if item["mass"]["1"] >= 0.5), None
    )
    assert main(["inspect", store.uri]) == 0
    assert "Mass kept by K" in capsys.readouterr().out
    assert main(["inspect", store.uri, "--quiet"]) == 0
    assert "Mass kept by K" in capsys.readouterr().out


def test_inspect_of_an_empty_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LogitStore.create(tmp_path / "store", make_manifest())
    assert main(["inspect", str(tmp_path / "store")]) == 0
    assert main(["inspect", str(tmp_path / "store"), "--json"]) == 0
    assert '"label_nll": null' in capsys.readouterr().out


def test_verify_and_repair(store: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    garbage = tmp_path / "store/shards/00000000-unit-0000-0000000000000000.arrow"
    garbage.write_bytes(b"x")
    assert main(["verify", store.uri]) == 0
    assert "unit-0000-0000000000000000.arrow: the shard of a writer that lost" in capsys.readouterr().out
    assert main(["verify", store.uri, "--repair"]) == 0
    assert "removed 1 garbage object" in capsys.readouterr().out
    assert not garbage.exists()
    store.objects.local_path(store.shards()[0].name).write_bytes(b"broken")
    assert main(["verify", store.uri]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: shards/00000000-unit-0000-")
    assert main(["verify", store.uri, "--json", "--quick"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["num_errors"], found["problems"][0]["kind"]) == (False, 1, "wrong_size")
    assert (found["num_units"], found["num_sequences"], found["num_rows"]) == (2, None, None)
    assert main(["verify", store.uri, "--quick"]) == 1
    assert capsys.readouterr().out.endswith("1 error: 2 units, by their sizes; no shard was read\n")


def test_verify_does_not_compare_an_input_with_shards_that_it_does_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every record was said to be not labeled."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    (tmp_path / "input.jsonl").write_text('{"text": "a"}\n')
    assert main(["verify", store.uri, "--quick", "--against", str(tmp_path / "input.jsonl")]) == 2
    assert "which --quick does not read; leave one of the two out" in capsys.readouterr().err


def test_verify_against_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "input.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    store = LogitStore.create(tmp_path / "store", make_manifest())
    name = record_id({"text": "a"}, store.manifest.input)
    store.commit_unit("u", 0, [make_sequence(name)], seconds=0, worker="w")
    assert main(["verify", store.uri, "--against", str(path), "--limit", "1"]) == 0
    assert "no errors: 1 unit, 1 sequence, 11 label rows, 1 input record" in capsys.readouterr().out
    assert main(["verify", store.uri, "--against", str(path)]) == 1
    assert "error: input.jsonl:2: record" in capsys.readouterr().out
    assert main(["verify", store.uri, "--against", str(tmp_path / "none.jsonl")]) == 2


def test_verify_of_a_store_that_cannot_be_opened(
    store: LogitStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.objects.put("manifest.json", b"{")
    assert main(["verify", store.uri]) == 1
    assert "manifest.json is not valid JSON" in capsys.readouterr().out
    assert main(["inspect", store.uri]) == 3
    assert "manifest.json is not valid JSON" in capsys.readouterr().err


def test_head_and_cat(store: LogitStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["head", store.uri, "--rows", "3", "--json", "--temperature", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["record_id"], row["position"]) for row in rows] == [
        ("record-0", 1),
        ("record-0", 2),
        ("record-0", 3),
    ]
    assert all(len(row["alternatives"]) == 4 for row in rows)
    assert main(["head", store.uri, "--rows", "3"]) == 0
    assert "the teacher's choices" in capsys.readouterr().out
    assert main(["head", store.uri, "--temperature", "0.5"]) == 2
    capsys.readouterr()
    assert main(["cat", store.uri, store.uri, "--where", "record_id = record-4", "--top-k", "2"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [item["record_id"] for item in found] == ["record-4", "record-4"]
    assert {len(ids) for ids in found[0]["top_ids"]} == {2}


def test_convert_and_join(store: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("npz", "parquet", "jsonl", "arrow"):
        path, back = str(tmp_path / f"x.{form}"), str(tmp_path / f"from-{form}")
        assert main(["export", store.uri, "--to", form, path]) == 0
        assert main(["import", "--from", form, path, back, "--quiet"]) == 0
        assert main(["verify", back, "--quiet"]) == 0
    assert main(["merge", store.uri, "--out", str(tmp_path / "m"), "--where", "unit_index = 1"]) == 0
    assert [item.record_id for item in LogitStore.open(tmp_path / "m").iter_sequences()] == [
        "record-3",
        "record-4",
        "record-5",
    ]
    assert main(["codebook", store.uri, "--out", str(tmp_path / "books")]) == 0
    again = ["import", "--from", "npz", str(tmp_path / "x.npz"), str(tmp_path / "c"), "--codebook"]
    assert main([*again, str(tmp_path / "books")]) == 0
    assert main(["codebook", store.uri]) == 0
    assert main(["compact", store.uri, "--json"]) == 0
    assert '"num_records": 2' in capsys.readouterr().out
    assert main(["merge", store.uri, store.uri, "--out", str(tmp_path / "twice")]) == 2
    assert main(["export", store.uri, "--to", "npz", "/nonexistent/x.npz"]) == 2
    assert main(["import", "--from", "npz", str(tmp_path / "none.npz"), str(tmp_path / "z")]) == 2


@pytest.mark.s3
def test_commands_on_s3(s3_place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LogitStore.create(s3_place.uri, make_manifest(), storage_options=s3_place.storage_options)
    commit_units(store, [0])
    options = tmp_path / "options.json"
    options.write_text(json.dumps(s3_place.storage_options))
    arguments = [s3_place.uri, "--storage-options", str(options)]
    assert main(["verify", *arguments]) == 0
    assert main(["inspect", *arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert '"num_rows": 33' in out
    assert "testsecretvalue" not in out


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--help"])
        text = capsys.readouterr().out
        assert caught.value.code == 0
        assert "examples:" in text
        assert "exit status:" in text
        examples = re.findall(r"^  penumbra store (.*?)(?:   .*)?$", text, re.MULTILINE)
        assert examples
        for example in examples:
            build_parser().parse_args(shlex.split(example))


def test_usage_errors_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (
        [],
        ["nosuch"],
        ["inspect"],
        ["inspect", "x", "--mass", "2"],
        ["verify", "x", "--repair", "--grace-sec", "nan"],
        ["cat", "x", "--sample", "2"],
        ["export", "x", "--to", "csv", "y"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"penumbra {logitstore.__version__} (store)"
    assert main(["inspect", "/nonexistent/store"]) == 2
    assert "no store lies at /nonexistent/store" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["view"], *(["export", "--to", form] for form in ("npz", "parquet", "jsonl", "messages"))]
)
def test_no_device_and_no_link_is_replaced(
    store: LogitStore, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("/dev/stdout")
    for path, what in ((pipe, "a device or a pipe"), (link, "a link")):
        out = ["--out", str(path)] if command == ["view"] else [str(path)]
        assert main([*command, store.uri, *out]) == 2
        assert f"{path} is {what}" in capsys.readouterr().err
    assert pipe.is_fifo()
    assert link.is_symlink()


def test_a_shard_that_is_gone_is_named_with_the_way_on(
    store: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = store.shards()[1]
    store.objects.delete(entry.name)
    for command in (
        ["head", "--rows", "99"],
        ["inspect"],
        ["cat"],
        ["merge", "--out", str(tmp_path / "all")],
    ):
        assert main([command[0], store.uri, *command[1:]]) == 3
        assert (
            f"{entry.name} of unit {entry.unit_id} is gone; run `penumbra store verify`"
            in capsys.readouterr().err
        )


def test_a_file_that_is_no_tokenizer(
    store: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("")
    assert main(["head", store.uri, "--tokenizer", str(file)]) == 2
    assert f"{file} is no tokenizer that this machine reads" in capsys.readouterr().err


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(store: LogitStore) -> None:
    command = f"{sys.executable} -m logitstore cat {store.uri} {store.uri} {store.uri} | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
