"""A sweep tries every combination once, goes on where it stopped, and says no more than its seeds show."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.common.config_file import ConfigError
from logitstore.common.whole_file import remove_parts, write_whole
from logitstore.store import LogitStore
from tests.killing import run_killed
from tests.trainer.stores import make_store
from trainer.__main__ import main
from trainer.run.config import resolved
from trainer.sweep import runs
from trainer.sweep.grid import points_of, read_axis
from trainer.sweep.page import page, ticks
from trainer.sweep.runs import Outcome, is_of_these_stores
from trainer.sweep.summary import settings_name

BASE = {"student": {"model": "m"}, "data": {"stores": "s"}, "output": {"folder": "out"}}


def test_every_combination_is_a_run_of_its_own() -> None:
    axes = [read_axis(text) for text in ("loss.temperature=1,2", "loss.alpha=0.5,0.9", "training.seed=0,1,2")]
    points = points_of(BASE, axes, "out", None)
    assert len({point.config.output.folder for point in points}) == len(points) == 12
    assert points[0].name == "temperature=1_alpha=0.5_seed=0"
    assert {(p.config.loss.temperature, p.config.loss.alpha, p.config.training.seed) for p in points} == {
        (t, a, s) for t in (1, 2) for a in (0.5, 0.9) for s in (0, 1, 2)
    }
    assert [point.config.evaluation.before for point in points] == [True] + [False] * 11
    assert BASE["output"] == {"folder": "out"}


def test_settings_of_which_the_last_word_is_the_same_keep_their_names() -> None:
    """ "alpha=1_alpha=8" did not say which is which, on the page and in the table either."""
    base = {**BASE, "student": {"model": "m", "lora": {"rank": 4}}}
    over = ("loss.alpha=0.5,1", "student.lora.alpha=8,16", "loss.temperature=2")
    first, *_ = points_of(base, [read_axis(text) for text in over], "out", None)
    assert first.name == "loss.alpha=0.5_student.lora.alpha=8_temperature=2"
    assert settings_name(first.values) == "loss.alpha=0.5 student.lora.alpha=8 temperature=2"


def test_values_of_any_length_make_a_folder_that_can_be() -> None:
    names = [str([f"model.layers.{layer}.self_attn.q_proj" for layer in range(n)]) for n in (20, 21)]
    axes = [read_axis(f"student.lora.target_modules={','.join(names)}")]
    first, second = points_of(BASE, axes, "out", None)
    assert first.name != second.name
    assert len(first.name) == len(second.name) == 236


def test_a_page_says_how_much_has_run_and_shows_all_figures_in_a_table() -> None:
    """The table was text of a fixed width, whose last column a window of 1,280 pixels cut off."""
    axes = [read_axis(text) for text in ("loss.alpha=0.5,1", "training.seed=0,1")]
    figures = {
        "kl": 1.5,
        "cross_entropy": 3.0,
        "top1_agreement": 0.4,
        "accuracy": 0.3,
        "calibration_error": 0.1,
        "num_rows": 640,
    }
    outcomes = [
        Outcome(point, "finished", {"after": figures}) for point in points_of(BASE, axes, "out", None)
    ]
    assert "<h1>Sweep of 4 runs</h1><p class=soft>3 have ended, " in page(outcomes[:3], axes, "kl", "out")
    whole = page(outcomes, axes, "kl", "out")
    assert "have ended" not in whole
    assert whole.count("<tr><th>alpha=") == 2
    assert "<tr><th>alpha=0.5<td>2<td>1.5000 ±0.0000<td>3.0000 ±0.0000<td>" in whole


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (1.549, 1.858, ["1.6", "1.7", "1.8"]),
        (0.0596, 0.0801, ["0.060", "0.065", "0.070", "0.075", "0.080"]),
        (-0.5, 1000.0, ["0", "200", "400", "600", "800", "1000"]),
    ],
)
def test_an_axis_has_round_numbers(low: float, high: float, texts: list[str]) -> None:
    assert [text for _, text in ticks(low, high)] == texts


def test_an_axis_has_three_to_eight_numbers() -> None:
    """Wherever it begins: steps of 2, of 14.97, are 8."""
    assert len(ticks(0, 14.97)) == 8
    ranges = [(low, low + room) for low in np.linspace(-1, 1, 41) for room in np.geomspace(0.01, 1000, 400)]
    assert {len(ticks(low, high)) for low, high in ranges} == set(range(3, 9))


def test_the_student_that_an_axis_replaces_may_be_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused, though no run of the sweep has it; each of those that have been given is looked for."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    make_store(tmp_path / "store")
    base = ["--student", "./nowhere", "--labels", f"{tmp_path}/store", "--out", f"{tmp_path}/out", "--quiet"]
    assert main(["sweep", *base, "--over", "student.model=./one,./two"]) == 2
    told = capsys.readouterr().err
    assert "student.model = './one' is no folder here" in told
    assert "./nowhere" not in told


def test_a_seed_is_that_of_the_order_too_unless_the_order_has_its_own() -> None:
    axes = [read_axis("training.seed=0,1,2")]
    assert [point.config.data.seed for point in points_of(BASE, axes, "out", None)] == [0, 1, 2]
    axes.append(read_axis("data.seed=7,8"))
    assert [point.config.data.seed for point in points_of(BASE, axes, "out", None)] == [7, 8] * 3


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        (["loss.temperature"], "must look like section.key=value,value"),
        (["temperature=1,2"], "must look like section.key=value,value"),
        (["loss.alpha=0.5,0.5"], "names a value twice"),
        (["loss.alpha=0.5", "loss.alpha=0.9"], "'loss.alpha' twice"),
        (["loss.alpha=0.5,3"], "loss.alpha = 3"),
        (["loss.alfa=0.5"], "did you mean loss.alpha"),
        (["output.folder=a,b"], "leave output and data.stores out"),
    ],
)
def test_what_no_run_would_take_is_refused_before_any_runs(axes: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        points_of(BASE, [read_axis(text) for text in axes], "out", None)
    assert says in str(refused.value)


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_and_shows_its_runs(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = ["--over", "training.learning_rate=1e-3,1e-2,-1", "--quiet"]
    assert main(["sweep", *options, *over]) == 2
    assert "training.learning_rate = -1" in capsys.readouterr().err
    over = ["--over", "training.learning_rate=1e-3,1e-2", "--seeds", "1", "--quiet"]
    command = [sys.executable, "-P", "-m", "trainer", "sweep", *options, *over]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    first = tmp_path / "sweep/runs/learning_rate=0.001_seed=0"
    deadline = time.monotonic() + 90
    while not (first / "metrics.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    written = (first / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["sweep", *options, *over]) == 0
    out = capsys.readouterr().out
    assert (first / "model.safetensors").stat().st_mtime_ns == written, "a finished run is skipped"
    assert "recommended: learning_rate=0.01" in out
    assert "one seed each: nothing tells" in out
    found = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [run["state"] for run in found["runs"]] == ["finished before", "finished"]
    kls = [run["after"]["kl"] for run in found["runs"]]
    assert kls[1] < kls[0] < found["runs"][0]["before"]["kl"]
    page = (tmp_path / "sweep/sweep.html").read_text()
    assert page.count("role=img") == 2
    assert f"{kls[1]:.4f}" in page
    next_command = out.strip().splitlines()[-1].partition("penumbra train ")[2].split()
    assert next_command == ["eval", f"{tmp_path}/sweep/runs/learning_rate=0.01_seed=0/train.json"]


def test_a_store_that_has_grown_is_refused_before_any_run(tmp_path: Path) -> None:
    """Each run that had finished refused it by itself, one after the other."""
    store = make_store(tmp_path / "store", (6,), fingerprint="f", tokenizer_size=64)
    document = {**BASE, "data": {"stores": str(tmp_path / "store"), "texts": [{"uri": "some.jsonl"}]}}
    points = points_of(document, [read_axis("training.seed=0,1,2")], str(tmp_path / "sweep"), None)
    for point in points[:2]:
        folder = Path(point.config.output.folder)
        folder.mkdir(parents=True)
        (folder / "train.json").write_text(json.dumps(resolved(point.config)))
        read = [{"digest": store.digest}, {"digest": "of texts"}]
        (folder / "metrics.json").write_text(json.dumps({"stores": read}))
    runs.refuse_changed_stores(points)
    shutil.rmtree(tmp_path / "store")
    make_store(tmp_path / "store", (6, 3), fingerprint="f", tokenizer_size=64)
    with pytest.raises(ConfigError, match=rf"2 of 3 runs were finished before {tmp_path}/store had what it"):
        runs.refuse_changed_stores(points)


@pytest.mark.slow
def test_seeds_of_a_student_with_weights_differ(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no dropout and no new weights, so the order of the records is all that a seed can change."""
    assert main(["sweep", *options, "--set", "training.batch_size=2", "--seeds", "2", "--quiet"]) == 0
    found = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert len({run["after"]["kl"] for run in found["runs"]}) == 2
    assert "as configured" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_killed_anywhere_ends_as_the_unbroken_one_when_it_is_repeated(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At every change of the sweep's own. What its runs leave was made before, and is put there as a run does,
    the figures last."""
    over = ["--over", "training.learning_rate=1e-3,1e-2", "--seeds", "1", "--quiet"]
    made, root = tmp_path / "made", tmp_path / "sweep"

    def run_here(_: runs._Runner, config: Path, gpu: str | None) -> tuple[int, str, str]:
        name = config.stem
        if not (made / name).exists():
            assert main(["run", str(config), "--quiet", "--json"]) == 0
            shutil.copytree(root / "runs" / name, made / name)
        else:
            there, last = root / "runs" / name, shutil.ignore_patterns("metrics.json")
            shutil.copytree(made / name, there, dirs_exist_ok=True, ignore=last)
            remove_parts(there)
            write_whole(there / "metrics.json", (made / name / "metrics.json").read_text())
        return 0, "", ""

    monkeypatch.setattr(runs._Runner, "_process", run_here)

    def outcome() -> tuple[list[dict[str, Any]], dict[str, bytes]]:
        found = json.loads((root / "sweep.json").read_text())["runs"]
        left = {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.name not in ("sweep.json", "sweep.html")
        }
        return [{key: value for key, value in run.items() if key != "state"} for run in found], left

    words = ["sweep", *options, *over]
    assert main(words) == 0
    whole = outcome()
    page = (root / "sweep.html").read_text()
    shutil.rmtree(root)
    status, num_changes, printed = run_killed(main, words, root, None)
    assert status == 0, printed
    assert (outcome(), num_changes > 20) == (whole, True)
    for kill_at in sorted(set(np.linspace(0, num_changes - 1, 20).astype(int).tolist())):
        shutil.rmtree(root, ignore_errors=True)
        assert run_killed(main, words, root, kill_at)[0] is None
        status, _, printed = run_killed(main, words, root, None)
        assert status == 0, f"{kill_at}: {printed}"
        assert outcome() == whole, kill_at
        assert (root / "sweep.html").read_text().count("<svg") == page.count("<svg")


def command_line(pid: str) -> bytes:
    """Empty of a process that has ended, whether or not it was waited for."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_a_run_ends_with_the_sweep_that_started_it(options: list[str]) -> None:
    """Left alone it would train on, and the same command would find its folder taken."""
    over = ["--over", "training.learning_rate=1e-3", "--seeds", "1", "--quiet"]
    sweep = os.fork()
    if not sweep:
        os._exit(main(["sweep", *options, "--set", "training.max_steps=1000000", *over]))
    deadline, started = time.monotonic() + 60, list[str]()
    while not started and time.monotonic() < deadline:
        time.sleep(0.05)
        tasks = Path(f"/proc/{sweep}/task").glob("*/children")
        started = [pid for task in tasks for pid in task.read_text().split()]
    (run,) = started
    while b"learning_rate" not in command_line(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(sweep, signal.SIGKILL)
    os.waitpid(sweep, 0)
    try:
        while command_line(run) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not command_line(run)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(run), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["data", "evaluation"])
def test_a_run_over_what_a_store_held_before_is_not_a_finished_one(tmp_path: Path, kind: str) -> None:
    for name in ("data", "evaluation"):
        make_store(tmp_path / name, (6,), fingerprint="f", tokenizer_size=64)
    document = {
        **BASE,
        "data": {"stores": str(tmp_path / "data")},
        "evaluation": {"stores": str(tmp_path / "evaluation")},
    }
    (point,) = points_of(document, [read_axis("training.seed=0")], str(tmp_path / "sweep"), None)
    metrics = {
        "stores": [{"digest": LogitStore.open(str(tmp_path / "data")).digest}],
        "evaluation_stores": [{"digest": LogitStore.open(str(tmp_path / "evaluation")).digest}],
    }
    assert is_of_these_stores(metrics, point)
    with_ids = {**document, kind: {"stores": {"uri": str(tmp_path / kind), "ids": "ids.txt"}}}
    (other,) = points_of(with_ids, [read_axis("training.seed=0")], str(tmp_path / "sweep"), None)
    assert not is_of_these_stores(metrics, other), "what the file says may have changed"
    shutil.rmtree(tmp_path / kind)
    make_store(tmp_path / kind, (6,), seed=1, fingerprint="f", tokenizer_size=64)
    assert not is_of_these_stores(metrics, point)
