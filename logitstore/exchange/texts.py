"""A store as text for anyone's trainer: conversations, or prompts and completions, one JSON object a line.

The text is that of the store's ids, by the tokenizer that it keeps.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from logitstore.common.store_warning import StoreWarning
from logitstore.common.whole_file import check_replaceable, replacing
from logitstore.decoding.tokenizer_choice import choose_texts
from logitstore.decoding.tokens import TokenTexts
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.chat_text import PromptParser, Render, reasoning_apart, renderer
from logitstore.manifest.turns import masks_tell_turns
from logitstore.records import LabeledSequence, Segment
from logitstore.rows.selection import Selection
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import files_in, read_file, stored_tokenizer

TextForm = Literal["messages", "prompt-completion"]
Progress = Callable[[str, int, int], None]
NO_CHARACTER = "\ufffd"
"""What stands for bytes that are no character."""


def export_texts(
    store: LogitStore,
    path: Path,
    form: TextForm,
    *,
    selection: Selection | None = None,
    tokenizer: str | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Write the selected sequences; how many were written and how many are no such text and left out.

    "messages": {"id", "messages", "finish_reason", "flags"}, the answer last, reasoning apart as
    `reasoning_content`. "prompt-completion": {"id", "prompt", "completion", ...}, word for word as the
    teacher had them but for the tokens that end a response. Where students see another prompt than the
    teacher, it is theirs: who trains on the text must not see what only the teacher may.

    Raises UnsupportedInputError where the store keeps no tokenizer, no sequence could be written, or a
    sample's id is that of another record.
    """
    check_replaceable(path)
    texts, reason = choose_texts(store, tokenizer)
    if not texts.known:
        raise UnsupportedInputError(f"{store.uri}: text needs a tokenizer: {reason}")
    turns = masks_tell_turns(store.manifest)
    record_of = _messages_record(store, texts, turns) if form == "messages" else _pair_record(texts, turns)
    total = int(store.shards().column("num_sequences").sum())
    written = left_out = num_odd = 0
    names = set[str]()
    with replacing(path) as part:
        with part.open("w", encoding="utf-8") as file:
            chosen = (selection or Selection()).sequences(store, top_k=store.manifest.labels.fewest_entries)
            for sequence in chosen:
                record = record_of(sequence.for_student())
                if record is None:
                    left_out += 1
                else:
                    written += 1
                    _refuse_again(record["id"], names)
                    line = json.dumps(record, ensure_ascii=False)
                    num_odd += NO_CHARACTER in line or not texts.knows_all(sequence.token_ids_T)
                    file.write(line + "\n")
                if progress:
                    progress("sequences", written + left_out, total)
        if left_out and not written:
            raise UnsupportedInputError(
                f"{store.uri}: of {left_out} sequences none is a prompt by the chat template with an answer; "
                "export --to prompt-completion"
            )
    if num_odd:
        warnings.warn(
            f"{path}: {num_odd:,} sequences hold bytes that are no characters, as a response that was cut "
            f"may end, or ids that are no tokens; they stand there as {NO_CHARACTER}, or as numbers",
            StoreWarning,
            stacklevel=2,
        )
    return written, left_out


RecordOf = Callable[[LabeledSequence], dict[str, Any] | None]


def _pair_record(texts: TokenTexts, turns: bool) -> RecordOf:
    def record(sequence: LabeledSequence) -> dict[str, Any] | None:
        prompt, answer = prompt_and_answer(sequence, texts, masks_tell_turns=turns)
        return {**_head(sequence), "prompt": prompt, "completion": answer}

    return record


def _messages_record(store: LogitStore, texts: TokenTexts, turns: bool) -> RecordOf:
    render = render_of(store)
    parser = None if render is None else PromptParser(render)

    def record(sequence: LabeledSequence) -> dict[str, Any] | None:
        prompt, answer = prompt_and_answer(sequence, texts, masks_tell_turns=turns)
        messages = [{"role": "user", "content": prompt}] if parser is None else parser.messages(prompt)
        if not messages or not prompt:
            return None
        earlier = [_answer("", one["content"]) if one["role"] == "assistant" else one for one in messages]
        return {**_head(sequence), "messages": [*earlier, _answer(prompt, answer)]}

    return record


