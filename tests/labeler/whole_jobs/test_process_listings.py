"""Secrets of a job's file are in no command line and no environment of what the job starts, nor in Ray's logs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.jobs.running_job import RunningJob, started, units_done, wait_for
from tests.labeler.job.test_secrets_nowhere import KEPT, PLANTED, assert_nowhere
from tests.labeler.jobs import assert_exactly_once, overrides_for, write_records

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


def places_of(setting: str) -> tuple[str, str]:
    """("input", 'key = "..."') of `input.storage_options={key = "..."}`."""
    found = re.fullmatch(r"(input|output)\.storage_options=\{(.*)\}", setting)
    assert found is not None
    return found[1], found[2]


def listed(job: RunningJob) -> dict[str, str]:
    """Command line and environment of the driver and of everything below it, by process."""
    found = {}
    for process_id in [job.process.pid, *(process_id for process_id, _ in job.processes())]:
        folder = Path("/proc", str(process_id))
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found[f"{process_id} {command}"] = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue  # It has ended.
    return found


def secret_job(folder: Path) -> Path:
    """A job file whose storage options hold a secret in every way in which a job may."""
    options: dict[str, list[str]] = {"input": [], "output": []}
    for setting in KEPT.values():
        section, text = places_of(setting)
        options[section].append(text)
    both = {name: f"{{{', '.join(texts)}}}" for name, texts in options.items()}
    text = "".join(f"[{name}]\nstorage_options = {value}\n" for name, value in both.items())
    assert text.count(PLANTED) == len(KEPT)
    job_file = folder / "secret.toml"
    job_file.write_text(text)
    return job_file


def test_no_process_of_a_job_shows_its_secrets(tmp_path: Path) -> None:
    write_records(tmp_path / "in.jsonl", 40)
    job_file = secret_job(tmp_path)
    overrides = overrides_for(tmp_path, "teacher.fake.seconds_per_token=0.005", "output.unit_size=4")
    with started(overrides, str(job_file)) as job:
        wait_for(lambda: units_done(tmp_path / "store") >= 2 and len(job.actors()) == 2, job)
        processes = listed(job)
        sessions = {folder for line in processes for folder in re.findall(r"\S*/session_\d[^\s/]*", line)}
        exit_status, output = job.finish()
    assert exit_status == 0, output
    assert len(processes) > 5, "driver, Ray's own and the actors"
    assert sum("ray::Worker" in line for line in processes) == 2
    assert [line for line, environment in processes.items() if PLANTED in line + environment] == []
    folders = {session.partition("=")[2] or session for session in sessions}
    logs = [path for folder in folders for path in Path(folder, "logs").rglob("*") if path.is_file()]
    assert logs
    assert [str(path) for path in logs if PLANTED.encode() in path.read_bytes()] == []
    job_file.unlink()
    assert_nowhere(tmp_path, output)
    assert_exactly_once(tmp_path, 40)
