"""What each set of optional dependencies promises runs where nothing else is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from logitstore.common.exit_status import ExitStatus
from logitstore.common.extras import EXTRA_OF_PACKAGE, OF_NO_EXTRA, OURS
from logitstore.common.penumbra import main
from tests.front_door.test_matrix import NO_CLUSTER, NOWHERE
from tests.front_door.work import MEASURED, ROOT, WORK, arguments_of
from tests.labeler.lacking_interpreter import distributions_of, interpreter_with
from tests.labeler.teacher.openai.chat_stand_in import write_student
from tests.test_imports import imported_names
from tests.trainer.parity.models import byte_model
from tests.trainer.stores import label_spec, make_store

pytestmark = pytest.mark.slow
REFUSED = [part for part in MEASURED if part != "schedules"]
"""Measurements that a base installation cannot run; that of schedules runs there, and takes half a minute."""
BASE_LACKS = {
    ("store", "retokenize"): "reading a tokenizer needs the tokenizers package: pip install tokenizers",
    (
        "label",
        "nodes",
    ): "needs the package 'ray', which is not installed; in the project's folder: pip install "
    "'.[label]'; '.[label-cpu]' without a GPU, '.[api]' for a teacher behind an API",
    ("label", "run"): "pip install '.[label]'; '.[label-cpu]' without a GPU, '.[api]' for",
    ("label", "dedupe"): "pip install '.[curate]'",
    ("train", "parity"): "pip install '.[train]'",
    **{command: "pip install '.[cluster]'" for command in WORK if command[0] == "cluster"},
    **{("bench", part): "pip install '.[label-cpu,train,bench]'" for part in REFUSED},
}
"""What a base installation says of the commands that need more."""
NOT_RUN = {("cluster", "dashboard"), ("cluster", "up")}
"""Go on until they are told to stop, or leave processes behind."""


def commands_of(*programs: str) -> list[tuple[str, str]]:
    return [command for command in WORK if command[0] in programs and command not in NOT_RUN]


PROGRAM = """\
import contextlib, io, json, sys
from logitstore.common.penumbra import main
found = []
for line in json.load(sys.stdin):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        status = main(line)
    found.append([int(status), err.getvalue()])
