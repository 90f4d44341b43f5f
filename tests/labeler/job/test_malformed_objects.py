"""Every object that a job keeps in its store, in every way in which it can be wrong, under every command that reads it.

What is told is one line that names the object and what to do; never a defect, never a wrong answer.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from labeler.driver import run as labeling
from labeler.planning.plan import Plan
from labeler.records import Lease
from labeler.worker.actor import Worker
from logitstore.common.penumbra import main
from logitstore.job_objects import BILLS_PREFIX, RUNS_PREFIX, Bill, RunRecord
from tests.labeler.jobs import label_and_commit, overrides_for, write_records

HEAD, INPUT, SEGMENT = "plan/head.json", "plan/input.json", "plan/segments/000000.json"
RUN = f"{RUNS_PREFIX}20260101000000-aaaa.json"
BILL = f"{BILLS_PREFIX}worker-0.0-aaaa.json"
REMEDIES = ("delete", "remove", "replaces it", "--set", "restore", "choose another", "correct", "should be")
NEWER = {"of_a_newer_version": [1, {"a": 2}]}
READERS = {
    HEAD: ("run", "relabel"),
    INPUT: ("run", "relabel", "status"),
    SEGMENT: ("run", "relabel", "dry", "against", "purge"),
    "driver.json": ("run", "status"),
    "status.json": ("status", "cost", "delete"),
    "job.json": ("again",),
    "rejects.jsonl": ("verify", "against"),
    RUN: ("cost",),
    BILL: ("cost",),
    "plan/rejects-*.jsonl": ("run",),
}
"""By object: the commands that cannot do their work without it."""
DECODERS = {SEGMENT: ("run", "relabel", "dry")}
"""Where fewer commands need every field."""
LINES = ("rejects.jsonl", "plan/rejects-*.jsonl")


@dataclass
class Job:
    """A finished job; `good` is a copy of its store."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def good(self) -> Path:
        return self.folder / "good"

    def settings(self) -> list[str]:
        settings = overrides_for(self.folder, "output.unit_size=4", "output.retry_sec=0")
        return [part for setting in settings for part in ("--set", setting)]

    def command(self, name: str) -> list[str]:
        run, store = ["label", "run", *self.settings()], str(self.store)
        return {
            "run": [*run, "--quiet"],
            "relabel": [*run, "--quiet", "--relabel-changed"],
            "dry": [*run, "--dry-run", "--quiet"],
            "again": ["label", "run", str(self.store / "job.json"), "--dry-run", "--quiet"],
            "status": ["label", "status", store],
            "cost": ["cluster", "cost", store],
            "verify": ["store", "verify", store],
            "against": ["store", "verify", store, "--against", str(self.folder / "in.jsonl")],
            "delete": ["store", "delete", store, "--ids", str(self.folder / "ids"), "--reason", "a test"],
            "purge": ["store", "compact", store, "--purge"],
        }[name]

    def renewed(self) -> None:
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.good, self.store)


