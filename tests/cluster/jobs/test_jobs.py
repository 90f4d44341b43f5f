"""Labeling jobs on a real Ray cluster of two nodes on loopback, through the commands that people type.

The teacher is the labeler's stand-in, so that no engine has to load; everything else is real.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from cluster.describe.grafana import PANELS
from cluster.jobs import local
from cluster.jobs.local_state import STATE_FILE, LocalCluster
from cluster.jobs.network.access import bearer_headers, find_token
from logitstore.store import LogitStore
from tests.cluster.jobs.network.reverse_proxy import HEADER, ingress_before
from tests.cluster.jobs.small_jobs import (
    ALL_IDS,
    NUM_RECORDS,
    num_shards,
    run,
    stored_ids,
    wait_until,
    write_job,
)
from tests.labeler.lacking_interpreter import interpreter_without

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SECRET = "hunter2-in-the-clusters-environment"
PLANTED = "hunter2QZXV8r4Kd0mTn3Wb6Yc1"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    state = tmp_path_factory.mktemp("state")
    os.environ["AWS_SECRET_ACCESS_KEY"] = SECRET
    try:
        started = local.up(2, state, cpus_per_node=1)
    finally:
        del os.environ["AWS_SECRET_ACCESS_KEY"]
    yield started
    if (state / STATE_FILE).exists():
        local.down(state)


def test_a_submitted_job_is_followed_to_its_end(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = ("--address", cluster.address)
    status, out, err = run(capsys, "submit", str(write_job(tmp_path)), *address, "--follow")
    assert status == 0, (out, err)
    job_id, log = out.split("\n", 1)
    assert re.fullmatch(r"label-store-[0-9a-f]{6}", job_id)
    assert log.strip(), "the labeler's log is empty"
    assert stored_ids(tmp_path / "store") == ALL_IDS

    listed = json.loads(run(capsys, "list", *address, "--json")[1])
    assert [(job["state"], job["exit_code"]) for job in listed if job["id"] == job_id] == [("SUCCEEDED", 0)]
    progress = json.loads(run(capsys, "status", job_id, *address, "--json")[1])["progress"]
    assert progress["state"] == "finished"
    assert progress["sequences"] == NUM_RECORDS
    assert run(capsys, "logs", job_id, *address)[1].strip() == log.strip()
    status, out, _ = run(capsys, "cost", *address, "--json")  # of the newest of one's own
    assert status == 0
    spent = json.loads(out)
    assert [run["state"] for run in spent["runs"]] == ["finished"]
    assert spent["total"]["device_sec"]["core"] == pytest.approx(progress["cost"]["device_sec"], abs=0.01)
    assert list(spent["owners"]) == [listed[0]["owner"]]
    assert_the_page_shows(cluster, job_id, tmp_path / "store")
    assert_nowhere(SECRET, cluster, job_id, tmp_path / "store", log)


@pytest.fixture
def entered_anew(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each deleted job is put back once, as by Ray when its look at the jobs falls between end and deletion."""
    from ray.dashboard.modules.job.common import JobInfoStorageClient, JobStatus
    from ray.dashboard.modules.job.job_manager import GcsClient  # pyright: ignore[reportAttributeAccessIssue]

    delete, anew = JobSubmissionClient.delete_job, []

    def delete_too_early(self: JobSubmissionClient, job_id: str) -> bool:
        done = delete(self, job_id)
        if job_id not in anew:
            anew.append(job_id)
            known = JobInfoStorageClient(GcsClient(address=cluster.gcs_address), None)
            asyncio.run(known.put_status(job_id, JobStatus.FAILED, message="Job supervisor actor died"))
        return done

    monkeypatch.setattr(JobSubmissionClient, "delete_job", delete_too_early)
    return anew


