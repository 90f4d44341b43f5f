"""The job that looks at nodes is removed again; tests/cluster/jobs/test_jobs.py has it on a real cluster."""

from __future__ import annotations

import pytest

from cluster.errors import ClusterError
from cluster.jobs import node_check
from cluster.jobs.client import ClusterClient


class Refusing(ClusterClient):
    """A cluster that shows nothing of its jobs."""

    def __init__(self) -> None:
        self.address = "http://head:8265"

    def find(self, submission_id: str) -> None:
        raise ClusterError("the Ray cluster at http://head:8265 refused: no")


def test_a_job_that_cannot_be_removed_is_named_with_the_commands_that_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node_check, "REMOVAL_SEC", 0.0)
    node_check.remove(Refusing(), "check-store-0fb831")
    assert capsys.readouterr().err == (
        "warning: job check-store-0fb831, which labels nothing, is still on the cluster (the Ray cluster at "
        "http://head:8265 refused: no); remove it: ray job stop check-store-0fb831 && ray job delete "
        "check-store-0fb831, both with --address http://head:8265\n"
    )
