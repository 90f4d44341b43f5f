"""One call to a server: what is counted of a try that fails."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from openai import OpenAI

from labeler.config.loading import TeacherConfig
from labeler.config.teacher_settings import ApiTeacherConfig
from labeler.teacher.openai.calls import Caller, ServerFailedError


@pytest.mark.parametrize(("listens", "num_lost"), [(False, 0), (True, 2)])
def test_a_request_that_never_arrived_costs_nothing(listens: bool, num_lost: int) -> None:
    """Nobody at the port, or a server that takes the request and hangs up."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        config = TeacherConfig(
            engine="openai", model="m", api=ApiTeacherConfig(base_url=url, tries=2, longest_pause_sec=0.01)
        )
        caller = Caller(OpenAI(base_url=url, api_key="-", max_retries=0, timeout=0.3), config)
        with pytest.raises(ServerFailedError, match=r"failed 2 times.*raise teacher\.api\.tries") as caught:
            caller.complete({"model": "m", "prompt": [1]}, 1, lambda answer: answer)
    assert caught.type is ServerFailedError, "no fault of the request"
    assert ("(teacher.api.timeout_sec = 120)" in str(caught.value)) == listens
    assert (caller.billed.num_lost, caller.billed.num_answers, caller.billed.num_on_the_way) == (
        num_lost,
        0,
        0,
    )


def test_no_failure_imports_another_http_client() -> None:
    """The OpenAI client looks for httpx in `sys.modules`, where another thread may have put half of it."""
    program = """
import sys
from labeler.teacher.openai import calls
error = RuntimeError()
error.__cause__ = OSError()
assert not calls._never_arrived(error)
sys.exit(int("httpx" in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
