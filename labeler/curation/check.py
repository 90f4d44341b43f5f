"""Responses checked by a program of the user's, and the best of each problem kept: the step `check`.

The program gets one JSON object a line (id, sample, prompt, reasoning, answer, finish_reason, record) and
writes one a line: {"keep": true or false, "score": number}. It is started once, and anew after a time-out or
its end. Each verdict is written before the next response is shown, so a check that was stopped goes on.
"""

from __future__ import annotations

import json
import queue
import shlex
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from logitstore.common.config_file import ConfigError
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.chat_text import reasoning_apart
from logitstore.exchange.merge import merge_stores
from logitstore.exchange.texts import prompt_and_answer
from logitstore.rows.selection import Columns, Outcome, Selection
from logitstore.store import LogitStore
from logitstore.viewer.tokenizer_choice import choose_texts

MAX_FAILURES = 3
"""So often in a row may the program end without a verdict before the check ends too."""
SHOWN_CHARACTERS = 400
VerdictKind = Literal["right", "wrong", "timeout", "malformed", "failed"]
Key = tuple[str, int]


@dataclass(frozen=True)
class CheckSettings:
    """What decides about the result."""

    command: str
    """The program and its arguments, as in a shell but without one."""
    best: int
    """Responses kept of each problem: those with the highest score, then the shortest."""
    timeout_sec: float
    """Longest wait for a verdict; a response without one is dropped."""


@dataclass(frozen=True)
class Verdict:
    """What the program said of one response."""

    id: str
    sample: int
    kind: VerdictKind
    score: float
    num_tokens: int
    reason: str = ""


@dataclass(frozen=True)
class CheckReport:
    """What a check did; `OUT.check.json`."""

    source: str
    """Digest of the store."""
    settings: Mapping[str, Any]
    num_read: int = 0
    num_kept: int = 0
    num_dropped: Mapping[str, int] = field(default_factory=dict)
    """By reason; "worse" for right ones that others of their problem surpass."""
    num_problems: int = 0
    num_unsolved: int = 0
    """Problems without a right response."""


@dataclass(frozen=True)
class _Kept:
    """The condition of the sequences that are kept."""

    keys: frozenset[Key]

    def outcome(self, columns: Columns, size: int) -> Outcome:
        if "record_id" not in columns or "sample_index" not in columns:
            return np.ones(size, bool), np.ones(size, bool)
        pairs = zip(columns["record_id"].tolist(), columns["sample_index"].tolist(), strict=True)
        true_S = np.fromiter((pair in self.keys for pair in pairs), bool, size)
        return true_S, ~true_S


def check_responses(
    store: LogitStore, out: Path, settings: CheckSettings, records: Mapping[str, Mapping[str, Any]]
) -> CheckReport:
    """Write to the folder `out` a store of the responses that are kept.

    Args:
        records: by id, what else the program shall see of a problem, the right answer say.

    Raises:
        ConfigError: `out` was made from another store or with other settings, or the program does not work.
        UnsupportedInputError: the store's tokens have no text here, or nothing is left.
    """
    begun = CheckReport(store.digest, asdict(settings))
    report_path, verdicts_path = (out.with_name(out.name + end) for end in (".check.json", ".checks.jsonl"))
    known = _known(begun, report_path, verdicts_path)
    if not known:
        report_path.parent.mkdir(parents=True, exist_ok=True)
        report_path.write_text(json.dumps(asdict(begun), indent=1) + "\n")
    verdicts = [*known.values(), *_judged(store, settings, records, known, verdicts_path)]
    kept = _best(verdicts, settings.best)
    if not kept:
        raise UnsupportedInputError(f"no response of {len(verdicts):,} is right; see {verdicts_path}")
    text = f"checked {begun.source} {settings.command!r} best {settings.best}"
    merge_stores([store], str(out), selection=Selection((_Kept(frozenset(kept)),), (text,)))
    dropped = Counter(verdict.kind for verdict in verdicts if verdict.kind != "right")
    dropped["worse"] = sum(verdict.kind == "right" for verdict in verdicts) - len(kept)
    problems = {verdict.id for verdict in verdicts}
    report = CheckReport(
        begun.source,
        begun.settings,
        len(verdicts),
        len(kept),
        {name: count for name, count in sorted(dropped.items()) if count},
        len(problems),
        len(problems - {name for name, _ in kept}),
    )
    report_path.write_text(json.dumps(asdict(report), indent=1) + "\n")
    return report


