"""What travels to a cluster, what must not, and what is refused before anything is sent."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
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
from cluster.jobs import commands, local
from cluster.jobs.address import Way
from cluster.jobs.client import EXIT_STATUS_OF_STATE, ClusterClient, ClusterJob
from cluster.jobs.dashboard import is_cluster_address, write_jobs
from cluster.jobs.people import newest_of, only_one_at_work, owner_here
from cluster.jobs.submission import (
    JOB_FILE,
    JOB_KEY,
    STORE_KEY,
    Files,
    SubmitOptions,
    options_of,
    parse_env,
    prepare,
    read_runtime_env,
    submission_id,
)
from labeler.config.loading import JobConfig, WorkersConfig, describe_difference, identity, load_job
from logitstore.inputs.reading import iter_records


def job_file(
    folder: Path, *, uri: str = "s3://bucket/in.jsonl", output: str = "s3://bucket/store", more: str = ""
) -> str:
    file = folder / "job.toml"
    file.write_text(
        f'[teacher]\nengine = "fake"\n[input]\nuri = "{uri}"\nkind = "text"\n[output]\nuri = "{output}"\n{more}\n'
    )
    return str(file)


def a_job(folder: Path, **changes: str) -> JobConfig:
    return load_job(job_file(folder, **changes), environ={})


def options(files: Files = "ship", **changes: object) -> SubmitOptions:
    return SubmitOptions(**{"files": files, "python": "python"} | changes)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def send(tmp_path: Path) -> Path:
    folder = tmp_path / "send"
    folder.mkdir()
    return folder


def test_a_small_local_input_travels_with_the_job(tmp_path: Path, send: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n')
    job = a_job(tmp_path, uri=f"{tmp_path}/*.jsonl")
    submission = prepare(job, options(), send, owner="ada@lab")
    sent = load_job(str(send / JOB_FILE), environ={})
    assert sent.input.uri == "input/**"
    assert sorted(path.read_text() for path in (send / "input").iterdir()) == [
        '{"text": "one"}\n',
        '{"text": "two"}\n',
    ]
    assert submission.entrypoint == "python -m labeler run job.json"
    # What a later `resume` needs is the job as it was here, not as it was sent.
    assert json.loads(submission.metadata[JOB_KEY])["input"]["uri"] == f"{tmp_path}/*.jsonl"
    assert options_of(submission.metadata) == options()


@pytest.mark.parametrize("files", ["ship", "same"])
def test_a_chat_template_of_ones_own_is_found_by_the_cluster(
    tmp_path: Path, send: Path, monkeypatch: pytest.MonkeyPatch, files: Files
) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    monkeypatch.chdir(tmp_path)
    job = load_job(job_file(tmp_path), ["input.chat_template=chat.jinja"], environ={})
    submission = prepare(job, options(files), send, owner="ada@lab")
    monkeypatch.chdir(send)
    sent = load_job(JOB_FILE, environ={})
    assert Path(str(sent.input.chat_template)).read_text() == "{{ messages }}"
    assert describe_difference(identity(job), identity(sent)) == []
    whole = json.loads(submission.metadata[JOB_KEY])["input"]["chat_template"]
    assert whole == str(tmp_path / "chat.jinja"), "what a later `resume` ships again"
    other = load_job(job_file(tmp_path), ["input.chat_template=other.jinja"], environ={})
    assert len(describe_difference(identity(job), identity(other))) == 1
    if files == "ship":
        with pytest.raises(JobRefusedError, match=r"chat_template .*other.jinja' cannot be read here"):
            prepare(other, options(), tmp_path, owner="ada@lab")


def test_a_shipped_input_is_the_same_wherever_ray_unpacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed job, and one with more replicas, go on with their store; one of another input does not."""
    (tmp_path / "data").mkdir()
    for name in ("data/in.jsonl", "data/more.jsonl", "in.jsonl"):
        (tmp_path / name).write_text('{"text": "one"}\n')

    def identity_there(session: str, uri: str, more: str = "") -> dict[str, Any]:
        folder = tmp_path / session
        folder.mkdir()
        prepare(a_job(tmp_path, uri=f"{tmp_path}/{uri}", more=more), options(), folder, owner="ada@lab")
        monkeypatch.chdir(folder)
        return identity(load_job(JOB_FILE, environ={}))

    first = identity_there("session-1", "data/in.jsonl")
    second = identity_there("session-2", "data/in.jsonl", "[workers]\nreplicas = 2")
    assert describe_difference(first, second) == []
    assert first == identity(a_job(tmp_path, uri=f"{tmp_path}/data/in.jsonl")), "as if labeled here"
    for session, other in (("session-3", "in.jsonl"), ("session-4", "data")):
        (change,) = describe_difference(first, identity_there(session, other))
        assert change.startswith("input.uri: ")
        assert change.endswith(f"{str(tmp_path / other)!r} now")


