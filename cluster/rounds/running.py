"""Rounds from beginning to end, or from where they were interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.errors import JobRefusedError
from cluster.rounds.config import Documents, RoundsFile
from cluster.rounds.ledger import Ledger, only_writer, read_ledger, write_ledger
from cluster.rounds.steps import Command, Rounds, run_command
from logitstore.common.config_file import flatten
from logitstore.common.whole_file import remove_parts

MAY_CHANGE = ("rounds.count", "stop.")
SHARED = "acceptance_at_least"
"""Figure of an evaluation: the mean of sum min(p, q) over the stored ids."""
Say = Callable[[str], None]


def run_rounds(
    file: RoundsFile, documents: Documents, *, say: Say = lambda _: None, command: Command = run_command
) -> Ledger:
    """Do what is not done yet, step by step; the ledger when the rounds have ended.

    Every step can begin again, so a process that dies at any place is followed by another with the same
    command. Raises JobRefusedError for rounds that were begun with other settings, or that another process
    works at, StepFailedError for a step that failed.
    """
    folder = Path(file.rounds.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder):
        for place in (folder, *folder.glob("round-*")):
            remove_parts(place)
        rounds = Rounds(file.rounds, documents, command)
        if read_ledger(folder) is None:
            rounds.check()
        ledger = _begun(folder, file, documents)
        ledger.ended = ""
        last = 0
        for number in range(1, file.rounds.count + 1):
            for name, step in _steps_before_stopping(rounds, number):
                _do(folder, ledger, name, step, say)
            ledger.ended = _why_stop(file, ledger, number)
            if ledger.ended:
                break
            _do(folder, ledger, f"{number}/train", lambda number=number: rounds.train(number), say)
            last = number
        if last:
            name = f"{last}/last"
            _do(folder, ledger, name, lambda: rounds.measure_last(last), say)
        ledger.ended = ledger.ended or f"all {file.rounds.count} rounds are done"
        write_ledger(folder, ledger)
        return ledger


def last_student(ledger: Ledger, documents: Documents) -> str:
    """Folder of the student that the rounds ended with."""
    trained = [found["student"] for name, found in ledger.steps.items() if name.endswith("/train")]
    return trained[-1] if trained else documents.train["student"]["model"]


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A line of the report: the student that answered in a round, or the last one, which wrote nothing."""

    name: str
    own_kl: float | None
    """KL(teacher, student) on the student's own text, nats."""
    teacher_kl: float
    """The same on the teacher's text."""
    own_shared: float | None
    """Mass that both give to the same stored tokens, the mean of sum min(p, q), on the student's own text:
    like the divergences of rounds, and unlike the KL, it never makes much of what the student leaves out."""
    teacher_shared: float | None
    outside: float | None
    """The teacher's mass outside the stored entries, on the student's own text."""


def report_rows(ledger: Ledger) -> list[ReportRow]:
    """By round, then of the last student."""
    rows = []
    for name, found in ledger.steps.items():
        number, _, step = name.partition("/")
        if step not in ("measure", "last"):
            continue
        own, teacher = found.get("own"), found["teacher"]
        rows.append(
            ReportRow(
                name="last student" if own is None else f"round {number}",
                own_kl=None if own is None else own["kl"],
                teacher_kl=teacher["kl"],
                own_shared=None if own is None else own.get(SHARED),
                teacher_shared=teacher.get(SHARED),
                outside=None if own is None else 1 - own["teacher_mass"],
            )
        )
    # Rounds that went on after a last student have more than one: only the newest is the last.
    return [row for row in rows if row.own_kl is not None] + [row for row in rows if row.own_kl is None][-1:]