def _known(begun: CheckReport, report_path: Path, verdicts_path: Path) -> dict[Key, Verdict]:
    """The verdicts of a check that was stopped, or is done."""
    try:
        before = CheckReport(**json.loads(report_path.read_bytes()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{report_path} is damaged ({error!s:.100}); choose another --out") from None
    if (before.source, before.settings) != (begun.source, begun.settings):
        raise ConfigError(
            f"{report_path} is of another store or other settings ({before.settings}); choose another --out"
        )
    found: dict[Key, Verdict] = {}
    if verdicts_path.exists():
        for line in verdicts_path.read_text(encoding="utf-8").splitlines():
            try:
                verdict = Verdict(**json.loads(line))
            except (ValueError, TypeError):
                continue  # Half a line of a check that was killed: its response is shown again.
            found[verdict.id, verdict.sample] = verdict
    return found


def _judged(
    store: LogitStore,
    settings: CheckSettings,
    records: Mapping[str, Mapping[str, Any]],
    known: Mapping[Key, Verdict],
    path: Path,
) -> Iterator[Verdict]:
    texts, reason = choose_texts(store, None)
    if not texts.known:
        raise UnsupportedInputError(f"{store.uri}: responses are checked as text: {reason}")
    top_k = 1 if store.manifest.labels.support == "top" else None
    program = _Program(settings)
    try:
        with path.open("a", encoding="utf-8") as file:
            if known:
                file.write("\n")  # The last line may be half a line.
            for sequence in store.iter_sequences(top_k=top_k):
                key = (sequence.record_id, sequence.sample_index)
                if key in known:
                    continue
                prompt, answer = prompt_and_answer(sequence.token_ids_T, sequence.prompt_length, texts)
                reasoning, rest = reasoning_apart(prompt, answer)
                kind, score, said = program.ask(
                    {
                        "id": key[0],
                        "sample": key[1],
                        "prompt": prompt,
                        "reasoning": reasoning,
                        "answer": rest,
                        "finish_reason": sequence.finish_reason,
                        "record": records.get(key[0]),
                    }
                )
                verdict = Verdict(*key, kind, score, len(sequence.token_ids_T), said)
                file.write(json.dumps(asdict(verdict), ensure_ascii=False) + "\n")
                file.flush()
                yield verdict
    finally:
        program.close()


def _best(verdicts: list[Verdict], best: int) -> list[Key]:
    by_problem: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.kind == "right":
            by_problem.setdefault(verdict.id, []).append(verdict)
    return [
        (verdict.id, verdict.sample)
        for right in by_problem.values()
        for verdict in sorted(right, key=lambda one: (-one.score, one.num_tokens, one.sample))[:best]
    ]


class _Program:
    """The user's program, one question at a time."""

    def __init__(self, settings: CheckSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._failures = 0

    def ask(self, question: Mapping[str, Any]) -> tuple[VerdictKind, float, str]:
        """(kind, score, why it is no verdict). Raises ConfigError for a program that does not work."""
        process = self._started()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(question, ensure_ascii=False) + "\n")
            process.stdin.flush()
            line = self._lines.get(timeout=self._settings.timeout_sec)
        except queue.Empty:
            self.close()
            return "timeout", 0.0, f"no verdict within {self._settings.timeout_sec:g} s"
        except OSError:
            line = None
        if line is None:
            return self._ended(process)
        self._failures = 0
        try:
            said = json.loads(line)
            keep, score = said["keep"], float(said.get("score", 0.0))
            if not isinstance(keep, bool) or score != score:
                raise ValueError("keep must be true or false, and score a number")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return "malformed", 0.0, f"{line[:SHOWN_CHARACTERS]!r}: {error!s:.100}"
        return ("right" if keep else "wrong"), score, str(said.get("reason", ""))[:SHOWN_CHARACTERS]

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            try:
                self._process = subprocess.Popen(
                    shlex.split(self._settings.command),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    encoding="utf-8",
                )
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"--program {self._settings.command!r} cannot be started ({error}); give a program and "
                    "its arguments, for example 'python3 check_number.py'"
                ) from None
            self._lines = queue.Queue()
            assert self._process.stdout is not None
            arguments = (self._process.stdout, self._lines)
            threading.Thread(target=_read_lines, args=arguments, name="check", daemon=True).start()
        return self._process

    def _ended(self, process: subprocess.Popen[str]) -> tuple[VerdictKind, float, str]:
        self.close()
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise ConfigError(
                f"--program {self._settings.command!r} ended {MAX_FAILURES} times in a row without a verdict "
                f"(exit status {process.returncode}); it must read a JSON object a line and answer each with "
                'a line such as {"keep": true, "score": 1.0}, flushed'
            )
        return "failed", 0.0, f"the program ended with {process.returncode}"


def _read_lines(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)
