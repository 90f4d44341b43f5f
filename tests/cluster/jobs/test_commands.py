"""The commands without a cluster: exit statuses, wrong addresses, wrong jobs and the cost of a plan."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers.serving import serving
from cluster.__main__ import main
from cluster.errors import (
    ClusterError,
    ClusterUnreachableError,
    JobNotFoundError,
    JobRefusedError,
)
from cluster.jobs import local
from cluster.jobs.client import EXIT_STATUS_OF_STATE, ClusterClient
from cluster.jobs.network.address import Way
from labeler.config.loading import WorkersConfig
from tests.cluster.jobs.job_files import job_file


@pytest.fixture
def not_ray() -> object:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<h1>It works!</h1>")

        def log_message(self, format: str, *args: object) -> None:
            return

    with serving(HTTPServer(("127.0.0.1", 0), Page)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.mark.slow  # imports Ray
def test_wrong_addresses_exit_with_3_and_say_what_to_check(
    tmp_path: Path, not_ray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = f"http://127.0.0.1:{local._free_ports(1)[0]}"
    for address, says in ((dead, "check that the head runs"), (not_ray, "is no Ray cluster")):
        for command in (["list"], ["status", "x"], ["stop", "x"], ["resume", "x"], ["logs", "x"]):
            assert main([*command, "--address", address]) == 3
            assert says in capsys.readouterr().err
    assert main(["submit", job_file(tmp_path), "--address", dead, "--files", "ship"]) == 3


@pytest.mark.slow  # imports Ray
def test_rays_client_speaks_up_in_trouble_only(not_ray: str) -> None:
    program = f"""
import logging
from cluster.__main__ import main
status = main(["list", "--address", "{not_ray}"])
logger = logging.getLogger("ray.dashboard.modules.dashboard_sdk")
logger.info("Uploading package")
logger.warning("something is wrong")
raise SystemExit(status)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "Uploading" not in done.stderr
    assert "something is wrong" in done.stderr


@pytest.mark.parametrize("command", [(), ("submit",), ("status",), ("stop",), ("up",)])
def test_exit_statuses_are_documented(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    errors = (ClusterError, JobRefusedError, ClusterUnreachableError, JobNotFoundError)
    for status in {*(error.exit_status for error in errors), *EXIT_STATUS_OF_STATE.values()}:
        assert re.search(rf"[:;] {status} \w", shown), status


def test_a_jobs_cost_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "number {i}"}}\n' for i in range(30)))
    file = job_file(
        tmp_path, uri=f"{tmp_path}/in.jsonl", output=f"{tmp_path}/store", more="[cost]\nper_gb_month = 1e6"
    )
    assert main(["cost", file, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main(["cost", file]) == 0
    counts, size, remedy = capsys.readouterr().out.splitlines()
    assert counts == "30 records read: 30 in 1 units, 0 rejected"
    num_bytes = plan["estimated_bytes"]
    assert size == (
        f"{plan['num_tokens']} tokens of input, {plan['num_labels']} label rows, "
        f"about {num_bytes / 1e6:,.2f} MB, {num_bytes / 1e3:,.6f} USD a month to keep"
    )
    assert "--calibrate" in remedy
    assert main(["cost", str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in capsys.readouterr().err
    for what in ([], [f"{tmp_path}/store"], ["label-demo-1a2b3c"]):
        assert main(["cost", *what, "--set", "cost.per_gb_month=1"]) == 2
        assert "--set changes a setting of a job file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            ["cost", "job.toml", "--address", "h", "--owner", "me"],
            "--address and --owner: no cluster is asked",
        ),
        (["cost", "STORE", "--verify", "false"], "--verify: no cluster is asked about a store"),
        (["dashboard", "STORE", "--header", "X-Team=nlp"], "is taken for a store; write a cluster as http"),
    ],
)
def test_what_no_cluster_is_asked_for_is_refused_and_not_passed_over(
    command: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("STORE", str(tmp_path)) for word in command]) == 2
    assert says in capsys.readouterr().err


def test_a_wrong_job_is_refused_before_any_cluster_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = job_file(tmp_path, more="[labels]\ntop_k = 0")
    assert main(["submit", file, "--address", "http://127.0.0.1:1"]) == 2
    assert "labels.top_k" in capsys.readouterr().err
    assert main(["submit", str(tmp_path / "none.toml"), "--address", "http://127.0.0.1:1"]) == 2


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_a_cluster_has_at_least_one_node(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["up", "--local", count])
    assert ended.value.code == 2
    assert f"{count!r} must be a whole number of at least 1" in capsys.readouterr().err


def test_without_any_cluster_the_remedies_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert main(["list"]) == 2
    assert "penumbra cluster up --local 2" in capsys.readouterr().err
    assert main(["down", "--state", str(tmp_path)]) == 2
    assert "no local cluster is up" in capsys.readouterr().err


def test_submit_says_at_once_that_no_machine_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dashboard's nodes, as Ray 2.60 shows them; what waits and why is the labeler's own sentence."""

    def node(**resources: float) -> dict[str, Any]:
        return {"raylet": {"state": "ALIVE", "resourcesTotal": resources}}

    shown: list[dict[str, Any]] = [node(CPU=8.0), node(CPU=8.0, GPU=1.0), {"raylet": {}}]
    monkeypatch.setattr("cluster.jobs.client.list_nodes", lambda way: shown)
    client = ClusterClient.__new__(ClusterClient)
    client._way = Way("http://head:8265")
    client.address = "http://head:8265"
    large = WorkersConfig(gpus=2, cores=4, replicas=3)
    said = client.lack_of_machines(large)
    assert said.startswith("3 of 3 replicas wait for room: each takes 1 machine with 4 CPU, 2 GPU, and 0 of")
    assert client.lack_of_machines(WorkersConfig(gpus=1, cores=4, replicas=9)) == ""
    shown[:] = [{"raylet": {}}]
    assert client.lack_of_machines(large) == "", "a dashboard that does not tell is no reason to warn"
