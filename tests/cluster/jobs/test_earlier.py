"""Jobs on a cluster that other programs, or other versions, submitted with metadata like ours."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from cluster.errors import JobNotFoundError, JobRefusedError
from cluster.jobs import commands
from cluster.jobs.earlier import config_of, drain_sec_of, options_of, storage_options_of
from labeler.config.loading import WorkersConfig, resolved
from logitstore.common.command import Program, run_program
from tests.cluster.jobs.job_files import a_job, submitted

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "settings",
    [None, "", "{", "[]", "null", DEEP, "{}", '{"output": []}', '{"output": {"storage_options": "x"}}'],
)
def test_settings_of_another_form_are_refused_in_words(tmp_path: Path, settings: str | None) -> None:
    job = submitted({} if settings is None else {"penumbra.job": settings, "penumbra.options": settings})
    for ask in (lambda: storage_options_of(job), lambda: config_of(job, tmp_path), lambda: options_of(job)):
        with pytest.raises(JobRefusedError, match="use the penumbra that submitted it") as refused:
            ask()
        assert "s3://bucket/store" in str(refused.value)
        assert str(tmp_path) not in str(refused.value), "a file of ours that is gone by then"
    assert drain_sec_of(job) == WorkersConfig().drain_sec


@pytest.mark.parametrize("given", ["null", '"soon"', "-1", "NaN", "Infinity", "[]"])
def test_a_job_whose_patience_is_not_known_is_stopped_with_the_usual_one(given: str) -> None:
    job = submitted({"penumbra.job": f'{{"workers": {{"drain_sec": {given}}}}}'})
    assert drain_sec_of(job) == WorkersConfig().drain_sec


def test_a_setting_that_is_new_there_is_named(tmp_path: Path) -> None:
    settings = resolved(a_job(tmp_path)) | {"tomorrow": {}}
    with pytest.raises(JobRefusedError, match="tomorrow is not a setting"):
        config_of(submitted({"penumbra.job": json.dumps(settings)}), tmp_path)
    for options in ('{"files": "same"}', '{"env_vars": [], "files": 1}', '{"env_vars": {}, "files": "same",'
                    ' "python": 3, "ship_code": false}'):  # fmt: skip
        with pytest.raises(JobRefusedError, match="how it was submitted"):
            options_of(submitted({"penumbra.options": options}))


@pytest.mark.parametrize(
    ("store", "is_opened"),
    [
        ("s3://bucket/run", True),
        ("gs://bucket/run", True),
        ("/runs/demo", True),
        ("file:///runs/demo", True),
        ("http://169.254.169.254/latest/meta-data/", False),
        ("sftp://10.0.0.1/run", False),
        ("simplecache::http://10.0.0.1/run", False),
        ("zip://x::s3://bucket/run.zip", False),
    ],
)
def test_a_job_makes_nobodys_machine_ask_a_server_of_its_choice(
    tmp_path: Path, store: str, is_opened: bool
) -> None:
    """As the page of all jobs does: whoever may submit could have had a user's network asked by `status`."""
    settings = json.dumps(resolved(a_job(tmp_path)))
    job = submitted({"penumbra.store": store, "penumbra.job": settings})
    if is_opened:
        assert storage_options_of(job) == {}
        return
    with pytest.raises(JobRefusedError, match="on a server that the job names, which is not asked"):
        storage_options_of(job)
    assert "not asked" in commands.progress_of(job)[1]


class _OneJob:
    """A cluster that knows one job."""

    address = "http://head:8265"

    def __init__(self, store: str) -> None:
        self.known = submitted({"penumbra.store": store, "penumbra.owner": "eve\x1b[2J\nroot"})

    def jobs(self) -> list[object]:
        return [self.known]

    def job(self, submission_id: str) -> object:
        if submission_id != self.known.submission_id:
            raise JobNotFoundError(f"no job {submission_id!r}; known: {self.known.owner}")
        return self.known


def test_what_others_wrote_moves_no_cursor_and_begins_no_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = _OneJob("/runs/\x1b]0;title\x07demo\nlabel-2  SUCCEEDED")
    monkeypatch.setattr(commands, "client_of", lambda args: cluster)
    for name, arguments in (
        ("list_jobs", {"mine": False}),
        ("status", {"id": "label-1", "owner": None}),
        ("status", {"id": "label-2", "owner": None}),
        ("status", {"id": None, "owner": "ada@lab"}),
        ("cost", {"id": "label-1", "set": [], "owner": None}),
        ("resume", {"id": "label-1", "owner": None}),
    ):
        args = argparse.Namespace(json=False, quiet=False, **arguments)
        run = getattr(commands, name)
        run_program(Program("cluster", "", "cluster"), lambda run=run, args=args: run(args))
        said = "".join(capsys.readouterr())
        assert "\x1b" not in said
        assert "\x07" not in said
        assert "defect" not in said
        assert not any(line.startswith("label-2  SUCC") for line in said.splitlines())
