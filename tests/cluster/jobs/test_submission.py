"""What travels to a cluster, what must not, and what is refused before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import JobRefusedError
from cluster.jobs.earlier import options_of
from cluster.jobs.environment import parse_env, read_runtime_env
from cluster.jobs.reaching import _interpreter
from cluster.jobs.submission import (
    JOB_FILE,
    JOB_KEY,
    STORE_KEY,
    Files,
    SubmitOptions,
    prepare,
    submission_id,
)
from labeler.config.loading import describe_difference, identity, load_job
from logitstore.inputs.reading import iter_records
from tests.cluster.jobs.job_files import a_job, job_file, submitted


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
    assert options_of(submitted(submission.metadata)) == options()


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


def test_a_store_has_one_name_however_it_is_written(tmp_path: Path, send: Path) -> None:
    for written in ("s3://bucket/store", "s3://bucket/store/"):
        sent = prepare(a_job(tmp_path, output=written), options("same"), send, owner="ada@lab")
        assert sent.metadata[STORE_KEY] == "s3://bucket/store"


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


def test_driver_and_actors_run_on_the_interpreter_that_was_named(tmp_path: Path, send: Path) -> None:
    """Ray starts its workers with its own interpreter unless the job says another."""
    submission = prepare(a_job(tmp_path), options(python="/env/bin/python"), send, owner="ada@lab")
    assert submission.runtime_env["py_executable"] == "/env/bin/python"
    assert submission.entrypoint.startswith("/env/bin/python ")
    assert submission.metadata["penumbra.owner"] == "ada@lab"
    assert options_of(submitted(submission.metadata)).python == "/env/bin/python"


def test_a_runtime_environment_of_ones_own_is_sent_and_resumed_with(tmp_path: Path, send: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("pip: [zstandard]\n")
    chosen = options(runtime_env=read_runtime_env(str(file)))
    submission = prepare(a_job(tmp_path), chosen, send, owner="ada@lab")
    assert submission.runtime_env["pip"] == ["zstandard"]
    assert "py_executable" not in submission.runtime_env, "Ray builds an environment with its own interpreter"
    assert options_of(submitted(submission.metadata)) == chosen


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("working_dir: /x", "--files"),
        ("env_vars: {A: b}", "--env NAME=VALUE"),
        ("py_executable: /x", "--python"),
        ("- a", "must hold a table"),
        ("a: [", "env.yaml"),
        ("image_uri: registry.example/a", "start the cluster's nodes from that image"),
        ("pip: 3", "is refused by Ray: runtime_env"),
        ("{pip: [a], uv: [b]}", "is refused by Ray: The 'pip' field"),
        (
            "config: {setup_timeout_seconds: x}",
            "is refused by Ray: setup_timeout_seconds must be of type int",
        ),
        ("conda: {a: 2026-01-01}", "JSON cannot carry .*write dates in quotes"),
        ("conda: {a: .inf}", "JSON cannot carry"),
        ("conda: &a {x: *a}", "JSON cannot carry"),
        ("[" * 100_000, "nested too deeply"),
        ("worker_process_setup_hook: 3", "such as module.function"),
        (f"py_modules: [{__file__}]", "put a single file into a folder"),
        ("pips: [rich]", "Ray has no 'pips'; did you mean 'pip'"),
        ("1: x", "Ray has no 1; there are: "),
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


@pytest.mark.parametrize(
    ("name", "remedy"), [("RAY_JOB_STOP_WAIT_TIME_S", "drain_sec"), ("PENUMBRA_OWNER", "use --owner")]
)
def test_a_variable_that_says_what_an_option_says_is_refused(name: str, remedy: str) -> None:
    """A job would have been another's in its store's bill, and its own in `list`."""
    with pytest.raises(JobRefusedError, match=f"{name} is set by `submit` itself.*{remedy}"):
        parse_env([f"{name}=1"])


@pytest.mark.parametrize(
    ("settings", "env_vars", "says"),
    [
        ([], (("A", "\udcff"),), "--env A = .* holds bytes that are no UTF-8"),
        (["input.system_prompt=\udcff"], (), "input.system_prompt = .* no UTF-8, .*; rename what is"),
    ],
)
def test_bytes_that_ray_dies_of_are_refused(
    settings: list[str], env_vars: tuple[tuple[str, str], ...], says: str, tmp_path: Path, send: Path
) -> None:
    """Ray's worker died of them as if memory had run out, and the job's log was empty."""
    job = load_job(job_file(tmp_path), settings, environ={})
    with pytest.raises(JobRefusedError, match=says):
        prepare(job, options("same", env_vars=env_vars), send, owner="me@here")


@pytest.mark.parametrize("python", ["python3 -u", "-c", " ", "python -I"])
def test_an_interpreter_with_arguments_is_refused_before_it_is_looked_for(python: str) -> None:
    with pytest.raises(JobRefusedError, match=r"--python .* one program, without arguments"):
        _interpreter(python)
    assert _interpreter("/with space/bin/python") == "/with space/bin/python"
    assert _interpreter(None) is None
