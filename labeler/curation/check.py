"""Responses checked by a program of the user's, and the best of each problem kept: the step `check`.

The program gets one JSON object a line (id, sample, prompt, reasoning, answer, finish_reason, record) and
writes one a line: see `check_program`. Each verdict is written before the next response is shown, so a check
that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from labeler.curation.check_program import NO_VERDICT, CheckProgram, VerdictKind, command_parts, question_line
from labeler.curation.check_records import Records, record_of, refuse_missing
from logitstore.common.config_file import ConfigError
from logitstore.common.whole_file import write_whole
from logitstore.decoding.tokenizer_choice import choose_texts
from logitstore.errors import CorruptManifestError, UnsupportedInputError
from logitstore.exchange.chat_text import reasoning_apart
from logitstore.exchange.merge import merge_stores
from logitstore.exchange.texts import prompt_and_answer
from logitstore.manifest.strict_json import decode_known
from logitstore.manifest.turns import masks_tell_turns
from logitstore.objects.addresses import one_spelling
from logitstore.rows.conditions import Columns, Outcome
from logitstore.rows.selection import Selection
from logitstore.store import LogitStore

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
    settings: dict[str, object]
    """With digests of the program's files and of the records."""
    num_read: int = 0
    num_kept: int = 0
    num_dropped: dict[str, int] = field(default_factory=dict)
    """By reason; "worse" for right ones that others of their problem surpass."""
    num_problems: int = 0
    num_unsolved: int = 0
    """Problems without a right response."""
    num_restarts: int = 0
    """How often this command, and not those before it, ended the program since it gave no verdict."""
    last_trouble: str = ""
    """Why, the last time."""


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
    store: LogitStore, out: Path, settings: CheckSettings, records: Records | None = None
) -> CheckReport:
    """Write to the folder `out` a store of the responses that are kept.

    Args:
        records: found by a response's id, or the id of the record that it is a part of.

    Raises:
        ConfigError: `out` was made from another store, program or records or with other settings, a problem
            has no record, or the program does not work.
        UnsupportedInputError: the store's tokens have no text here, or nothing is left.
    """
    if out.is_file() or one_spelling(out) == store.objects.one_spelling:
        what = "a file" if out.is_file() else "the store itself"
        raise ConfigError(f"--out {out} is {what}; name a folder that is not there yet")
    if records is not None:
        refuse_missing(store, records)
    begun = CheckReport(store.digest, {**asdict(settings), **_contents(settings, records)})
    report_path, verdicts_path = (out.with_name(out.name + end) for end in (".check.json", ".checks.jsonl"))
    before = _before(begun, report_path)
    known = _known(before, verdicts_path)
    if before is None:
        _write(report_path, begun)
    program = CheckProgram(settings.command, settings.timeout_sec)
    verdicts = [*known.values(), *_judged(store, program, records, known, verdicts_path)]
    kept = _best(verdicts, settings.best)
    if not kept:
        raise UnsupportedInputError(f"no response of {len(verdicts):,} is right; see {verdicts_path}")
    if before is not None and before.num_read:
        report = before
    else:
        report = _report(begun, verdicts, kept, program)
        _write(report_path, report)
    text = f"checked {begun.source} {json.dumps(begun.settings, sort_keys=True)}"
    merge_stores([store], str(out), selection=Selection((_Kept(frozenset(kept)),), (text,)))
    return report


def _report(
    begun: CheckReport, verdicts: list[Verdict], kept: list[Key], program: CheckProgram
) -> CheckReport:
    dropped = Counter(verdict.kind for verdict in verdicts if verdict.kind != "right")
    dropped["worse"] = sum(verdict.kind == "right" for verdict in verdicts) - len(kept)
    problems = {verdict.id for verdict in verdicts}
    return CheckReport(
        begun.source,
        begun.settings,
        num_read=len(verdicts),
        num_kept=len(kept),
        num_dropped={name: count for name, count in sorted(dropped.items()) if count},
        num_problems=len(problems),
        num_unsolved=len(problems - {name for name, _ in kept}),
        num_restarts=program.num_ended,
        last_trouble=program.last_trouble,
    )


