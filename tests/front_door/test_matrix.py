"""Every subcommand, driven as a person drives it wrongly: one line, the right status, never a traceback."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import benchmarks.__main__
import cluster.__main__
import labeler.__main__
import logitstore.__main__
import trainer.__main__
from cluster.arguments import build_parser as cluster_parser
from logitstore.common.command import Program, run_program
from logitstore.common.exit_status import EXIT_STATUSES, ExitStatus
from logitstore.common.penumbra import PROGRAMS, main
from logitstore.errors import ObjectStoreError, StoreNotFoundError
from tests.trainer.stores import make_store

NOWHERE = "nowhere/at/all"
NO_CLUSTER = ("--address", "http://127.0.0.1:9")
MISSING: dict[tuple[str, str], tuple[str, ...]] = {
    ("label", "run"): (f"{NOWHERE}.toml",),
    ("label", "status"): (NOWHERE,),
    ("label", "nodes"): (f"{NOWHERE}.toml",),
    ("label", "expand"): (f"{NOWHERE}.toml", "--out", "out.jsonl"),
    ("label", "judge"): (f"{NOWHERE}.toml", "--out", "out.jsonl"),
    ("label", "recipe"): (f"{NOWHERE}.toml",),
    ("label", "check"): (NOWHERE, "--out", "out", "--program", "true"),
    ("label", "dedupe"): (NOWHERE, "--out", "out.jsonl"),
    ("label", "decontaminate"): (NOWHERE, "--against", NOWHERE, "--out", "out.jsonl"),
    ("store", "inspect"): (NOWHERE,),
    ("store", "verify"): (NOWHERE,),
    ("store", "head"): (NOWHERE,),
    ("store", "cat"): (NOWHERE,),
    ("store", "export"): (NOWHERE, "--to", "npz", "out.npz"),
    ("store", "import"): ("--from", "npz", NOWHERE, "out"),
    ("store", "merge"): (NOWHERE, f"{NOWHERE}-2", "--out", "out"),
    ("store", "mix"): (NOWHERE, f"{NOWHERE}-2", "--out", "out"),
    ("store", "retokenize"): (NOWHERE, "out", "--tokenizer", NOWHERE),
    ("store", "codebook"): (NOWHERE, "--out", "out.bin"),
    ("store", "compact"): (NOWHERE,),
    ("store", "rebuild-index"): (NOWHERE,),
    ("store", "uncommit"): (NOWHERE, "--bad"),
    ("store", "copy"): (NOWHERE, "out"),
    ("store", "publish"): (NOWHERE, "out"),
    ("store", "delete"): (NOWHERE, "--ids", str(Path(__file__).parents[2] / "LICENSE"), "--reason", "a test"),
    ("store", "view"): (NOWHERE, "--out", "out.html"),
    ("train", "run"): (f"{NOWHERE}.toml",),
    ("train", "eval"): (f"{NOWHERE}.toml",),
    ("train", "sweep"): (f"{NOWHERE}.toml",),
    ("train", "parity"): (
        "--student",
        NOWHERE,
        "--teacher",
        NOWHERE,
        "--tasks",
        "gsm8k",
        "--out",
        "out",
    ),
    ("cluster", "check"): (f"{NOWHERE}.toml",),
    ("cluster", "submit"): (f"{NOWHERE}.toml",),
    ("cluster", "status"): NO_CLUSTER,
    ("cluster", "logs"): NO_CLUSTER,
    ("cluster", "stop"): NO_CLUSTER,
    ("cluster", "resume"): NO_CLUSTER,
    ("cluster", "list"): NO_CLUSTER,
    ("cluster", "rounds"): (f"{NOWHERE}.toml",),
    ("cluster", "cost"): (f"{NOWHERE}.toml",),
    ("cluster", "down"): ("--state", NOWHERE),
    ("cluster", "dashboard"): ("http://127.0.0.1:9",),
    ("cluster", "render"): (f"{NOWHERE}.toml", "--kind", "grafana"),
    ("bench", "plan"): ("--tokens", "1e9", "--rate", "1000", "--results", NOWHERE),
    ("bench", "check"): ("--reference", NOWHERE),
    ("bench", "answers"): (NOWHERE, "--students", "s", "--followed", NOWHERE, "--out", "out.json"),
}
"""Arguments that name something which is not there."""
WITHOUT_A_PLACE = {
    ("label", "settings"), ("train", "settings"), ("cluster", "settings"), ("cluster", "up"),
    *(("bench", part) for part in benchmarks.__main__.MODULES if part not in ("plan", "check", "answers")),
}  # fmt: skip
"""Commands that read nothing which could be missing, and measurements, whose place of output is tried below."""


def parsers() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """(program, subcommand, its parser), from the parsers themselves: no new command can be forgotten."""
    programs: dict[str, argparse.ArgumentParser] = {
        "label": labeler.__main__.build_parser(),
        "store": logitstore.__main__.build_parser(),
        "train": trainer.__main__.build_parser(),
        "cluster": cluster_parser(cluster.__main__.PROGRAM),
        "bench": benchmarks.__main__.build_parser([]),
    }
    assert programs.keys() == PROGRAMS.keys()
    for program, parser in programs.items():
        (action,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
        aliases = {"train": ("train", "evaluate")}.get(program, ())
        yield from ((program, name, one) for name, one in action.choices.items() if name not in aliases)


def test_every_subcommand_is_in_the_matrix() -> None:
    assert {(program, name) for program, name, _ in parsers()} == MISSING.keys() | WITHOUT_A_PLACE


def test_no_option_takes_a_number_that_cannot_be() -> None:
    """NaN compares with nothing, and zero or less of a thing asks for none; only seeds may be any number."""
    anything = {
        (program, name, option)
        for program, name, parser in parsers()
        for action in parser._actions
        for option in action.option_strings or [action.dest]
        if action.type is float or (action.type is int and option != "--seed")
    }
    assert anything == set()


def test_an_empty_text_or_path_is_refused_and_never_taken_for_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`penumbra cluster stop "$ID"` with an unset variable stopped whatever job was at work."""
    tried = 0
    for program, name, parser in parsers():
        for action in parser._actions:
            if action.nargs == 0 or action.type not in (None, Path):
                continue
            given = [f"{action.option_strings[0]}="] if action.option_strings else ["", ""]
            with pytest.raises(SystemExit) as ended:
                parser.parse_args(given)
            err = capsys.readouterr().err
            assert ended.value.code == ExitStatus.WRONG, (program, name, given)
            assert "it is empty, as an unset variable" in err or "invalid choice: ''" in err, err
            tried += 1
    assert tried > 200


