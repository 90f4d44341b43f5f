"""The program of the user's that a check asks: one question at a time, each answer paired by what it repeats.

A question is one line of JSON with the response's `id` and `sample`; the answer must be one line that has
both again. So a line too many, of a debug print say, is never taken for the verdict on another response: the
program is ended, and a new one is asked.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal, cast

from logitstore.common.config_file import ConfigError
from logitstore.inputs.json_text import json_text

MAX_FAILURES = 3
"""Problems in a row without a verdict by the program's own fault, after which the check ends too."""
MAX_ANSWER_BYTES = 2**20
SHOWN_CHARACTERS = 400
EXIT_WAIT_SEC = 1.0
"""How long a program that closed its output has to end, so that its exit status is known."""
READ_BYTES = 2**16

VerdictKind = Literal["right", "wrong", "timeout", "malformed", "failed"]
NO_VERDICT: tuple[VerdictKind, ...] = ("malformed", "failed")
"""By a fault of the program's own: asked once more, and again by a check that goes on."""
NO_SHAPE = (
    'it must answer each line with one such as {"id": ..., "sample": ..., "keep": true, "score": 1.0}, '
)
NO_SHAPE += (
    "with the id and the sample that it was asked about, flushed, and write nothing else to its output"
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one question."""

    kind: VerdictKind
    score: float = 0.0
    reason: str = ""
    """The program's own words, or why there is no verdict."""


@dataclass(frozen=True, slots=True)
class _Running:
    """A program with a pipe to it and one from it, neither of which blocks."""

    process: subprocess.Popen[bytes]
    stdin: IO[bytes]
    stdout: IO[bytes]


class CheckProgram:
    """Started with the first question, and anew whenever it gave no verdict."""

    def __init__(self, command: str, timeout_sec: float) -> None:
        """Raises ConfigError for a command that is none."""
        self._command = command
        self._parts = command_parts(command)
        self._timeout_sec = timeout_sec
        self._running: _Running | None = None
        self._read = b""
        self._failed_ids = set[str]()
        self.last_trouble = ""
        """Why it was ended the last time; "" where it never was."""
        self.num_ended = 0
        """How often it was ended since it gave no verdict."""

    def ask(self, question: Mapping[str, Any]) -> Reply:
        """The verdict on a response. Without one, a new program is asked once more, except after a time-out.

        Raises ConfigError for a program that cannot be started or gave none for `MAX_FAILURES` problems.
        """
        reply = self._asked(question)
        if reply.kind in NO_VERDICT:
            reply = self._asked(question)
        if reply.kind in NO_VERDICT:
            self._failed_ids.add(question["id"])
            if len(self._failed_ids) >= MAX_FAILURES:
                raise ConfigError(
                    f"--program {self._command!r} gave no verdict for {MAX_FAILURES} problems in a row, the "
                    f"last time since {reply.reason}; {NO_SHAPE}"
                )
        elif reply.kind != "timeout":
            self._failed_ids.clear()
        return reply

    def close(self) -> None:
        """End the program and all that it started."""
        running, self._running, self._read = self._running, None, b""
        if running is None:
            return
        # Before `wait`, while the number is certain to be this program's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
        for pipe in (running.stdin, running.stdout):
            with contextlib.suppress(OSError):
                pipe.close()

    def _asked(self, question: Mapping[str, Any]) -> Reply:
        running = self._started()
        try:
            line = self._line_after(running, question_line(question))
            if line is not None:
                return reply_of(line, question)
            reply = Reply("failed", reason=f"the program ended with {_exit_status(running.process)}")
        except TimeoutError:
            reply = Reply("timeout", reason=f"no verdict within {self._timeout_sec:g} s")
        except ValueError as error:
            reply = Reply("malformed", reason=str(error))
        self.close()
        self.num_ended += 1
        self.last_trouble = reply.reason
        return reply

    def _started(self) -> _Running:
        if self._running is None:
            try:
                self._running = _start(self._parts)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"--program {self._command!r} cannot be started ({error}); give a program and its "
                    "arguments, for example 'python3 check_number.py'"
                ) from None
        return self._running

    def _line_after(self, running: _Running, request: bytes) -> bytes | None:
        """Write the request and read the next line, both within the time; None where the program ended.

        Raises TimeoutError, and ValueError for a line that is too long.
        """
        stdin, stdout = running.stdin.fileno(), running.stdout.fileno()
        deadline = time.monotonic() + self._timeout_sec
        unsent = memoryview(request)
        with selectors.DefaultSelector() as ready:
            ready.register(stdout, selectors.EVENT_READ)
            ready.register(stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._read:
                events = ready.select(max(deadline - time.monotonic(), 0.0))
                if not events:
                    raise TimeoutError
                for key, _ in events:
                    if key.fd == stdout:
                        more = os.read(stdout, READ_BYTES)
                        if not more:
                            return None
                        self._read += more
                        if len(self._read) > MAX_ANSWER_BYTES:
                            raise ValueError(f"a line of more than {MAX_ANSWER_BYTES:,} bytes")
                        continue
                    try:
                        unsent = unsent[os.write(stdin, unsent) :]
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        unsent = unsent[:0]  # It reads no more; what it still says, or its end, is read.
                    if not unsent:
                        ready.unregister(stdin)
        line, _, self._read = self._read.partition(b"\n")
        return line


def _start(parts: list[str]) -> _Running:
    """Raises OSError, ValueError."""
    process = subprocess.Popen(
        parts,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,  # so that all that it starts can be ended with it
    )
    running = _Running(process, cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout))
    for pipe in (running.stdin, running.stdout):
        os.set_blocking(pipe.fileno(), False)
    return running


