"""Every subcommand with Ctrl-C, a closed pipe, a place that cannot be written.

Each is driven through `main` in this process, since signals, pipes and errors do the same there. What is missing,
and the same for whole processes, is in `test_matrix.py`; missing extras are in `test_extras.py`.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from cluster.rounds.config import RoundsConfig
from labeler.curation.recipe_file import RecipeSettings
from logitstore.common.command import Program, new_parser
from logitstore.common.exit_status import ExitStatus
from logitstore.common.penumbra import main
from logitstore.objects.local import LocalBackend
from tests.front_door.test_matrix import NOWHERE, parsers, told
from tests.front_door.work import JOB, MEASURED, ROOT, WORK, arguments_of
from tests.trainer.stores import label_spec, make_store
from trainer.run.settings.data import StoreSource

SERVERS = {("cluster", "dashboard"), ("cluster", "up")}
"""Go on until they are told to stop, or leave processes behind: interrupted before that, and not run here."""
SLOW = {("bench", part) for part in (*MEASURED, "gpu", "sources", "agreement", "leases", "check")}
"""Import torch, transformers or vLLM before their arguments are read."""


def test_every_subcommand_is_here() -> None:
    assert {(program, name) for program, name, _ in parsers()} == WORK.keys()


@pytest.mark.parametrize(
    "command",
    [pytest.param(one, marks=[pytest.mark.slow] if one in SLOW else [], id=" ".join(one)) for one in WORK],
)
def test_an_unknown_option_shows_the_usage_of_its_subcommand(
    command: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """All else that the command needs is there, so that nothing but the option is wrong."""
    with pytest.raises(SystemExit) as ended:
        main([*command, *WORK[command], "--hlep"])
    title = f"penumbra {' '.join(command)}"
    assert ended.value.code == ExitStatus.WRONG
    err = capsys.readouterr().err
    assert err.startswith(f"usage: {title} [-h]")
    assert f"{title}: error: unrecognized arguments: --hlep; did you mean '--help'?" in err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("store", "verfy", "x"), "argument COMMAND: invalid choice: 'verfy'; did you mean 'verify'?"),
        (("label", "rnu"), "invalid choice: 'rnu'; did you mean 'run'?"),
        (("train", "evaluat"), "invalid choice: 'evaluat'; did you mean 'evaluate'?"),
        (("cluster", "statsu"), "invalid choice: 'statsu'; did you mean 'status'?"),
        (("bench", "storgae"), "invalid choice: 'storgae'; did you mean 'storage'?"),
        (("store", "export", "x", "--to", "parqet", "y"), "did you mean 'parquet'?"),
        (("label", "settings", "--form", "xml"), "invalid choice: 'xml'; there are: text, markdown"),
    ],
)
def test_a_misspelt_subcommand_or_choice_gets_the_nearest(
    arguments: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert ended.value.code == ExitStatus.WRONG
    assert hint in capsys.readouterr().err


def test_a_home_is_one_wherever_a_path_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In files of settings, and in an option written `--out=~/x`, where no shell looks for it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    rounds = RoundsConfig(folder="~/a", job="~/b", train="~/c")
    recipe = RecipeSettings(seeds="~/a", out="~/b")
    store = StoreSource(uri="~/s", ids="~/a", without_ids="~/b")
    found = [rounds.folder, rounds.job, rounds.train, recipe.seeds, recipe.out, store.ids, store.without_ids]
    assert found == [f"{tmp_path}/{name}" for name in "abcabab"]
    parser = new_parser(Program("train", "", ""))
    one = parser.add_subparsers().add_parser("one")
    one.add_argument("--out", type=Path)
    assert parser.parse_args(["one", "--out=~/x"]).out == tmp_path / "x"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands in the arguments by a word in capitals."""
    from tests.trainer.parity.models import byte_model

    folder = tmp_path_factory.mktemp("every")
    make_store(folder / "store", spec=label_spec(259))
    train, label = folder / "train.toml", folder / "label.toml"
    train.write_text(
        f'[student]\nmodel = "{NOWHERE}"\n[data]\nstores = ["{folder}/store"]\n'
        f'[training]\nmax_steps = 1\n[output]\nfolder = "{folder}/student"\n'
    )
    label.write_text(
        '[teacher]\nengine = "fake"\n[labels]\nmode = "score"\n[input]\nkind = "prompt_response"\n'
        f'limit = 8\nuri = "{ROOT}/benchmarks/demo_data/pairs.jsonl"\n[output]\nuri = "{folder}/labels"\n'
    )
    questions = folder / "questions.jsonl"
    questions.write_text(
        '{"prompt": "Which is one?", "answer": "1"}\n{"prompt": "And two?", "answer": "2"}\n'
    )
    assert main(["store", "export", f"{folder}/store", "--to", "jsonl", f"{folder}/exported.jsonl"]) == 0
    return {
        "STORE": str(folder / "store"),
        "EXPORTED": str(folder / "exported.jsonl"),
        "TRAIN": str(train),
        "MODEL": byte_model(folder / "model"),
        "QUESTIONS": str(questions),
        "LABEL": str(label),
        "TEAM": str(ROOT / "configs/team-trial.toml"),
        "TOKENIZER": str(ROOT / "configs/byte-tokenizer"),
    }