def _answer(prompt: str, text: str) -> dict[str, str]:
    reasoning, content = reasoning_apart(prompt, text)
    message = {"role": "assistant", "content": content}
    return message if reasoning is None else message | {"reasoning_content": reasoning}


def _head(sequence: LabeledSequence) -> dict[str, Any]:
    name = sequence.record_id + (f"#{sequence.sample_index}" if sequence.sample_index else "")
    return {"id": name, "finish_reason": sequence.finish_reason, "flags": list(sequence.flags)}


def _refuse_again(name: str, names: set[str]) -> None:
    """Raises UnsupportedInputError for an id that one of `names` has; only those with a # can come again."""
    if "#" not in name:
        return
    if name in names:
        raise UnsupportedInputError(
            f"a sample and a record of its name would both have the id {name!r:.120}; leave one of the two "
            "out, by --without-ids or --where"
        )
    names.add(name)


def prompt_and_answer(
    sequence: LabeledSequence, texts: TokenTexts, *, masks_tell_turns: bool
) -> tuple[str, str]:
    """The text up to the last answer, and the answer without the markers that end it."""
    start = last_answer_start(sequence, masks_tell_turns=masks_tell_turns)
    return texts_around(sequence.token_ids_T, start, texts)


def texts_around(token_ids_T: np.ndarray, start: int, texts: TokenTexts) -> tuple[str, str]:
    """The text before `start` and the text from there on, without the markers that end it."""
    ids = token_ids_T.tolist()
    end = len(ids)
    while end > start and texts.is_special(ids[end - 1]):
        end -= 1
    return text_of(ids[:start], texts), text_of(ids[start:end], texts)


def last_answer_start(sequence: LabeledSequence, *, masks_tell_turns: bool) -> int:
    """Where the last of a sequence's answers begins: behind the prompt, but for a conversation of which
    several turns are labeled (`labels.turns = "all"`), whose segments or loss mask tell them apart."""
    if sequence.segments_T is not None:
        return last_run_start(sequence.segments_T != Segment.CONTEXT, sequence.prompt_length)
    if not masks_tell_turns:
        return sequence.prompt_length
    counts_T = np.zeros(len(sequence.token_ids_T), bool)
    mask_N = sequence.loss_mask_N[: len(counts_T) - sequence.label_start]
    counts_T[sequence.label_start : sequence.label_start + len(mask_N)] = mask_N
    return last_run_start(counts_T, sequence.prompt_length)


def last_run_start(counts_T: np.ndarray, prompt_length: int) -> int:
    """Where the last run of tokens that count begins, of several; of one it is the prompt's end."""
    starts = np.flatnonzero(counts_T & ~np.concatenate([[False], counts_T[:-1]]))
    return max(int(starts[-1]), prompt_length) if len(starts) > 1 else prompt_length


def text_of(token_ids: list[int], texts: TokenTexts) -> str:
    return b"".join(map(texts.raw, token_ids)).decode("utf-8", errors="replace")


def render_of(store: LogitStore, folder: Path | None = None) -> Render | None:
    """The chat template that the store keeps, else the `folder`'s; None where its prompts have none.

    Raises UnsupportedInputError where it keeps none.
    """
    settings = store.manifest.config.get("input")
    settings = settings if isinstance(settings, dict) else {}
    if settings.get("chat_template") is False:
        return None
    files = dict(_stored_files(store)) or ({} if folder is None else files_in(folder))
    config = _object_of(files.get("tokenizer_config.json", b"{}"))
    template = files.get("chat_template.jinja", b"").decode("utf-8", "replace") or config.get("chat_template")
    if isinstance(template, list):
        named = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str):
        raise UnsupportedInputError(
            f"{store.uri} keeps no chat template, by which messages are told apart; export --to "
            "prompt-completion"
        )
    special = {name: _token_text(value) for name, value in config.items() if name.endswith("_token")}
    variables = settings.get("chat_template_kwargs")
    return renderer(template, special, variables if isinstance(variables, dict) else {})


def _object_of(data: bytes) -> dict[str, Any]:
    """What a JSON file of a tokenizer holds; nothing of one that is damaged, which says no chat template."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _stored_files(store: LogitStore) -> Iterator[tuple[str, bytes]]:
    found = stored_tokenizer(store.objects)
    for file in found.files if found is not None else ():
        if file.name in ("tokenizer_config.json", "chat_template.jinja"):
            yield file.name, read_file(store.objects, file)


def _token_text(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")