def command_parts(command: str) -> list[str]:
    """The program and its arguments, `~/x` in the user's home. Raises ConfigError for what cannot be taken
    apart, or is nothing."""
    try:
        parts = [os.path.expanduser(part) for part in shlex.split(command)]
    except ValueError as error:
        raise ConfigError(f"--program {command!r} cannot be read ({error}); close its quotes") from None
    if not parts:
        raise ConfigError("--program is empty; give a program and its arguments")
    return parts


def question_line(question: Mapping[str, Any]) -> bytes:
    """One line of ASCII. What JSON has no form for is a text (dates, say), a number that is none is null."""
    return json_text(question, ascii_only=True).encode() + b"\n"


def reply_of(line: bytes, question: Mapping[str, Any]) -> Reply:
    """The verdict that a line is on this question. Raises ValueError for any other line."""
    shown = f"{line[:SHOWN_CHARACTERS].decode('utf-8', 'replace')!r}"
    try:
        said = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown} is no line of JSON ({error!s:.100})") from None
    if not isinstance(said, dict):
        raise ValueError(f"{shown} is no object")
    for name in ("id", "sample"):
        if name not in said or said[name] != question[name] or isinstance(said[name], bool):
            raise ValueError(f"{shown} does not repeat {name} = {question[name]!r}, which was asked about")
    if not isinstance(said.get("keep"), bool):
        raise ValueError(f"{shown} has no keep that is true or false")
    score = _score(said.get("score", 0.0), shown)
    return Reply("right" if said["keep"] else "wrong", score, str(said.get("reason", ""))[:SHOWN_CHARACTERS])


def _score(value: object, shown: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if math.isfinite(score := float(value)):
                return score
    raise ValueError(f"{shown} has a score that is no finite number")


def _exit_status(process: subprocess.Popen[bytes]) -> str:
    """In words. It is only looked at, so that its number stays its own until its group is ended."""
    deadline = time.monotonic() + EXIT_WAIT_SEC
    while True:
        found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None:
            kind = "exit status" if found.si_code == os.CLD_EXITED else "signal"
            return f"{kind} {found.si_status}"
        if time.monotonic() >= deadline:
            return "its output closed"
        time.sleep(0.01)
