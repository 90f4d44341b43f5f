"""Which sequences of a store have a prompt that an evaluation set has too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitstore.common.whole_file import replacing
from logitstore.contamination.evaluation_sets import (
    Way,
    find_contaminated,
    near_texts,
    read_evaluation_sets,
)
from logitstore.decoding.tokenizer_choice import choose_texts
from logitstore.decoding.tokens import TokenTexts
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.chat_text import PromptParser
from logitstore.exchange.texts import last_answer_start, render_of, text_of
from logitstore.inputs.json_text import json_text
from logitstore.manifest.turns import masks_tell_turns
from logitstore.records import LabeledSequence
from logitstore.store import LogitStore
from logitstore.tools.findings import Findings, Progress

SHOWN_CHARACTERS = 500
KIND = "contaminated"


@dataclass(frozen=True)
class ContaminationCheck:
    """What a store's prompts are compared with, and how."""

    against: Sequence[str]
    """Evaluation sets: paths, globs, folders or URLs."""
    against_field: str | None
    ways: Sequence[Way]
    words: int
    """Words in a row that two texts may not share."""
    cosine: float
    storage_options: Mapping[str, Any] | None = None
    tokenizer: str | None = None
    """Folder or tokenizer.json; None is the store's own."""


def check_contamination(
    store: LogitStore,
    check: ContaminationCheck,
    findings: Findings,
    found_path: Path | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Note every record whose prompt is near an evaluation text; (records compared, records found).

    With `found_path`, which ends in .jsonl, each is written there with its partner and score, and beside it
    the ids alone, one a line, as `--without-ids` and `store delete --ids` read them.

    Raises:
        InputNotFoundError, UnsupportedInputError: an evaluation set is not there or cannot be read whole.
        UnsupportedInputError: the store's tokens have no text here.
    """
    partners = read_evaluation_sets(check.against, check.against_field, check.storage_options)
    methods = [near_texts(way, words=check.words, cosine=check.cosine) for way in check.ways]
    counted = _Counted(store, check.tokenizer, progress)
    found: list[dict[str, Any]] = []
    named = set[str]()
    for (record_id, text), match, partner in find_contaminated(counted.prompts(), methods, partners):
        if record_id in named:  # by another of its prompts
            continue
        named.add(record_id)
        found.append(
            {
                "id": record_id,
                "method": match.method,
                "score": round(match.score, 4),
                "partner": partner.place,
                "partner_id": partner.record_id,
                "partner_text": partner.text[:SHOWN_CHARACTERS],
                "prompt": text[:SHOWN_CHARACTERS],
            }
        )
        findings.error_of_record(
            KIND,
            f"record {record_id!r:.120}",
            f"the prompt is near the evaluation text {partner.place} ({match.method} {match.score:.3f})",
        )
    if found_path is not None:
        _write(found, found_path)
    return counted.num_records, len(found)


def ids_path(found_path: Path) -> Path:
    """Where the ids of what was found are."""
    return found_path.with_suffix(".ids")


class _Counted:
    """The prompts of a store, each record's once: the teacher's and, where it is another, the student's."""

    def __init__(self, store: LogitStore, tokenizer: str | None, progress: Progress | None) -> None:
        self._store, self._progress = store, progress
        self._texts, reason = choose_texts(store, tokenizer)
        if not self._texts.known:
            raise UnsupportedInputError(f"{store.uri}: prompts are compared as text: {reason}")
        self.num_records = 0

    def prompts(self) -> Iterator[tuple[tuple[str, str], str]]:
        """((record id, text), text); the samples of a record lie one after the other."""
        parser, before = _parser_of(self._store), None
        turns = masks_tell_turns(self._store.manifest)
        total = int(self._store.shards().column("num_sequences").sum())
        top_k = self._store.manifest.labels.fewest_entries
        for done, sequence in enumerate(self._store.iter_sequences(top_k=top_k), start=1):
            if self._progress:
                self._progress("prompts", done, total)
            if sequence.record_id == before:
                continue
            before = sequence.record_id
            self.num_records += 1
            for seen in _as_seen(sequence):
                start = last_answer_start(seen, masks_tell_turns=turns)
                text = _words_of_user(seen.token_ids_T[: start or None].tolist(), self._texts, parser)
                yield (sequence.record_id, text), text


def _as_seen(sequence: LabeledSequence) -> tuple[LabeledSequence, ...]:
    """By the teacher and, where it sees another prompt, by the student."""
    return (sequence,) if sequence.student_prompt_ids is None else (sequence, sequence.for_student())


def _parser_of(store: LogitStore) -> PromptParser | None:
    """What takes prompts apart; None where they are plain text, or the template gives no hold."""
    try:
        render = render_of(store)
        return None if render is None else PromptParser(render)
    except UnsupportedInputError:
        return None


def _words_of_user(ids: Sequence[int], texts: TokenTexts, parser: PromptParser | None) -> str:
    """The user's turns where the chat template tells them apart, else all but special tokens."""
    messages = None if parser is None else parser.messages(text_of(list(ids), texts))
    if messages:
        return "\n\n".join(message["content"] for message in messages if message["role"] == "user")
    return text_of([one for one in ids if not texts.is_special(one)], texts)


def _write(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    lines = "".join(json_text(one) + "\n" for one in found)
    ids = "".join(json.dumps(one["id"]) + "\n" for one in found)
    for place, text in ((path, lines), (ids_path(path), ids)):
        with replacing(place) as part:
            part.write_text(text, encoding="utf-8", errors="surrogatepass")