@dataclass(frozen=True, slots=True)
class Rejected:
    """Answers of a round that nobody learns from."""

    number: str
    """Number of the round."""
    step: Literal["answer", "score"]
    """Whether they were rejected as the student wrote them, prompts that it was not given included, or as the
    teacher scored them."""
    num_rejected: int
    num_all: int
    by_kind: dict[str, int]
    """By the kinds of the labeler's rejects; empty in ledgers of earlier versions."""

    def text(self, folder: str) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.by_kind.items()))
        store = "answers" if self.step == "answer" else "scores"
        return (
            f"round {self.number}: {self.num_rejected} of {self.num_all} "
            + ("prompts or answers of the student" if self.step == "answer" else "answers to be scored")
            + f" were rejected{f' ({kinds})' if kinds else ''}, as {folder}/round-{self.number}/{store} says"
        )


def rejected_answers(ledger: Ledger) -> list[Rejected]:
    """By round and step in which some were rejected."""
    found = []
    for name, step in ledger.steps.items():
        number, _, kind = name.partition("/")
        by_kind = step.get("rejects", {})
        if kind == "answer" and by_kind:
            num_rejected = sum(by_kind.values())
            found.append(Rejected(number, kind, num_rejected, step["sequences"] + num_rejected, by_kind))
        elif kind == "score":
            num_written = ledger.steps.get(f"{number}/texts", {}).get("records", 0)
            # Earlier versions did not note how many were scored.
            num_rejected = num_written - step.get("sequences", num_written)
            if num_rejected:
                found.append(Rejected(number, kind, num_rejected, num_written, by_kind))
    return found


def support_rows(ledger: Ledger) -> list[tuple[int, float | None, float | None]]:
    """By K, in the last round: the teacher's mass outside the K likeliest tokens on the student's own text
    and on the teacher's."""
    found = [step["outside"] for step in ledger.steps.values() if "outside" in step]
    if not found:
        return []
    own, teacher = found[-1]["own"], found[-1]["teacher"]
    return [(k, own.get(str(k)), teacher.get(str(k))) for k in sorted({*map(int, own), *map(int, teacher)})]


def _steps_before_stopping(rounds: Rounds, number: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for name in ("answer", "texts", "score", "measure"):
        step = getattr(rounds, name)
        yield f"{number}/{name}", lambda step=step: step(number)


def _do(folder: Path, ledger: Ledger, name: str, step: Callable[[], dict[str, Any]], say: Say) -> None:
    if name in ledger.steps:
        return
    say(f"{name} ...")
    ledger.steps[name] = step()
    write_ledger(folder, ledger)
    for one in rejected_answers(ledger):
        if f"{one.number}/{one.step}" == name:
            say(one.text(str(folder)))


def _begun(folder: Path, file: RoundsFile, documents: Documents) -> Ledger:
    settings = {**flatten(file.model_dump(mode="json")), **flatten(documents.model_dump(mode="json"))}
    ledger = read_ledger(folder)
    if ledger is None:
        ledger = Ledger(settings)
        write_ledger(folder, ledger)
        return ledger
    differing = [
        f"{name}: {ledger.settings.get(name)!r} there, {settings.get(name)!r} here"
        for name in sorted({*ledger.settings, *settings})
        if ledger.settings.get(name) != settings.get(name) and not name.startswith(MAY_CHANGE)
    ]
    if differing:
        raise JobRefusedError(
            f"the rounds in {folder} were begun with other settings: {'; '.join(differing[:5])}. Give those, "
            "or choose another rounds.folder"
        )
    ledger.settings = settings
    return ledger


def _why_stop(file: RoundsFile, ledger: Ledger, number: int) -> str:
    kl = ledger.steps[f"{number}/measure"]["own"]["kl"]
    before = ledger.steps.get(f"{number - 1}/measure")
    if file.stop.kl_below is not None and kl <= file.stop.kl_below:
        return (
            f"the KL on the student's own text is {kl:.4f} nats, at most stop.kl_below = "
            f"{file.stop.kl_below:g}"
        )
    if file.stop.gain_below is not None and before is not None:
        earlier = before["own"]["kl"]
        gain = 1 - kl / earlier if earlier else 0.0
        if gain < file.stop.gain_below:
            return (
                f"the KL on the student's own text fell by {gain:.1%} to {kl:.4f} nats, less than "
                f"stop.gain_below = {file.stop.gain_below:g}"
            )
    return ""
