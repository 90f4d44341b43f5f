"""Job files that the tests of jobs send."""

from __future__ import annotations

from pathlib import Path

from labeler.config.loading import JobConfig, load_job


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
