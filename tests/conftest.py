"""Fixtures that several packages' tests share."""

from __future__ import annotations

import gc
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from benchmarks.servers.s3 import S3Server, run_s3_server

# The same examples in every run, and none fails because the machine was busy.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Python looks through all that tests import, torch and transformers among it, not once.

    Each worker of `make check` would do so some twenty times while it imports, and again during the tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


ENGINES = "tests/labeler/teacher/"
"""Tests below it share engines in their own process."""


class ByFile(LoadScopeScheduling):
    """Deals out whole files, so that no cluster starts twice, and all of `ENGINES` to one worker.

    xdist's own groups do nothing with pytest 9.2, whose node ids they cannot change.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        return ENGINES if path.startswith(ENGINES) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


@dataclass(frozen=True)
class Place:
    """Somewhere a store can be put: a fresh local directory or a fresh S3 prefix."""

    uri: str
    storage_options: dict[str, Any] | None


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One SeaweedFS for the session. Mark tests that use it `s3`."""
    with run_s3_server() as server:
        yield server


@pytest.fixture
def s3_place(s3_server: S3Server) -> Place:
    return Place(s3_server.uri(f"t-{uuid.uuid4().hex[:12]}/store"), s3_server.storage_options)


@pytest.fixture
def local_place(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "store"), None)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest) -> Place:
    """The same test on a local disk and on S3."""
    return request.getfixturevalue(f"{request.param}_place")
