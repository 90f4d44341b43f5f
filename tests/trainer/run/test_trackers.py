"""MLflow and trackio themselves, told of one training of two processes, and read back by their own clients.

tools/setup.sh has installed them in .venv/aside/trackers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.hf.large.processes import ROOT, run_command
from tests.trainer.run.conftest import settings, write_config

pytestmark = pytest.mark.slow
TRACKERS = ROOT / ".venv" / "aside" / "trackers"
TRAINING = (
    'training.report_to=["mlflow", "trackio"]',
    "training.run_name=a-name",
    "training.project=a-project",
    "training.max_steps=3",
    "training.logging_steps=1",
    "training.batch_size=2",
)
OFFLINE = """
import os, sys
def refuse_other_hosts(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in ("127.0.0.1", "localhost", "::1", None):
        with open(os.environ["CALLS"], "a") as file:
            print(event, arguments, file=file)
        raise OSError("no network here")
sys.addaudithook(refuse_other_hosts)
"""


def tracker_environment(folder: Path) -> dict[str, str]:
    """Both keep what they are told in `folder`; another host that is called is written to its file `calls`."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(OFFLINE)
    paths = [str(folder / "site"), str(TRACKERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "CALLS": str(folder / "calls"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "TRACKIO_DIR": str(folder / "trackio"),
    }


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two processes, its configuration and both trackers' records."""
    folder = tmp_path_factory.mktemp("tracked")
    config = write_config(folder)
    command = [sys.executable, "-m", "tests.trainer.hf.large.command", "ddp", "run", str(config), "--json"]
    run_command([*command, *settings(*TRAINING)], environment=tracker_environment(folder))
    return folder


@pytest.fixture(scope="module")
def found(tracked: Path) -> dict[str, Any]:
    """What both trackers' own clients read, in a process of their own: this one stays without what lies aside."""
    environment = os.environ | tracker_environment(tracked) | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "tests.trainer.run.tracker_records", "a-project", "a-name"]
    environment["PYTHONPATH"] += os.pathsep + str(ROOT)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "metrics.json").read_text())


def test_mlflow_has_one_run_with_every_figure(tracked, found):
    (run,) = found["mlflow"]
    assert (run["name"], run["status"]) == ("a-name", "FINISHED")
    metrics, told = metrics_of(tracked), run["metrics"]
    for name in ("loss", "distillation", "cross_entropy", "num_rows", "fill", "num_cut_rows", "teacher_mass"):
        assert told[name] == [[entry["step"], entry[name]] for entry in metrics["history"]], name
    assert told["eval_kl"] == [[0, metrics["before"]["kl"]], [3, metrics["after"]["kl"]]]
    assert told["num_input_tokens_seen"][-1][1] == metrics["num_tokens"] > 0
    params = run["params"]
    assert params["data.held_out_fraction"] == "0.25"
    assert params["student.small.hidden_size"] == "32"
    assert str(tracked / "store") in params["data.stores"]
    assert params["loss.alpha"] == params["alpha"] == "0.9"
    assert params["vocab_size"] == "64"


def test_trackio_has_one_run_with_every_figure(tracked, found):
    (run,) = found["trackio"]
    assert run["name"] == "a-name"
    assert run["config"]["student.small.hidden_size"] == 32
    assert run["config"]["vocab_size"] == 64
    metrics, told = metrics_of(tracked), run["metrics"]
    for name in ("loss", "distillation", "num_rows", "fill"):
        assert told[f"train/{name}"] == [[entry["step"], entry[name]] for entry in metrics["history"]], name
    assert told["eval/kl"] == [[0, metrics["before"]["kl"]], [3, metrics["after"]["kl"]]]


def test_no_other_host_was_called(tracked):
    assert not (tracked / "calls").exists()


def run_alone(folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One process, whose stdout and stderr are kept apart."""
    command = [
        sys.executable,
        "-m",
        "trainer",
        "run",
        str(write_config(folder)),
        "--json",
        *settings(*overrides),
    ]
    told = os.environ | tracker_environment(folder) | environment
    told["PYTHONPATH"] += os.pathsep + str(ROOT)
    return subprocess.run(command, env=told, capture_output=True, text=True, timeout=100)


def test_what_a_tracker_prints_stays_out_of_the_result(tmp_path):
    done = run_alone(tmp_path, *TRAINING, 'training.report_to=["trackio"]')
    assert done.returncode == 0, done.stderr
    assert "Trackio" in done.stderr
    assert json.loads(done.stdout)["num_steps"] == 3


def test_an_error_of_a_tracker_is_one_line(tmp_path):
    done = run_alone(tmp_path, *TRAINING, 'training.report_to=["mlflow"]', MLFLOW_TRACKING_URI="nowhere://x")
    assert done.returncode == 2
    assert "training.report_to = 'mlflow': " in done.stderr
    assert "Set the tracker up (MLFLOW_TRACKING_URI=sqlite:///FILE" in done.stderr
    assert "Traceback" not in done.stderr
