"""The file in which `cluster up` notes what runs, in every state that a user's disk may leave it in."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cluster.__main__ import main
from cluster.errors import JobRefusedError
from cluster.jobs import local
from cluster.jobs.local_state import STATE_FILE, LocalCluster, LocalNode, NoLocalClusterError, read_state
from labeler.job.processes import process_start

NOTED = LocalCluster("http://127.0.0.1:1", "127.0.0.2:2", "/tmp/nowhere", (LocalNode("127.0.0.2", 77, ""),))


def changed(**values: Any) -> str:
    return json.dumps(asdict(NOTED) | values)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "{}", "[" * 100_000, '{"nodes": []}', "\udcff"),
        *(changed(address=3), changed(folder=""), changed(nodes={"a": 1}), changed(nodes=[{"a": 1}])),
        *(changed(of_tomorrow=1), changed(nodes=[{"ip": "x", "pid": 0, "started": ""}])),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """Cut off by a full disk or of another version: `list`, `up` and `down` were defects, or named no file;
    `down` removed whatever folder the file names."""
    folder = tmp_path / "penumbra"
    folder.mkdir()
    file = folder / STATE_FILE
    file.write_bytes(text.encode(errors="surrogateescape"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    for command in (
        ["list"],
        ["up", "--local", "1", "--state", str(folder)],
        ["down", "--state", str(folder)],
    ):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"{file} is cut off, or of another version" in said
        assert "and remove the file" in said
    assert file.exists()


def test_what_is_noted_is_read_and_where_nothing_is_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoLocalClusterError, match="penumbra cluster up --local 2"):
        read_state(tmp_path)
    (tmp_path / STATE_FILE).write_text(changed())
    assert read_state(tmp_path) == NOTED
    assert issubclass(NoLocalClusterError, JobRefusedError)


def test_a_node_that_cannot_be_noted_is_stopped_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is what `down` goes by: what is not in it would run for ever."""
    node = NOTED.nodes[0]
    stopped: list[LocalNode] = []

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(local, "ensure_token", lambda: None)
    monkeypatch.setattr(local, "_start", lambda *_: node)
    monkeypatch.setattr(local, "_stop_all", stopped.extend)
    monkeypatch.setattr(local, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        local.up(1, tmp_path, cpus_per_node=1)
    assert stopped == [node]
    assert not (tmp_path / STATE_FILE).exists()


def test_who_lives_in_another_time_zone_stops_the_same_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`down` compared local times: it stopped nothing, removed the file and reported success."""
    sleeps = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2)]
    gone, living = sleeps
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    starts = [process_start(one.pid) or "" for one in sleeps]
    gone.kill()
    gone.wait()
    nodes = [
        {"ip": "127.0.0.2", "pid": one.pid, "started": at} for one, at in zip(sleeps, starts, strict=True)
    ]
    (tmp_path / STATE_FILE).write_text(changed(nodes=nodes, folder=str(tmp_path / "logs")))
    monkeypatch.setenv("TZ", "UTC")
    assert main(["down", "--state", str(tmp_path)]) == 0
    assert "stopped 1 of 2 nodes; the others had ended before" in capsys.readouterr().out
    assert process_start(living.pid) is None
    assert not (tmp_path / STATE_FILE).exists()


def test_without_proc_a_start_is_said_alike_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: False)
    found = set[str | None]()
    for zone in ("UTC", "Asia/Tokyo"):
        monkeypatch.setenv("TZ", zone)
        found.add(process_start(os.getpid()))
    assert len(found) == 1
    assert found != {None}
    assert process_start(2**22 + 1) is None


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (
            'Traceback (most recent call last):\n  File "x.py", line 1\n    ^^^\nException: timed out\n\n',
            "timed out",
        ),
        ("", "it said nothing"),
    ],
)
def test_a_node_that_ended_at_its_start_is_told_by_its_last_line(tmp_path: Path, log: str, says: str) -> None:
    """It was the last 800 characters of the log, most of them Ray's traceback."""
    file = tmp_path / "node-127.0.0.2.log"
    file.write_text(log)
    with pytest.raises(local.NodeEndedError) as ended:
        local._check_alive(LocalNode("127.0.0.2", os.getpid(), "another start"), tmp_path)
    assert says in str(ended.value)
    assert str(file) in str(ended.value)
    assert "^" not in str(ended.value)