def told(capsys: pytest.CaptureFixture[str], program: str) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith(f"penumbra {program}: error: ")]
    assert len(lines) == 1, err
    assert "defect" not in lines[0], err
    return lines[0]


@pytest.mark.parametrize(("command", "arguments"), MISSING.items(), ids=" ".join)
def test_what_is_missing_is_one_line(
    command: tuple[str, str],
    arguments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status = main([*command, *arguments])
    line = told(capsys, command[0])
    assert status == (ExitStatus.UNREACHABLE if ":9" in " ".join(arguments) else ExitStatus.WRONG), line
    assert NOWHERE in line or ":9" in line
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "run", "--student", NOWHERE, "--labels", "STORE", "--out", "out"),
        ("train", "eval", "CONFIG", "--model", NOWHERE),
        ("train", "eval", "CONFIG", "--set", f"output.folder={NOWHERE}"),
        ("bench", "student", "--teacher", NOWHERE, "--out", "out"),
        ("bench", "fidelity", "--quick", "--teacher", NOWHERE, "--out", "out"),
        ("bench", "agreement", "STORE", "--teacher", NOWHERE, "--out", "out"),
    ],
    ids=lambda arguments: " ".join(arguments[:4]),
)
def test_a_model_that_is_nowhere_is_named_as_a_path(
    arguments: tuple[str, ...],
    store: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not in the words of the hub, whose names of models a path breaks."""
    words = {"STORE": store, "CONFIG": str(Path("configs/demo-train.toml").absolute())}
    monkeypatch.chdir(tmp_path)
    assert main([words.get(word, word) for word in arguments]) == ExitStatus.WRONG
    line = told(capsys, arguments[0])
    assert f"= '{NOWHERE}' is no folder here; correct the path" in line
    assert "repo id" not in line.lower()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("front") / "store"
    make_store(folder)
    return str(folder)


def test_a_log_that_cannot_be_written_leaves_no_lease(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "--set", "teacher.engine=fake", "--set", "input.uri=benchmarks/demo_data/pairs.jsonl",
        "--set", "input.kind=prompt_response", "--set", "labels.mode=score",
        "--set", f"output.uri={tmp_path}/store",
    )  # fmt: skip
    assert (
        main(["label", "run", *arguments, "--log-file", str(tmp_path / "none" / "x.log")]) == ExitStatus.WRONG
    )
    assert "x.log" in told(capsys, "label")
    assert json.loads((tmp_path / "store" / "driver.json").read_text())["released"]


PRINTING = (
    ("label", "settings"),
    ("train", "settings"),
    ("cluster", "settings"),
    ("store", "inspect", "STORE"),
    ("store", "cat", "STORE"),
    ("cluster", "render", "configs/cluster.toml", "--kind", "grafana"),
    ("bench", "plan", "--tokens", "1e9", "--top-k", "64", "--rate", "1000"),
    ("store", "--help"),
    ("--help",),
)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_a_closed_pipe_shows_nothing(arguments: tuple[str, ...], store: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-P", "-m", "logitstore.common.penumbra"]
        command += [store if word == "STORE" else word for word in arguments]
        done = subprocess.run(
            command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=120
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("redirections", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_not_a_file_that_is_opened_later(
    redirections: str, store: str, tmp_path: Path
) -> None:
    """As some supervisors start programs: numbers 0 to 2 are free, and a library prints into whatever has them."""
    program = f"""
import os, sys
from logitstore.common.command import Program, run_program
def work():
    print("said")
    with open({str(tmp_path / "shard")!r}, "w") as file:
        os.system("echo printed; echo printed >&2")
    return 0
sys.exit(run_program(Program("store", "", ""), work))
"""
    assert run_in_shell(program, redirections) == 0
    assert (tmp_path / "shard").read_text() == ""
    inspect = f"from logitstore.common.penumbra import main; main(['store', 'inspect', {store!r}]) and 1 / 0"
    assert run_in_shell(inspect, redirections) == 0


def run_in_shell(program: str, redirections: str) -> int:
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {redirections}"
    return subprocess.run(line, shell=True, check=False, timeout=120).returncode


WORDS = Program(name="label", description="", extra="label", interrupted="interrupted; it goes on")


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "penumbra label: interrupted; it goes on"),
        (StoreNotFoundError("no store lies there"), 2, "penumbra label: error: no store lies there"),
        (ObjectStoreError("refused"), 3, "penumbra label: error: refused"),
        (ModuleNotFoundError("No module named 'vllm'", name="vllm"), 2, "pip install '.[label]'"),
        (PermissionError(13, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (OSError(28, "No space left on device"), 1, "No space left on device; make room there"),
        (OSError(28, "No space left on device", "/x"), 1, "/x: No space left on device; make room there"),
        (ValueError("two\nlines"), 2, "error: two lines"),
        (RuntimeError("broken"), 1, "error: broken"),
    ],
)
def test_errors_have_one_form(
    error: BaseException, status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    assert run_program(WORDS, fail) == status
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_defect_is_one_line_and_its_traceback_is_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail() -> int:
        raise TypeError("no number")

    assert run_program(WORDS, fail) == 1
    err = capsys.readouterr().err
    assert "defect of penumbra (TypeError: no number)" in err
    (kept,) = tmp_path.iterdir()
    assert str(kept) in err
    assert "Traceback" in kept.read_text()
    monkeypatch.setenv("PENUMBRA_TRACEBACK", "1")
    with pytest.raises(TypeError):
        run_program(WORDS, fail)


@pytest.mark.parametrize("program", PROGRAMS)
def test_version_and_statuses_are_the_same_everywhere(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit) as ended:
            main([program, flag])
        assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("penumbra 0.")
    assert f"({program})" in out.splitlines()[0]
    assert " ".join(EXIT_STATUSES.split()) in " ".join(out.split())
    for status in ExitStatus:
        assert f"{int(status)} " in EXIT_STATUSES


@pytest.mark.slow
def test_a_users_own_modules_do_not_stand_before_ours(tmp_path: Path) -> None:
    """`trainer.py` is the most usual file name of such a project."""
    for name in ("trainer.py", "labeler.py", "logitstore.py", "benchmarks.py", "cluster/__main__.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('the wrong module')\n")
    for program in PROGRAMS:
        command = [sys.executable, "-P", "-m", "logitstore.common.penumbra", program, "--help"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"usage: penumbra {program}")
