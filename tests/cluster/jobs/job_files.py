"""Job files that the tests of jobs send, and jobs as a cluster then knows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster.jobs.client import ClusterJob
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


def submitted(metadata: Mapping[str, str], state: str = "FAILED") -> ClusterJob:
    store = metadata.get("penumbra.store", "s3://bucket/store")
    owner = metadata.get("penumbra.owner", "")
    return ClusterJob("label-1", state, "", store, "", 1.0, None, None, owner, dict(metadata))
