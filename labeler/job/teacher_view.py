"""What the teacher will see of a job's input: its first records, their borders, and where responses end."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from labeler.config.loading import JobConfig
from labeler.driver.plan_pass import clock_in_words, read_input, unread_in_words
from labeler.errors import BadRecordError
from labeler.job.segment_colours import Paint, legend, plain
from labeler.planning.preflight import Prepared
from labeler.prompting.prompts import PromptBuilder
from labeler.prompting.segment_marks import NO_MARKS, find_marks
from labeler.prompting.tokenization import Tokenizer, model_file
from labeler.records import TokenizedPrompt
from labeler.worker.segmenting import Segmenter
from logitstore.inputs.identity import OWN_ROLES
from logitstore.inputs.parts import id_of
from logitstore.inputs.raw_record import RawRecord
from logitstore.manifest.fields import InputInfo
from logitstore.records import SEGMENT_NAMES, Segment
from logitstore.shard.segments import runs_of

NUM_SHOWN = 2
NUM_LOOKED_AT = 20
"""Records at the start, of which the first good ones are shown."""
BORDER_IDS = 4
MAX_SHOWN = 600
MAX_FIELDS = 20
SETTING_OF_ADVICE = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
}
"""Settings of `[sampling]` by their names in a generation_config.json, of which vLLM itself takes all but the
last where nothing else is asked for."""


def seen_by_teacher(job: JobConfig, prepared: Prepared, paint: Paint = plain) -> tuple[str, ...]:
    """Lines for the user: records with their markers, and the ids where the response begins.

    `paint` colours what belongs to a segment.
    """
    tokenizer, lines = prepared.tokenizer, list[str]()
    marks = find_marks(tokenizer, job.labels.reasoning) if job.has_marks else NO_MARKS
    segmenter = Segmenter(marks, tokenizer.ends, tokenizer.decode)
    builder = PromptBuilder(job, tokenizer, prepared.limits)
    num_shown = 0
    first = list(itertools.islice(read_input(job), NUM_LOOKED_AT))
    for raw in first:
        if num_shown == NUM_SHOWN:
            break
        try:
            prompt = builder.build(_name_of(raw, prepared.input_info), raw.content)
        except BadRecordError:
            continue
        num_shown += 1
        given = prompt.prompt_token_ids.tolist()
        response = [] if prompt.response_token_ids is None else prompt.response_token_ids.tolist()
        answer = _shortened(tokenizer.decode(response)) if response else "(the teacher writes it)"
        lines += [
            f"{prompt.record_id}: {prompt.num_tokens:,} tokens, labels from token {prompt.label_start}, ids "
            f"at the border {given[-BORDER_IDS:]} | {response[:BORDER_IDS]}",
            f"  given:    {paint(Segment.CONTEXT, _shortened(tokenizer.decode(given)))}",
            *_students_in_words(prompt, tokenizer, paint),
            f"  response: {answer}",
        ]
        if job.has_segments and response:
            lines += _segments_in_words(prompt, segmenter, paint)
    if files := unread_in_words(job):
        lines.append(files)
    if unread := _unread_fields(job, [raw.parent or raw.record or {} for raw in first]):
        more = f" and {len(unread) - MAX_FIELDS} more" if len(unread) > MAX_FIELDS else ""
        lines.append(f"fields of the records that are not read: {', '.join(unread[:MAX_FIELDS])}{more}")
    if job.labels.mode == "generate" or job.has_marks:
        lines.append(f"responses end at {tokenizer.ends}")
    lines += _unused_sampling(job)
    if clock := clock_in_words(job, prepared.tokenizer):
        lines.append(f"WARNING: {clock}")
    if job.has_segments:
        lines += [f"segments: {marks if job.has_marks else 'as the records give them'}", *legend(paint)]
    elif job.has_marks:
        lines.append("segments: none are kept (labels.segments = false)")
    return tuple(lines)


def _students_in_words(prompt: TokenizedPrompt, tokenizer: Tokenizer, paint: Paint) -> list[str]:
    """What the student sees in place of the teacher's prompt; nothing where it sees the same."""
    if prompt.student_prompt_token_ids is None:
        return []
    ids = prompt.student_prompt_token_ids.tolist()
    text = paint(Segment.CONTEXT, _shortened(tokenizer.decode(ids)))
    return [f"  student:  {text} ({len(ids):,} tokens)"]


def _name_of(raw: RawRecord, info: InputInfo) -> str:
    """Where a record stands, and its id where it has one of its own."""
    place = f"{raw.file}:{raw.line}{f' part {raw.part}' if raw.part else ''}"
    if "id" not in info.fields or raw.record is None:
        return place
    try:
        return f"{place} ({id_of(raw, info)})"
    except ValueError as error:
        raise BadRecordError(str(error), "bad_id") from None


def _unread_fields(job: JobConfig, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields with something in them that no role of `input.fields` names."""
    names = [*job.input.field_names().values(), *(OWN_ROLES if job.input.kind == "messages" else ())]
    read = {*names, *(name.split(".")[0] for name in names)}
    return sorted({name for record in records for name, value in record.items() if value} - read)


def _unused_sampling(job: JobConfig) -> list[str]:
    """What the model's makers advise and the job does not do."""
    if job.labels.mode != "generate" or job.teacher.engine == "fake":
        return []
    own = model_file(job.teacher, "generation_config.json") or {}
    others = [
        f"{name} = {own[name]:g} (sampling.{setting} = {getattr(job.sampling, setting):g})"
        for name, setting in SETTING_OF_ADVICE.items()
        if isinstance(own.get(name), int | float) and own[name] != getattr(job.sampling, setting)
    ]
    return [f"of the model's generation_config.json is not used: {', '.join(others)}"] if others else []


def _segments_in_words(prompt: TokenizedPrompt, segmenter: Segmenter, paint: Paint) -> list[str]:
    """A line for each run of tokens that are alike: where it lies, its ids at the borders, its text."""
    ids_T = prompt.token_ids
    segments_T = segmenter.of_prompt(prompt, ids_T)
    lines, start = [], 0
    for number, length in zip(*(values.tolist() for values in runs_of(segments_T)), strict=True):
        ids = ids_T[start : start + length].tolist()
        border = f"{ids[0]} .. {ids[-1]}" if length > 1 else f"{ids[0]}"
        text = _shortened(segmenter.decode(ids)) if segmenter.decode is not None else ""
        lines.append(
            f"  {paint(number, f'{SEGMENT_NAMES[number]:<9}')} tokens {start:,} to {start + length - 1:,}, "
            f"ids {border}: {paint(number, text)}"
        )
        start += length
    return lines


def _shortened(text: str) -> str:
    """Text as Python writes it, the middle of a long one left out."""
    if len(text) <= MAX_SHOWN:
        return repr(text)
    return f"{text[: MAX_SHOWN // 2]!r} ... {text[-MAX_SHOWN // 2 :]!r}"