print(json.dumps(found))
"""


def runs_with(extras: tuple[str, ...], lines: list[list[str]], folder: Path) -> list[tuple[int, str]]:
    """Exit status and standard error of command lines, given one after the other where `extras` are installed."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY"))
    }
    done = subprocess.run(
        [interpreter_with(folder / "environment", *extras), "-P", "-c", PROGRAM],
        input=json.dumps(lines), cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [(status, err) for status, err in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands in the arguments by a word in capitals."""
    folder = tmp_path_factory.mktemp("extras")
    make_store(folder / "store", spec=label_spec(259))
    assert main(["store", "export", f"{folder}/store", "--to", "jsonl", f"{folder}/exported.jsonl"]) == 0
    model = byte_model(folder / "model")
    train, label, api = folder / "train.toml", folder / "label.toml", folder / "api.toml"
    train.write_text(
        f'[student]\nmodel = "{model}"\n[data]\nstores = ["{folder}/store"]\n'
        f'[training]\nmax_steps = 1\n[output]\nfolder = "{folder}/student"\n'
    )
    places = (
        f'uri = "{ROOT}/benchmarks/demo_data/pairs.jsonl"\nlimit = 8\n[output]\nuri = "{folder}/labels"\n'
    )
    label.write_text(
        '[teacher]\nengine = "fake"\n[labels]\nmode = "score"\n[input]\nkind = "prompt_response"\n' + places
    )
    api.write_text(
        f'[teacher]\nengine = "openai"\nmodel = "{write_student(folder / "chat")}"\n'
        'api.base_url = "http://127.0.0.1:9/v1"\napi.endpoint = "chat"\n'
        '[labels]\nmode = "generate"\nrows = false\n[input]\nkind = "prompt"\n' + places
    )
    questions, others = folder / "questions.jsonl", folder / "others.jsonl"
    others.write_text('{"prompt": "What is the capital of a country that nobody knows?"}\n')
    questions.write_text('{"prompt": "Which is one?", "answer": "1"}\n{"prompt": "Two?", "answer": "2"}\n')
    return {
        "STORE": str(folder / "store"), "EXPORTED": str(folder / "exported.jsonl"), "MODEL": model,
        "TRAIN": str(train), "LABEL": str(label), "API": str(api), "QUESTIONS": str(questions),
        "OTHERS": str(others),
        "TEAM": str(ROOT / "configs/team-trial.toml"), "TOKENIZER": str(ROOT / "configs/byte-tokenizer"),
    }  # fmt: skip


def test_a_base_installation_reads_stores_and_names_the_extra_of_all_else(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WORK, ("label", "run"), ("API", "--dry-run", "--set", "workers.gpus=1"))
    monkeypatch.setitem(WORK, ("label", "nodes"), ("LABEL",))
    commands = [*commands_of("store", "label", "train", "cluster"), *(("bench", part) for part in REFUSED)]
    lines = [arguments_of(one, places, tmp_path / f"out{number}") for number, one in enumerate(commands)]
    for command, (status, err) in zip(commands, runs_with((), lines, tmp_path), strict=True):
        assert "defect" not in err, f"{command}: {err}"
        if command in BASE_LACKS:
            assert status == ExitStatus.WRONG, f"{command}: {err}"
            assert BASE_LACKS[command] in err, f"{command}: {err}"
        else:
            assert "not installed" not in err, f"{command}: {err}"


PROMISED: dict[str, dict[tuple[str, str], tuple[str, ...]]] = {
    "cluster": {command: WORK[command] for command in commands_of("cluster")},
    "api": {
        ("label", "settings"): (),
        ("label", "run"): ("API", "--dry-run"),
        ("label", "nodes"): ("API",),
    },
    "curate": {
        ("label", "dedupe"): ("QUESTIONS", "--out", "OUT.jsonl"),
        ("label", "decontaminate"): ("QUESTIONS", "--against", "OTHERS", "--out", "OUT.jsonl"),
    },
    "train": {command: WORK[command] for command in commands_of("train")},
}


@pytest.mark.parametrize("extra", PROMISED)
def test_an_extra_is_enough_for_its_commands(
    extra: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole `label run` of `api` is in `whole_jobs/test_api_job.py`."""
    commands = PROMISED[extra]
    for command, arguments in commands.items():
        monkeypatch.setitem(WORK, command, arguments)
    lines = [arguments_of(one, places, tmp_path / f"out{number}") for number, one in enumerate(commands)]
    results = runs_with((extra,), lines, tmp_path)
    for command, (status, err) in zip(commands, results, strict=True):
        assert "not installed" not in err, f"{command}: {err}"
        assert status == expected(command), f"{command}: {err}"


def expected(command: tuple[str, str]) -> ExitStatus:
    """What the command comes to with its arguments, of which those that need a cluster have none."""
    arguments = WORK[command]
    if set(NO_CLUSTER) <= set(arguments):
        return ExitStatus.UNREACHABLE
    is_wrong = NOWHERE in arguments or command in (("cluster", "down"), ("label", "nodes"))
    return ExitStatus.WRONG if is_wrong else ExitStatus.DONE


TOLD_OTHERWISE = {
    "ray", "compressed_tensors", "triton", "kubernetes_validate", "cut_cross_entropy", "liger_kernel",
}  # fmt: skip
"""The first two are missed in words of their own where they are imported; the others are left out."""


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("labeler", "label"),
        ("trainer", "train"),
        ("cluster", "cluster"),
        ("benchmarks", "label-cpu,train,bench"),
    ],
)
def test_the_extra_that_is_named_brings_what_is_missing(package: str, extra: str) -> None:
    """Else who has it already is told to install it again. `parity` is in no lock of these tests."""
    names = {
        name.split(".")[0] for path in (ROOT / package).rglob("*.py") for name, _ in imported_names(path)
    }
    brought = {one: distributions_of(*one.split(",")) for one in (extra, "curate", "api")}
    installed = packages_distributions()
    missing = {
        name
        for name in names - {*sys.stdlib_module_names, *OURS, *OF_NO_EXTRA, "tests"}
        if (named := EXTRA_OF_PACKAGE.get(name, extra)) != "parity"
        and not brought[named] & {canonicalize_name(one) for one in installed.get(name, ())}
    }
    assert missing - TOLD_OTHERWISE == set()