@pytest.mark.parametrize(
    ("pattern", "num_records"), [("", 4), ("/*.jsonl", 3), ("/**/*.jsonl", 5), ("/only.jsonl", 1)]
)
def test_the_cluster_reads_the_records_that_are_read_here(
    tmp_path: Path, send: Path, pattern: str, num_records: int
) -> None:
    """Notes, hidden files and what the `datasets` library writes beside its data are no records anywhere."""
    data = tmp_path / "data"
    for name in ("only.jsonl", "more.jsonl", "2025/only.jsonl", "2026/only.jsonl"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(json.dumps({"text": name}) + "\n")
    for name in ("README.md", ".env", "dataset_info.json", "_old.jsonl"):
        (data / name).write_text("{}\n")
    job = a_job(tmp_path, uri=f"{data}{pattern}")
    prepare(job, options(), send, owner="ada@lab")
    sent = load_job(str(send / JOB_FILE), environ={})
    here, there = (
        [(raw.file, raw.record, raw.error) for raw in iter_records(uri)]
        for uri in (job.input.uri, f"{send}/{sent.input.uri}")
    )
    assert here == there
    assert len(here) == num_records
    assert not (send / "input" / ".env").exists()


def test_the_drain_fits_into_rays_patience(tmp_path: Path, send: Path) -> None:
    job = a_job(tmp_path, more="[workers]\ndrain_sec = 300")
    environment = prepare(job, options(), send, owner="ada@lab").runtime_env["env_vars"]
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) > 300


def test_code_travels_when_asked(tmp_path: Path, send: Path) -> None:
    prepare(a_job(tmp_path), options(ship_code=True), send, owner="ada@lab")
    assert (send / "labeler" / "__main__.py").is_file()
    assert (send / "logitstore" / "store.py").is_file()
    assert not list(send.rglob("__pycache__"))


def test_paths_that_mean_the_same_everywhere_become_absolute(
    tmp_path: Path, send: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for uri, output, whole in (
        ("in.jsonl", "runs/store", f"{tmp_path}/runs/store"),
        ("file://in.jsonl", "~/runs/store", "/home/me/runs/store"),
    ):
        job = a_job(tmp_path, uri=uri, output=output, more="[labels]\ngiven = 'first'")
        submission = prepare(job, options("same"), send, owner="ada@lab")
        sent = load_job(str(send / JOB_FILE), environ={})
        assert sent.labels.given == str(tmp_path / "first")
        assert sent.input.uri == str(tmp_path / "in.jsonl")
        assert sent.output.uri == submission.metadata[STORE_KEY] == whole


def test_a_job_sent_from_one_folder_can_be_resumed_from_another(
    tmp_path: Path, send: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n')
    monkeypatch.chdir(tmp_path)
    submission = prepare(a_job(tmp_path, uri="in.jsonl"), options(), send, owner="ada@lab")
    assert json.loads(submission.metadata[JOB_KEY])["input"]["uri"] == str(tmp_path / "in.jsonl")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"output": "runs/store"}, "lies on this machine"),
        ({"output": "file:///runs/store"}, "lies on this machine"),
        ({"more": "[labels]\ngiven = 'runs/first'"}, r"labels\.given .*runs/first' lies on this machine"),
        ({"more": "[labels]\ngiven = 's3://me:pw@bucket/in'"}, r"labels\.given holds a user name or"),
        ({"uri": "nothing-*.jsonl"}, "matches no file"),
        ({"uri": "s3://me:pw@bucket/in"}, "user name or password"),
        ({"more": "[workers]\naddress = '10.0.0.1:6379'"}, "remove the setting"),
        ({"more": "storage_options = {secret = 'abc'}"}, "storage_options.secret is a secret"),
        ({"more": "storage_options = {client_kwargs = {aws_access_key_id = 'abc'}}"}, "aws_access_key_id"),
    ],
)
def test_what_the_cluster_cannot_reach_or_must_not_see_is_refused(
    tmp_path: Path, send: Path, changes: dict[str, str], says: str
) -> None:
    with pytest.raises(JobRefusedError, match=says):
        prepare(a_job(tmp_path, **changes), options(), send, owner="ada@lab")
    assert list(send.iterdir()) == []


def test_too_much_input_is_refused(tmp_path: Path, send: Path) -> None:
    with open(tmp_path / "big.jsonl", "wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(JobRefusedError, match="68,157,440 bytes"):
        prepare(a_job(tmp_path, uri=f"{tmp_path}/big.jsonl"), options(), send, owner="ada@lab")


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "db_password"])
def test_secrets_may_not_travel_in_the_environment(name: str) -> None:
    with pytest.raises(JobRefusedError, match=name):
        parse_env([f"{name}=value"])
    assert parse_env(["NCCL_DEBUG=INFO", "X="]) == (("NCCL_DEBUG", "INFO"), ("X", ""))
    assert parse_env(["TOKENIZERS_PARALLELISM=false"]) == (("TOKENIZERS_PARALLELISM", "false"),)


def test_ids_name_the_store_and_never_repeat() -> None:
    made = {submission_id("s3://bucket/My Run_7/") for _ in range(8)}
    assert len(made) == 8
    assert all(one.startswith("label-my-run-7-") for one in made)


