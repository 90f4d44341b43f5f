"""Further prompts after given ones, written by the teacher: the step `expand`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeler.curation.asking import (
    AskPaths,
    Question,
    ask,
    dropped_line,
    filled,
    read_questions,
    write_lines,
)
from labeler.curation.settings import ExpandSettings
from labeler.curation.sifting import Source
from labeler.prompting.tokenization import Tokenizer, load_tokenizer
from logitstore.contamination.prompt_texts import words_of

QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»"}


@dataclass(frozen=True)
class ExpandReport:
    """What the step did."""

    num_seeds: int
    num_new: int
    num_dropped: Mapping[str, int]
    """By reason: "truncated", "empty", "same" (as the given prompt or an earlier new one of it), and of the
    given ones "unreadable" and "repeated"."""


def expand(
    document: Mapping[str, Any],
    source: Source,
    out: Path,
    settings: ExpandSettings,
    *,
    quiet: bool = False,
    also_counted: Sequence[str] = (),
) -> ExpandReport:
    """Write to `out` the given prompts and, after them, the teacher's, each with its `parent`'s id.

    Every record has its text as `prompt`, the given ones beside their own fields.

    Args:
        document: settings of a job; its teacher, workers and limits are used.
        also_counted: stores whose money counts for `limits.max_cost` too.

    Raises:
        OwnJobError: the teacher did not answer everything.
    """
    paths = AskPaths(out)
    questions, dropped = read_questions(source)
    asks = ((one.ask_id, filled(settings.template, {"prompt": one.prompt.text})) for one in questions)
    job, store = ask(
        document, asks, paths, sampling_of(settings), rows=False, quiet=quiet, also_counted=also_counted
    )
    tokenizer = load_tokenizer(job.teacher, job.input, job.sampling)
    texts: dict[tuple[str, int], tuple[str, str]] = {}
    for reply in store.iter_sequences():
        response = reply.token_ids_T[reply.prompt_length :].tolist()
        texts[reply.record_id, reply.sample_index] = text_of(response, tokenizer), reply.finish_reason
    new = list(_new_prompts(questions, texts, settings.n, dropped))
    given = ({**one.prompt.record, "id": one.ask_id, "prompt": one.prompt.text} for one in questions)
    write_lines(paths.dropped, dropped)
    write_lines(out, [*(given if settings.with_seeds else ()), *new])
    return ExpandReport(len(questions), len(new), dict(Counter(str(line["method"]) for line in dropped)))


def sampling_of(settings: ExpandSettings) -> dict[str, Any]:
    """`[sampling]` of the job that asks."""
    return {
        "n": settings.n,
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed,
    }


def _new_prompts(
    questions: list[Question],
    texts: Mapping[tuple[str, int], tuple[str, str]],
    n: int,
    dropped: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    for one in questions:
        known = {tuple(words_of(one.prompt.text))}
        for sample in range(n):
            text, finish_reason = texts.get((one.ask_id, sample), ("", "missing"))
            record = {"id": f"{one.ask_id}.{sample}", "parent": one.ask_id, "prompt": text}
            words = tuple(words_of(text))
            reason = (
                "truncated"
                if finish_reason == "length"
                else "empty"
                if not words
                else "same" * (words in known)
            )
            if reason:
                dropped.append(
                    dropped_line(one.prompt.place, record["id"], reason, record, partner_id=one.ask_id)
                )
                continue
            known.add(words)
            yield record


def text_of(response: list[int], tokenizer: Tokenizer) -> str:
    """A reply as a prompt: without markers, white space around it and quotation marks around the whole."""
    ends = {*tokenizer.ends.token_ids}
    text = tokenizer.decode([token_id for token_id in response if token_id not in ends]).strip()
    if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        return text[1:-1].strip()
    return text