@pytest.fixture(autouse=True)
def _quiet_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries' logs write to the standard error that an earlier test had, and complain that it is gone."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


class InterruptAt:
    """Ctrl-C when the command has called so many functions of ours after its arguments were parsed."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._parsed = False
        self.happened = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "return" and frame.f_code.co_name == "parse_args":
            self._parsed = True
        path = frame.f_code.co_filename
        if event != "call" or not self._parsed or "/tests/" in path or not path.startswith(str(ROOT)):
            return
        if "/.venv/" in path:
            return
        # Python itself ignores what is raised in a generator that it is throwing away.
        if frame.f_code.co_flags & inspect.CO_GENERATOR:
            return
        self._left -= 1
        if not self._left:
            self.happened = True
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)


def interrupted_at(count: int, arguments: list[str]) -> int | None:
    """The exit status after an interruption; None where the command ended before it."""
    hook = InterruptAt(count)
    # A shell starts what it puts into the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.setprofile(hook)
    try:
        status = main(arguments)
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGINT, before)
    return status if hook.happened else None


@pytest.mark.parametrize(
    ("command", "count"),
    [pytest.param(one, 1, marks=[pytest.mark.slow] if one in SLOW else [], id=" ".join(one)) for one in WORK]
    + [
        pytest.param(one, 40, id=f"{' '.join(one)} later")
        for one in WORK
        if one not in SERVERS and one[0] != "bench"
    ],
)
def test_ctrl_c_is_one_line(
    command: tuple[str, str],
    count: int,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status = interrupted_at(count, arguments_of(command, places, tmp_path / "out"))
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert count > 1 or status is not None
    if status is not None:
        assert status == ExitStatus.INTERRUPTED, err
        assert f"penumbra {command[0]}: interrupted" in err.splitlines()[-1]


@pytest.mark.parametrize("command", [one for one in WORK if one not in SERVERS], ids=" ".join)
def test_a_closed_pipe_changes_nothing_else(
    command: tuple[str, str],
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What would print ends in silence; what finds an error before that says it."""
    if command[0] == "bench" and command[1] not in ("plan", "check", "demo", "student", "agreement"):
        pytest.skip("a measurement; `bench` prints its table as these do")
    monkeypatch.chdir(tmp_path)
    arguments = arguments_of(command, places, tmp_path / "out")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        status = main(arguments)
        monkeypatch.undo()
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "Broken pipe" not in err
    fails = command[0] == "cluster" and command[1] not in ("cost", "render", "settings")
    fails |= NOWHERE in WORK[command]
    fails |= command in {("bench", part) for part in ("check", "demo", "student", "agreement")}
    assert (status != ExitStatus.DONE) == fails, err


SET_APART = {("label", "run"), ("train", "run")}
UNWRITABLE: dict[tuple[str, str], tuple[str, ...]] = {
    ("label", "run"): (*JOB, "--set", "output.uri=OUT"),
    ("train", "run"): ("TRAIN", "--set", "student.model=MODEL", "--set", "output.folder=OUT"),
    **{
        command: arguments
        for command, arguments in WORK.items()
        if "OUT" in arguments and command not in (*SET_APART, ("bench", "student"), ("cluster", "down"))
    },
}
"""`bench student` looks at its model first, `cluster down` writes nothing."""
READ_ONLY = (
    ("store", "compact"), ("store", "rebuild-index"), ("store", "uncommit"), ("store", "delete"),
)  # fmt: skip
"""They write into the store that they are given."""


@pytest.mark.parametrize("command", UNWRITABLE, ids=" ".join)
def test_a_place_below_a_file_is_one_line(
    command: tuple[str, str],
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setitem(WORK, command, UNWRITABLE[command])
    status = main(arguments_of(command, places, tmp_path / "file" / "below"))
    line = told(capsys, command[0])
    assert status in (ExitStatus.WRONG, ExitStatus.UNREACHABLE), line
    assert "file" in line


@pytest.mark.parametrize("command", READ_ONLY, ids=" ".join)
def test_a_store_that_cannot_be_written_is_one_line(
    command: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on a disk that was mounted read-only: these tests may run as root, whom no rights hold back."""
    make_store(tmp_path / "store")
    if command[1] == "uncommit":
        shard = next(iter((tmp_path / "store" / "shards").rglob("*.arrow")))
        shard.write_bytes(b"damaged")

    def refuse(self: LocalBackend, name: str) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / name))

    monkeypatch.setattr(LocalBackend, "_temporary", refuse)
    status = main([*command, str(tmp_path / "store"), *WORK[command][1:]])
    line = told(capsys, "store")
    assert status in (ExitStatus.WRONG, ExitStatus.UNREACHABLE), line
    assert "Read-only file system" in line