def test_a_store_is_not_taken_for_a_cluster(tmp_path: Path) -> None:
    assert is_cluster_address("http://head:8265")
    assert is_cluster_address("head:8265")
    for store in ("runs/demo", "s3://bucket/run", str(tmp_path)):
        assert not is_cluster_address(store)


def cluster_jobs(owner: str = "ada@lab", **states: str) -> list[ClusterJob]:
    return [
        ClusterJob(name, state, "as Ray said", "s3://b/store", "", 1.0, None, None, owner, {})
        for name, state in states.items()
    ]


def test_a_job_that_failed_for_what_the_cluster_lacks_ends_with_the_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (job,) = cluster_jobs(label="FAILED")
    said = "Job entrypoint command failed with exit code 1\n/usr/bin/python: No module named labeler"
    assert commands._ended(replace(job, message=said)) == 1
    assert "has no labeler: submit with --ship-code" in capsys.readouterr().err
    assert commands._ended(job) == 1
    assert capsys.readouterr().err == "label failed: as Ray said\n"


def test_without_an_id_only_a_lone_job_of_ones_own_is_stopped() -> None:
    alone = cluster_jobs(newest="SUCCEEDED", older="RUNNING", oldest="STOPPED")
    others = cluster_jobs("bob@lab", theirs="RUNNING")
    assert only_one_at_work([*others, *alone], "ada@lab") == alone[1]
    assert only_one_at_work([*others, *cluster_jobs(newest="SUCCEEDED")], "ada@lab") is None
    with pytest.raises(JobRefusedError, match="name the one to stop: first, second"):
        only_one_at_work(cluster_jobs(first="PENDING", second="RUNNING"), "ada@lab")


def test_without_an_id_the_newest_job_of_ones_own_is_meant_and_never_anothers() -> None:
    mine, theirs = cluster_jobs(a="STOPPED", b="SUCCEEDED"), cluster_jobs("bob@lab", c="RUNNING")
    unknown = cluster_jobs("", d="RUNNING")
    assert newest_of([*theirs, *mine], "ada@lab", address="http://h:8265") == mine[0]
    with pytest.raises(JobRefusedError, match=r"no labeling job of ada@lab; .* c \(bob@lab\), d \(unknown\)"):
        newest_of([*theirs, *unknown], "ada@lab", address="http://h:8265")
    with pytest.raises(JobRefusedError, match="submit one"):
        newest_of([], "ada@lab", address="http://h:8265")


def test_the_owner_is_given_or_found_and_is_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert owner_here("ada", {"PENUMBRA_OWNER": "bob"}) == "ada"
    assert owner_here(None, {"PENUMBRA_OWNER": "bob"}) == "bob"
    assert re.fullmatch(r"\S+@\S+", owner_here(None, {}))
    for wrong in ("a b", "a\nb", "\x1b[2J"):
        with pytest.raises(JobRefusedError, match="one word"):
            owner_here(wrong, {})


def test_driver_and_actors_run_on_the_interpreter_that_was_named(tmp_path: Path, send: Path) -> None:
    """Ray starts its workers with its own interpreter unless the job says another."""
    submission = prepare(a_job(tmp_path), options(python="/env/bin/python"), send, owner="ada@lab")
    assert submission.runtime_env["py_executable"] == "/env/bin/python"
    assert submission.entrypoint.startswith("/env/bin/python ")
    assert submission.metadata["penumbra.owner"] == "ada@lab"
    assert options_of(submission.metadata).python == "/env/bin/python"


def test_a_runtime_environment_of_ones_own_is_sent_and_resumed_with(tmp_path: Path, send: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("pip: [zstandard]\n")
    chosen = options(runtime_env=read_runtime_env(str(file)))
    submission = prepare(a_job(tmp_path), chosen, send, owner="ada@lab")
    assert submission.runtime_env["pip"] == ["zstandard"]
    assert "py_executable" not in submission.runtime_env, "Ray builds an environment with its own interpreter"
    assert options_of(submission.metadata) == chosen


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("working_dir: /x", "--files"),
        ("env_vars: {A: b}", "--env NAME=VALUE"),
        ("py_executable: /x", "--python"),
        ("- a", "must hold a table"),
        ("a: [", "env.yaml"),
        ("pip: ['--extra-index-url=https://me:pw@host/simple']", "password"),
    ],
)
def test_a_runtime_environment_that_cannot_be_sent_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "env.yaml"
    file.write_text(text)
    with pytest.raises(JobRefusedError, match=says):
        read_runtime_env(str(file))
    with pytest.raises(JobRefusedError, match="nowhere"):
        read_runtime_env(str(tmp_path / "nowhere"))


def test_a_job_whose_cluster_is_gone_is_not_called_running(tmp_path: Path) -> None:
    jobs = cluster_jobs(a="RUNNING", b="SUCCEEDED")
    write_jobs(tmp_path / "jobs.json", jobs, problem="no Ray cluster answers")
    rows = json.loads((tmp_path / "jobs.json").read_text())
    assert [(row["state"], row["message"]) for row in rows] == [
        ("UNKNOWN", "no Ray cluster answers"),
        ("SUCCEEDED", "as Ray said"),
    ]


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
