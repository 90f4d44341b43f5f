"""Pipes, links, devices and oversized objects in a store: every command answers in words, soon and in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from logitstore.__main__ import main
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence, LabelRows
from logitstore.store import LogitStore
from tests.conftest import Place
from tests.logitstore.index.test_absence import make_store
from tests.logitstore.random_labels import make_manifest

COMMANDS = (["inspect"], ["verify"], ["head"], ["cat"], ["compact"], ["rebuild-index"], ["uncommit", "--bad"])
WHERE = {
    "manifest": "manifest.json",
    "index.json": "index.json",
    "a record": "commits/unit-0005.json",
    "a segment": "index/*[0-9a-f].arrow",
    "its rejects": "index/*-rejects.arrow",
    "a shard": "shards/00000000-*",
    "rejects": "rejects.jsonl",
    "codebooks": "codebooks/current.json",
}


@pytest.mark.parametrize("kind", ["pipe", "link", "endless"])
@pytest.mark.parametrize("where", WHERE)
def test_every_command_answers(
    local_place: Place, tmp_path: Path, kind: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(local_place.uri, num_units=6, num_compacted=4)
    found = sorted(Path(local_place.uri).glob(WHERE[where]))
    path = min(found, key=lambda path: len(path.name)) if found else Path(local_place.uri, WHERE[where])
    content = path.read_bytes() if found else b"{}"
    for command in COMMANDS:
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        else:
            (tmp_path / "outside").write_bytes(content)
            path.symlink_to(tmp_path / "outside" if kind == "link" else "/dev/zero")
        begin = time.monotonic()
        status = main([command[0], local_place.uri, *command[1:]])
        said = capsys.readouterr()
        assert time.monotonic() - begin < 10, (command, where)
        assert status in (0, 1, 2, 3)
        if status:
            assert "Traceback" not in said.err
            words = ("regular files only", "bytes, its entry says", "units have no sound shard")
            assert any(word in said.out + said.err for word in words), (command, where, said)
        elif command[0] == "verify":
            pytest.fail(f"verify calls a {kind} in the place of {where} sound: {said.out}")


def bomb(folder: Path) -> None:
    """A legal shard of 10 kB whose one sequence has 300,000 equal rows of 64 entries."""
    num_rows, top_k, vocab_size = 300_000, 64, 1000
    import dataclasses

    labels = LabelSpec(vocab_size, top_k, (1.0,), "gap_f16", "score", "all")
    manifest = dataclasses.replace(make_manifest(), labels=labels)
    rows = LabelRows(
        logits_NK=np.zeros((num_rows, top_k), np.float32),
        token_ids_NK=np.tile(np.arange(top_k, dtype=np.int32), (num_rows, 1)),
        count_N=np.full(num_rows, top_k, np.int32),
        logsumexp_NM=np.full((num_rows, 1), np.log(vocab_size), np.float32),
        log_tail_mass_NM=np.full((num_rows, 1), np.log(1 - top_k / vocab_size), np.float32),
        label_logprob_N=np.full(num_rows, -np.log(vocab_size), np.float32),
        label_rank_N=np.ones(num_rows, np.int32),
    )
    tokens_T = np.zeros(num_rows + 1, np.int32)
    sequence = LabeledSequence("r", 0, tokens_T, 0, 1, rows, np.ones(num_rows, bool), "scored")
    LogitStore.create(folder, manifest).commit_unit("unit-0000", 0, [sequence], seconds=0, worker="w")


def sparse(folder: Path) -> None:
    """A shard of 10 GB of nothing, with a record that agrees."""
    store = make_store(folder, 1, 9)
    entry = store.shards()[0]
    os.truncate(Path(folder, entry.name), 10 * 2**30)
    name = "commits/unit-0000.json"
    record = json.loads(store.objects.get(name))
    record["shard"]["num_bytes"] = 10 * 2**30
    store.objects.put(name, json.dumps(record).encode())


def endless_lines(folder: Path) -> None:
    """What a job's rejects may be, but 4 GB of nothing."""
    make_store(folder, 1, 9)
    path = Path(folder, "rejects.jsonl")
    path.write_bytes(b"")
    os.truncate(path, 4 * 2**30)


READERS = {
    "inspect": ("inspect", "STORE"),
    "verify": ("verify", "STORE"),
    "cat": ("cat", "STORE"),
    "export": ("export", "STORE", "--to", "jsonl", "OUT"),
    "view": ("view", "STORE", "--out", "OUT"),
    "copy": ("copy", "STORE", "OUT"),
    "publish": ("publish", "STORE", "OUT"),
}
SOUND = {("bomb", "copy"), ("bomb", "publish"), ("bomb", "view")}
"""A legal shard is copied as it is, and a page says that its rows are too many."""
READS_REJECTS = ("verify", "copy")


def command_line(folder: Path, command: str) -> list[str]:
    return [
        word.replace("STORE", f"{folder}/store").replace("OUT", f"{folder}/out") for word in READERS[command]
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("make", [bomb, sparse, endless_lines])
@pytest.mark.parametrize("command", READERS)
def test_little_memory_and_time(tmp_path: Path, make: Callable[[Path], None], command: str) -> None:
    make(tmp_path / "store")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _MEASURED,
            *command_line(tmp_path, command),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    status, peak_bytes, seconds = json.loads(done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    assert peak_bytes < 10**9
    assert seconds < 10
    if (make.__name__, command) not in SOUND and (make is not endless_lines or command in READS_REJECTS):
        assert status in (1, 3)


_MEASURED = """
import json, pathlib, re, sys, time
began = time.monotonic()
from logitstore.__main__ import main
status = main(sys.argv[1:])
# Without the time for which other processes had the cores.
waited = int(pathlib.Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
# Not ru_maxrss, which a child inherits from its parent.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())
print(json.dumps([status, int(peak[1]) * 1024, time.monotonic() - began - waited]), file=sys.stderr)
"""


def test_a_large_block_is_read_when_it_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store", 1, 9)
    assert main(["cat", store.uri, "--max-block-entries", "263"]) == 3
    assert "allow it with --max-block-entries 264" in capsys.readouterr().err
    assert main(["cat", store.uri, "--max-block-entries", "264"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