def _write(path: Path, report: CheckReport) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(asdict(report), indent=1) + "\n")


def _contents(settings: CheckSettings, records: Records | None) -> dict[str, str]:
    """Digests of what else decides about verdicts."""
    given = hashlib.blake2b(digest_size=16)
    for name in sorted(records or ()):
        given.update(question_line({"id": name, "record": (records or {})[name]}))
    return {
        "program": program_digest(settings.command),
        "records": given.hexdigest() if records is not None else "",
    }


def program_digest(command: str) -> str:
    """Digest of the files that a command names. Raises ConfigError for one that cannot be read."""
    hasher = hashlib.blake2b(digest_size=16)
    for place, part in enumerate(command_parts(command)):
        # A program without a slash is one of PATH: an interpreter, say.
        if (place or "/" in part) and Path(part).is_file():
            try:
                with open(part, "rb") as file:
                    hasher.update(hashlib.file_digest(file, "blake2b").digest())
            except OSError as error:
                raise ConfigError(f"--program names {part!r}, which cannot be read ({error})") from None
    return hasher.hexdigest()


def _before(begun: CheckReport, path: Path) -> CheckReport | None:
    """The report of a check that was stopped, or is done. Raises ConfigError where it is another check's."""
    try:
        before = decode_known(CheckReport, json.loads(path.read_bytes()), what="it")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, CorruptManifestError) as error:
        raise ConfigError(
            f"{path} is damaged ({error!s:.100}); choose another place (--out, recipe.out)"
        ) from None
    if (before.source, before.settings) == (begun.source, begun.settings):
        return before
    other = [name for name, value in begun.settings.items() if before.settings.get(name) != value]
    which = "another store" if before.source != begun.source else "this store"
    raise ConfigError(
        f"{path} is of {which}{' with other ' * bool(other)}{', '.join(other)} (of program and records the "
        "content counts); choose another place (--out, recipe.out)"
    )


def _known(before: CheckReport | None, path: Path) -> dict[Key, Verdict]:
    """The verdicts of a check that was stopped, or is done."""
    found: dict[Key, Verdict] = {}
    if before is None:
        return found
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            verdict = Verdict(**json.loads(line))
        except (ValueError, TypeError):
            continue  # Half a line of a check that was killed: its response is shown again.
        found[verdict.id, verdict.sample] = verdict
    if before.num_read:
        return found
    # What the program's own faults left without a verdict is shown again.
    return {key: verdict for key, verdict in found.items() if verdict.kind not in NO_VERDICT}


def _judged(
    store: LogitStore,
    program: CheckProgram,
    records: Records | None,
    known: Mapping[Key, Verdict],
    path: Path,
) -> Iterator[Verdict]:
    texts, reason = choose_texts(store, None)
    if not texts.known:
        raise UnsupportedInputError(f"{store.uri}: responses are checked as text: {reason}")
    turns = masks_tell_turns(store.manifest)
    try:
        with path.open("a", encoding="utf-8") as file:
            if file.tell():
                file.write("\n")  # The last line may be half a line.
            for sequence in store.iter_sequences(top_k=store.manifest.labels.fewest_entries):
                key = (sequence.record_id, sequence.sample_index)
                if key in known:
                    continue
                prompt, answer = prompt_and_answer(sequence, texts, masks_tell_turns=turns)
                reasoning, rest = reasoning_apart(prompt, answer)
                reply = program.ask(
                    {
                        "id": key[0],
                        "sample": key[1],
                        "prompt": prompt,
                        "reasoning": reasoning,
                        "answer": rest,
                        "finish_reason": sequence.finish_reason,
                        "record": record_of(key[0], records) if records is not None else None,
                    }
                )
                verdict = Verdict(*key, reply.kind, reply.score, len(sequence.token_ids_T), reply.reason)
                file.write(json.dumps(asdict(verdict)) + "\n")
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
