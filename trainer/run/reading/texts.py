"""Plain text to train on beside labels: read and tokenised once, and kept as a store without a teacher.

As a store it is streamed, ordered, packed and resumed like labels. Its rows hold the next token alone, with
all mass, and are never read as a teacher's: its alpha is 0.

Shape legend: T tokens, N label rows.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.common.config_file import ConfigError
from logitstore.inputs.listing import input_fingerprint
from logitstore.inputs.raw_record import RawRecord
from logitstore.inputs.reading import iter_records
from logitstore.manifest.fields import SEGMENTS, InputInfo, LabelSpec, Manifest, TeacherInfo, TokenizerInfo
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.records import LabeledSequence, Reject, Segment
from logitstore.rows.silent_rows import text_rows
from logitstore.store import LogitStore
from trainer.run.reading.text_template import TemplateRefusesError, TextTemplate
from trainer.run.settings.data import TextSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_TEACHER = "none (plain text)"
"""What the manifest of such a store calls its teacher."""
UNIT_SEQUENCES = 2048


def text_store(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    vocab_size: int,
    with_segments: bool = False,
) -> Path:
    """The folder of the store of a text, below `folder`; made unless it is there for the same files.

    `vocab_size` is the width of the labels' stores. `with_segments` for `data.segments`: what is learned is
    "answer", a closing end of text "end". The store's rejects are the records that were dropped. Raises
    ConfigError for a record that cannot be used, unless such are dropped, or if none is left, and
    InputNotFoundError and the like as the labeler's readers do.
    """
    vocabulary = tokenizer_fingerprint(tokenizer.get_vocab())
    files = input_fingerprint(source.uri, storage_options=source.storage_options)
    key = repr((files, source.kind, source.bad_records, vocabulary, tokenizer.chat_template, vocab_size))
    key += SEGMENTS if with_segments else ""
    columns = (SEGMENTS,) if with_segments else ()
    path = folder / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    if path.exists():
        return path
    temporary = folder / f"{path.name}.{uuid.uuid4().hex}"
    manifest = Manifest(
        teacher=TeacherInfo(NO_TEACHER, None, "", "float32", None, "text", "", "import"),
        tokenizer=TokenizerInfo(vocabulary, len(tokenizer)),
        labels=LabelSpec(vocab_size, 1, (1.0,), "logit_f16", "score", "response", extra_columns=columns),
        input=InputInfo(source.uri, source.kind, {}),
        features=columns,
        created="1970-01-01T00:00:00Z",  # the same text is the same store, whenever it was read
    )
    try:
        store = LogitStore.create(str(temporary), manifest)
        records, unit, kept = _sequences(source, tokenizer, with_segments), 0, 0
        while of_unit := list(islice(records, UNIT_SEQUENCES)):
            sequences = [one for one in of_unit if isinstance(one, LabeledSequence)]
            rejects = [one for one in of_unit if isinstance(one, Reject)]
            store.commit_unit(f"text-{unit}", unit, sequences, rejects, seconds=0.0, worker="text")
            unit, kept = unit + 1, kept + len(sequences)
        if not kept:
            raise ConfigError(f"data.texts: no record of {source.uri} can be used; remove it or give another")
        if not path.exists():  # another process may have been first
            temporary.rename(path)
    except OSError:
        if not path.exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def dropped_records(path: Path) -> list[Reject]:
    """The records that were left out of the store of a text, and why."""
    return LogitStore.open(str(path)).rejects()


class _BadRecordError(ConfigError):
    """A record that cannot be used, by name."""


def _sequences(
    source: TextSource, tokenizer: PreTrainedTokenizerBase, with_segments: bool
) -> Iterator[LabeledSequence | Reject]:
    records = iter_records(source.uri, storage_options=source.storage_options)
    first = next(records, None)
    if first is None:
        raise ConfigError(f"data.texts: {source.uri} holds no record; remove it or give another")
    template = TextTemplate(tokenizer)
    for raw in chain([first], records):
        try:
            sequence = _sequence(raw, source, tokenizer, template)
        except _BadRecordError as error:
            if source.bad_records == "refuse":
                raise
            yield Reject(raw.file, raw.line, None, str(error), kind="invalid_record")
            continue
        yield _segmented(sequence, tokenizer) if with_segments else sequence


def _segmented(sequence: LabeledSequence, tokenizer: PreTrainedTokenizerBase) -> LabeledSequence:
    segments_T = np.full(len(sequence.token_ids_T), Segment.ANSWER, np.uint8)
    segments_T[: sequence.prompt_length] = Segment.CONTEXT
    ends = np.flatnonzero(sequence.token_ids_T == tokenizer.eos_token_id)
    # Templates of ChatML's form write a line's end behind it.
    if len(ends) and not str(tokenizer.decode(sequence.token_ids_T[ends[-1] + 1 :].tolist())).strip():
        segments_T[max(ends[-1], sequence.prompt_length) :] = Segment.END
    return replace(sequence, segments_T=segments_T)


def _sequence(
    raw: RawRecord, source: TextSource, tokenizer: PreTrainedTokenizerBase, template: TextTemplate
) -> LabeledSequence:
    where = f"data.texts: {source.uri}, {raw.file} record {raw.line}"
    if raw.record is None:
        raise _BadRecordError(f"{where}: {raw.error}")
    token_ids, prompt_length = _tokens(raw, source, tokenizer, template, where)
    label_start = max(prompt_length, 1)
    if len(token_ids) <= label_start:
        raise _BadRecordError(f"{where}: no token is left to learn; remove the record")
    return _as_sequence(f"{raw.file}:{raw.line}", token_ids, prompt_length, label_start)


def _tokens(
    raw: RawRecord,
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    template: TextTemplate,
    where: str,
) -> tuple[list[int], int]:
    """(token ids, how many of them are the prompt)."""
    record: Mapping[str, Any] = raw.record or {}
    needed = {"text": ("text",), "prompt_response": ("prompt", "response"), "messages": ("messages",)}
    for name in needed[source.kind]:
        if not isinstance(record.get(name), list if name == "messages" else str):
            raise _BadRecordError(
                f"{where} has {name} = {str(record.get(name))[:60]!r}: kind = {source.kind!r} needs "
                f"{'a list of messages' if name == 'messages' else 'text'} there; its fields are "
                f"{', '.join(record)}"
            )
    end = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    if source.kind == "text":
        return [*tokenizer(record["text"])["input_ids"], *end], 0  # type: ignore[misc]  # a list of ids
    if source.kind == "messages":
        messages = record["messages"]
        last = messages[-1] if messages else None
        if not isinstance(last, Mapping) or last.get("role") != "assistant":
            raise _BadRecordError(f"{where}: the last message must be the assistant's, which is learned")
    else:
        messages = [
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": record["response"]},
        ]
    if tokenizer.chat_template is None:
        if source.kind == "messages":
            raise _BadRecordError(
                f"{where}: the tokenizer has no chat template; use kind = 'prompt_response'"
            )
        prompt: Any = tokenizer(record["prompt"])["input_ids"]
        response: Any = tokenizer(record["response"], add_special_tokens=False)["input_ids"]
        return [*prompt, *response, *end], len(prompt)
    try:
        return template.tokens(messages, record.get("tools") or None)
    except TemplateRefusesError as error:
        raise _BadRecordError(f"{where}: {error}") from error


def _as_sequence(
    record_id: str, token_ids: list[int], prompt_length: int, label_start: int
) -> LabeledSequence:
    token_ids_T = np.array(token_ids, dtype=np.int32)
    labels_N = token_ids_T[label_start:]
    return LabeledSequence(
        record_id=record_id,
        sample_index=0,
        token_ids_T=token_ids_T,
        prompt_length=prompt_length,
        label_start=label_start,
        rows=text_rows(labels_N),
        loss_mask_N=np.ones(len(labels_N), dtype=bool),
        finish_reason="scored",
    )