def _label_here(self: labeling._Run, totals: object, setup: labeling.StoreSetup) -> tuple[str, int, str]:
    """In the place of Ray and its actors, which take seconds."""
    worker = Worker(self._job, "w", self._prepared.tokenizer.ends)
    setup.take_description(worker.start(None))
    for unit in Plan(self._prepared.objects).units():
        label_and_commit(worker, Lease(unit.unit_index, unit, "w"))
    return "finished", 0, ""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    found = Job(tmp_path_factory.mktemp("job"))
    write_records(found.folder / "in.jsonl", 6)
    with (found.folder / "in.jsonl").open("a") as file:
        file.write('{"uid": "bad", "prompt": 3}\n')
    (found.folder / "ids").write_text("0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labeling._Run, "_label", _label_here)
        assert main(found.command("run")) == 0
    (found.store / RUNS_PREFIX).mkdir(parents=True)
    run = RunRecord("ada", "finished", "2026-01-01T00:00:00+00:00", "", "core", 1.0, 1, 0.0, "")
    (found.store / RUN).write_text(json.dumps(asdict(run)))
    (found.store / BILLS_PREFIX).mkdir(parents=True)
    bill = Bill("worker-0.0", 5, 1, 1, 0, 0, 2.5, 10.5, "USD")
    (found.store / BILL).write_text(json.dumps(asdict(bill)))
    shutil.copytree(found.store, found.good)
    return found


def no_json(content: bytes) -> Iterator[tuple[str, bytes]]:
    yield "no JSON", b"hello, world\n"
    yield "a list", b"[1, 2]\n"
    yield "null", b"null\n"
    yield "a number", b"3\n"
    yield "a string", b'"text"\n'
    yield "an empty object", b"{}\n"
    yield "cut off", content.rstrip()[: len(content) * 2 // 3]
    yield "deep", b"[" * 100_000
    yield "no text", bytes(range(128, 256))


def wrong_fields(content: bytes, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    value = json.loads(content.splitlines()[0] if b"\n{" in content else content)
    for name in names:
        yield f"without {name}", json.dumps({key: value[key] for key in value if key != name}).encode()
        for wrong in ([1], "text", {"a": 1}, None, -1, 2**70, 1.5):
            if type(wrong) is not type(value[name]) or wrong == 2**70:
                yield f"{name} = {wrong!r}", json.dumps({**value, name: wrong}).encode()


FIELDS = {
    HEAD: ("input.uri",),
    INPUT: ("fingerprint", "totals", "rejects"),
    SEGMENT: ("data", "first_unit_index", "num_labels", "ids", "units"),
    "driver.json": ("owner", "machine", "process_id"),
    "status.json": ("state",),
    "job.json": ("input",),
    "rejects.jsonl": ("file", "line", "reason", "kind"),
    RUN: ("owner", "device_sec", "num_tokens"),
    BILL: ("worker", "input_tokens", "num_lost", "output_price"),
    "plan/rejects-*.jsonl": ("file", "line", "reason", "kind"),
}
"""By object: fields that every version has written, so that one which is missing or of another type is refused."""


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_what_is_malformed_is_told_in_one_line(
    job: Job, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENUMBRA_TRACEBACK", "1")
    (good,) = job.good.glob(name)
    content = good.read_bytes()
    cases = [*no_json(content), *wrong_fields(content, FIELDS[name])]
    if name not in LINES:
        cases.append(("empty", b""))
    bad = []
    for number, (what, data) in enumerate(cases):
        # All commands at what is no JSON at all, one at each wrong field: the object is decoded in one place.
        readers = READERS[name] if number < 4 or name not in DECODERS else DECODERS[name]
        for command in readers if number < 4 else readers[number % len(readers) :][:1]:
            told = _told_of(job, good.relative_to(job.good), data, command, capsys)
            if problem := _problem(told, good.name):
                bad.append((command, what, problem))
    assert not bad, "\n".join(map(str, bad))


def _told_of(
    job: Job, name: Path, data: bytes, command: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    job.renewed()
    if name.name == "driver.json":  # nobody asks who drives a job that is over
        status = json.loads((job.store / "status.json").read_text())
        (job.store / "status.json").write_text(json.dumps({**status, "state": "running"}))
    if command == "purge":
        assert main(job.command("delete")) == 0
    if command == "run" and name.name.startswith("rejects-"):
        (job.store / "status.json").unlink()
    capsys.readouterr()
    (job.store / name).write_bytes(data)
    status = main(job.command(command))
    said = capsys.readouterr()
    return status, said.out, said.err


def _problem(told: tuple[int, str, str], name: str) -> str:
    """What is wrong with what a command said; "" if nothing is."""
    status, out, err = told
    lines = [line for line in (out + err).splitlines() if name in line]
    if status not in (1, 2, 3):
        return f"exit status {status}"
    if "defect" in err or "Traceback" in err:
        return err
    if len(err.splitlines()) > 1 or not lines:
        return f"{len(err.splitlines())} lines: {err or out}"
    if not any(word in line.lower() for line in lines for word in REMEDIES):
        return f"no remedy: {lines}"
    return ""


@pytest.mark.parametrize("name", [INPUT, SEGMENT, "driver.json", "status.json", RUN, BILL])
def test_fields_of_a_newer_writer_are_left_out(
    job: Job, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = json.loads((job.good / name).read_bytes())
    for command in READERS[name]:
        told = _told_of(job, Path(name), json.dumps(value | NEWER).encode(), command, capsys)
        assert told[0] == 0, (command, told)


@pytest.mark.parametrize("command", ["run", "relabel"])
def test_a_setting_of_a_newer_writer_is_refused_in_words(
    job: Job, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The labels may depend on it."""
    value = json.loads((job.good / HEAD).read_bytes())
    setting = {"labels.of_a_newer_version": 3}
    status, _, err = _told_of(job, Path(HEAD), json.dumps(value | setting).encode(), command, capsys)
    assert status == 2
    assert "labels.of_a_newer_version: 3 in the store, which needs the newer version" in err
    value = json.loads((job.good / "job.json").read_bytes())
    value["labels"]["of_a_newer_version"] = 3
    status, _, err = _told_of(job, Path("job.json"), json.dumps(value).encode(), "again", capsys)
    assert (status, err.count("\n")) == (2, 1)
    assert "of_a_newer_version" in err


@pytest.mark.parametrize("made_from", [[1], "text", None, -1, {"chat template": 3}])
def test_what_prompts_were_made_from_is_text_by_name(
    job: Job, made_from: object, capsys: pytest.CaptureFixture[str]
) -> None:
    value = json.loads((job.good / HEAD).read_bytes()) | {"made_from": made_from}
    told = _told_of(job, Path(HEAD), json.dumps(value).encode(), "run", capsys)
    assert _problem(told, "head.json") == ""


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 10 * 2**30)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        *((name, make) for name in READERS if name != "job.json" for make in (pipe, endless)),
        pytest.param(HEAD, large, marks=pytest.mark.slow),
    ],
)
def test_what_is_no_plain_file_is_told(
    job: Job, name: str, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """But for `job.json`, which is given on the command line, where a pipe may be meant."""
    (good,) = job.good.glob(name)
    for command in READERS[name]:
        _told_of(job, good.relative_to(job.good), good.read_bytes(), "status", capsys)
        if command == "purge":
            assert main(job.command("delete")) == 0
            capsys.readouterr()
        path = job.store / good.relative_to(job.good)
        path.unlink()
        make(path)
        status = main(job.command(command))
        said = capsys.readouterr()
        assert status in (1, 2, 3), (command, said)
        assert "defect" not in said.err, command
        assert good.name in said.out + said.err, (command, said)