def test_nodes_are_looked_at_in_the_environment_that_a_job_would_have(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], entered_anew: list[str]
) -> None:
    """And nothing of it is left: no job, no store."""
    address, job = ("--address", cluster.address), str(write_job(tmp_path))
    status, out, err = run(capsys, "check", job, *address, "--json")
    assert status == 0, (out, err)
    seen = json.loads(out)
    assert [node["ip"] for node in sorted(seen["nodes"], key=lambda node: node["ip"])] == sorted(
        node.ip for node in cluster.nodes
    )
    assert seen["lacks"] == seen["warnings"] == seen["silent"] == []
    assert {node["store"] for node in seen["nodes"]} == {"writable"}
    lacking = str(interpreter_without(tmp_path / "env", "zstandard"))
    status, _, err = run(capsys, "check", job, *address, "--python", lacking)
    assert status != 0
    assert "no zstandard" in err
    assert "submit with --python PATH of an environment on the nodes that has it" in err
    assert not (tmp_path / "store").exists()
    assert len(entered_anew) == 2
    known = JobSubmissionClient(cluster.address, headers=bearer_headers(find_token())).list_jobs()
    assert [job.submission_id for job in known if (job.submission_id or "").startswith("check-")] == []


def test_nobody_touches_anothers_job_without_naming_it(
    cluster: LocalCluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two people on one cluster: commands without an id mean one's own jobs."""
    address = ("--address", cluster.address)
    monkeypatch.setenv("PENUMBRA_OWNER", "carol@lab")
    job_id = run(capsys, "submit", str(write_job(tmp_path)), *address, "--wait")[1].split("\n")[0]

    monkeypatch.setenv("PENUMBRA_OWNER", "dave@lab")
    for command in ("stop", "resume", "status", "logs"):
        status, _, err = run(capsys, command, *address)
        assert status == 2, command
        assert "no labeling job of dave@lab" in err
        assert f"{job_id} (carol@lab)" in err
    assert json.loads(run(capsys, "list", *address, "--mine", "--json")[1]) == []
    owners = {job["id"]: job["owner"] for job in json.loads(run(capsys, "list", *address, "--json")[1])}
    assert owners[job_id] == "carol@lab"
    assert run(capsys, "status", job_id, *address)[0] == 0
    assert run(capsys, "status", *address, "--owner", "carol@lab")[0] == 0


def test_a_job_is_sent_and_followed_through_an_ingress(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a path before the API, a header that it wants, and without WebSocket for the log."""
    with ingress_before(cluster.address) as address:
        status, _, err = run(capsys, "list", "--address", address)
        assert status == 3
        assert "--header NAME=VALUE" in err
        through = ("--address", address, "--header", "=".join(HEADER))
        status, out, err = run(capsys, "submit", str(write_job(tmp_path)), *through, "--follow")
        assert status == 0, (out, err)
        job_id, log = out.split("\n", 1)
        assert log.strip() == run(capsys, "logs", job_id, *through)[1].strip()
        assert job_id in run(capsys, "list", *through)[1]
    assert stored_ids(tmp_path / "store") == ALL_IDS


def assert_the_page_shows(cluster: LocalCluster, job_id: str, store: Path) -> None:
    viewer = subprocess.Popen(
        [sys.executable, "-P", "-m", "cluster", "dashboard", cluster.address, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert viewer.stdout is not None
        url = re.search(r"http://\S+", viewer.stdout.readline())
        assert url is not None
        overview = json.loads(urllib.request.urlopen(f"{url[0]}api/overview", timeout=60).read())
        (job,) = (one for one in overview["jobs"] if one["id"] == job_id)
        assert (job["state"], job["store"]) == ("SUCCEEDED", str(store))
        card = next(one for one in overview["stores"] if one["uri"].endswith(str(store)))
        assert card["status"]["state"] == "finished"
        assert card["status"]["cost"]["device_sec"] > 0
        assert card["totals"]["num_sequences"] == NUM_RECORDS
    finally:
        viewer.terminate()
        viewer.wait(timeout=60)


def assert_nowhere(secret: str, cluster: LocalCluster, job_id: str, store: Path, log: str) -> None:
    """Neither in what Ray tells of its jobs, nor in the job's log, nor in anything that the store holds."""
    ask = urllib.request.Request(f"{cluster.address}/api/jobs/", headers=bearer_headers(find_token()))
    told = urllib.request.urlopen(ask, timeout=60).read().decode() + log
    assert job_id in told
    assert secret not in told
    held = {
        path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()
    }
    assert {"manifest.json", "status.json", "job.json"} <= held.keys()
    assert [name for name, content in held.items() if secret.encode() in content] == []


def test_without_the_token_nobody_gets_in(
    cluster: LocalCluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for token in ("0" * 64, None):
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        status, _, err = run(capsys, "list", "--address", cluster.address)
        assert status == 3
        assert "asks for a token" in err


def test_where_ray_sends_the_token_itself_the_rest_of_the_client_has_it_too(
    cluster: LocalCluster,
) -> None:
    """Ray's documentation has people export this, as a node's environment does."""
    code = (
        "from cluster.jobs.network.address import Way; from cluster.jobs.client import ClusterClient; "
        f"print(ClusterClient(Way({cluster.address!r})).head_is_here())"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (asked.returncode, asked.stdout) == (0, "True\n"), asked.stderr


def test_stop_drains_and_resume_labels_only_the_rest(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = ("--address", cluster.address)
    job = write_job(tmp_path, seconds_per_token=0.05)  # so that it is not over while commands are typed
    store = tmp_path / "store"
    status, out, err = run(capsys, "submit", str(job), *address)
    assert status == 0, err
    job_id = out.strip()
    wait_until(lambda: num_shards(store) >= 2)

    status, _, err = run(capsys, "submit", str(job), *address)
    assert status == 2
    assert job_id in err
    status, _, err = run(capsys, "resume", job_id, *address)
    assert status == 2
    assert "stop it first" in err

    assert run(capsys, "stop", job_id, *address)[0] == 0
    done = LogitStore.open(str(store))
    before = {entry.unit_id: entry.name for entry in done.shards()}
    assert 2 <= len(before) < NUM_RECORDS // 2
    on_disk = sorted(f"shards/{path.name}" for path in (store / "shards").iterdir())
    assert on_disk == sorted(before.values()), "something half-written"
    assert run(capsys, "status", job_id, *address)[0] == 4
    assert run(capsys, "stop", job_id, *address)[0] == 0  # stopping what has ended is no error

    (tmp_path / "slow").unlink()
    status, out, err = run(capsys, "resume", job_id, *address, "--wait", "--json")
    assert status == 0, err
    assert stored_ids(store) == ALL_IDS
    after = {entry.unit_id: entry.name for entry in LogitStore.open(str(store)).shards()}
    assert before.items() <= after.items(), "a unit was labeled twice"
    listed = {one["id"]: one for one in json.loads(run(capsys, "list", *address, "--json")[1])}
    assert listed[json.loads(out)["id"]]["resumes"] == job_id


HELD = {
    "AWS_SECRET_ACCESS_KEY": PLANTED, "AWS_SESSION_TOKEN": PLANTED, "HF_TOKEN": f"hf_{PLANTED}",
    "OPENAI_API_KEY": f"sk-{PLANTED}", "WANDB_API_KEY": PLANTED, "GITHUB_TOKEN": f"ghp_{PLANTED}",
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=a;AccountKey={PLANTED}", "NPM_TOKEN": PLANTED,
    "DATABASE_URL": f"postgres://me:{PLANTED}@db/x", "SSH_KEY": f"-----BEGIN PRIVATE KEY-----{PLANTED}",
    "FTP_PROXY": f"http://me:{PLANTED}@proxy:1", "RAY_JOB_HEADERS": json.dumps({"X-Api-Key": PLANTED}),
}  # fmt: skip
"""Twelve secrets in the environment of the person who submits."""


def test_no_process_shows_what_the_submitter_holds(cluster: LocalCluster, tmp_path: Path) -> None:
    """No command line of this machine, and no environment of the cluster's processes, the job's among them."""
    job, store = write_job(tmp_path, seconds_per_token=0.02), tmp_path / "store"
    command = [sys.executable, "-P", "-m", "cluster", "submit", str(job), "--address", cluster.address]
    command += ["--follow"]
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(
            command, env=os.environ | HELD, stdout=subprocess.PIPE, stderr=said, text=True
        ) as submitter,
    ):
        wait_until(lambda: num_shards(store) >= 1 or submitter.poll() is not None)
        assert submitter.poll() is None, (tmp_path / "said").read_text()
        lines = {int(path.parent.name): read(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
        below = {pid for node in cluster.nodes for pid in local.node_processes(node.pid)}
        environments = {lines.get(pid): read(Path(f"/proc/{pid}/environ")) for pid in below}
        out, _ = submitter.communicate(timeout=200)
    assert submitter.returncode == 0, (out, (tmp_path / "said").read_text())
    own = lines[submitter.pid]
    assert "submit" in own
    assert any("labeler run job.json" in line for line in lines.values()), "the job's entrypoint"
    assert sum("ray::Worker" in line for line in lines.values()) >= 2
    token = find_token() or PLANTED  # the cluster's own
    assert [line for line in lines.values() if PLANTED in line or token in line] == []
    assert [line for line, environment in environments.items() if PLANTED in environment] == []
    job_id, log = out.split("\n", 1)
    assert PLANTED not in (tmp_path / "said").read_text()
    assert_nowhere(PLANTED, cluster, job_id, store, log)


def read(path: Path) -> str:
    """What /proc says of a process; "" of one that has ended."""
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def test_a_failing_job_says_why(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path)
    lines = (tmp_path / "in.jsonl").read_text().splitlines()
    # The kind can be found of the first ones; of the whole too many are broken.
    broken = ['{"id": "a"'] * len(lines)
    (tmp_path / "in.jsonl").write_text("\n".join([*lines[:4], *broken]) + "\n")
    status, out, _ = run(capsys, "submit", str(job), "--address", cluster.address, "--follow")
    assert status == 1
    assert "reject" in out


def test_a_running_job_is_measured_and_a_head_that_dies_under_it_is_told(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Last: it ends the cluster. The same job file then finishes on another cluster, here a private one."""
    job, store = write_job(tmp_path, seconds_per_token=0.15), tmp_path / "store"
    address = ("--address", cluster.address)
    status, out, err = run(capsys, "submit", str(job), *address)
    assert status == 0, err
    job_id = out.strip()
    asked = set(
        re.findall(r"ray_penumbra_\w+", " ".join(query for panel in PANELS for query, _ in panel.queries))
    )
    only_on_trouble = {"ray_penumbra_failures_total", "ray_penumbra_rejects_total"}
    wait_until(lambda: asked - only_on_trouble <= exported_metrics(cluster))
    assert "ray_node_cpu_utilization" in exported_metrics(cluster)
    wait_until(lambda: num_shards(store) >= 1)

    follow = [sys.executable, "-P", "-u", "-m", "cluster", "logs", job_id, *address, "--follow"]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline(), "nothing to follow"
        kill(local.node_processes(cluster.nodes[0].pid))  # the job's driver too, as when the machine goes
        _, err = follower.communicate(timeout=200)
    assert follower.returncode == 3, err
    assert "submitting the same job file again" in err
    assert run(capsys, "status", *address)[0] == 3
    again = [sys.executable, "-P", "-m", "labeler", "run", str(job), "--quiet"]
    done = subprocess.run(
        [*again, "--set", "teacher.fake.seconds_per_token=0"],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        timeout=200,
        check=False,
    )
    assert done.returncode == 0
    assert stored_ids(store) == ALL_IDS


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # some end with the one killed before them
            os.kill(pid, 9)


def exported_metrics(cluster: LocalCluster) -> set[str]:
    """Names on the endpoints that Ray's own list for Prometheus gives."""
    text = ""
    listed = Path(cluster.folder) / "prom_metrics_service_discovery.json"
    for target in json.loads(listed.read_text())[0]["targets"]:
        try:
            text += urllib.request.urlopen(f"http://{target}/metrics", timeout=10).read().decode()
        except (OSError, http.client.HTTPException):
            continue  # Ray also lists parts of itself that are switched off
    return set(re.findall(r"^(ray_\w+)\{", text, re.MULTILINE))
