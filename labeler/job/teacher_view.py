"""What the teacher will see of a job's input: its first records, their borders, and where responses end."""

from __future__ import annotations

import itertools

from labeler.config.loading import JobConfig
from labeler.driver.run import read_input
from labeler.errors import BadRecordError
from labeler.planning.preflight import Prepared
from labeler.prompting.prompts import PromptBuilder
from labeler.prompting.segment_marks import find_marks

NUM_SHOWN = 2
NUM_LOOKED_AT = 20
"""Records at the start, of which the first good ones are shown."""
BORDER_IDS = 4
MAX_SHOWN = 600


def seen_by_teacher(job: JobConfig, prepared: Prepared) -> tuple[str, ...]:
    """Lines for the user: records with their markers, and the ids where the response begins."""
    tokenizer, lines = prepared.tokenizer, []
    builder = PromptBuilder(job, tokenizer, prepared.limits)
    num_shown = 0
    for raw in itertools.islice(read_input(job), NUM_LOOKED_AT):
        if num_shown == NUM_SHOWN:
            break
        try:
            prompt = builder.build(f"{raw.file}:{raw.line}", raw.record or {})
        except BadRecordError:
            continue
        num_shown += 1
        given = prompt.prompt_token_ids.tolist()
        response = [] if prompt.response_token_ids is None else prompt.response_token_ids.tolist()
        answer = _shortened(tokenizer.decode(response)) if response else "(the teacher writes it)"
        lines += [
            f"{prompt.record_id}: {prompt.num_tokens:,} tokens, labels from token {prompt.label_start}, ids "
            f"at the border {given[-BORDER_IDS:]} | {response[:BORDER_IDS]}",
            f"  given:    {_shortened(tokenizer.decode(given))}",
            f"  response: {answer}",
        ]
    if job.labels.mode == "generate":
        lines.append(f"responses end at {tokenizer.ends}")
    if job.has_segments and "segments" not in job.input.fields:
        lines.append(f"segments: {find_marks(tokenizer, job.labels.reasoning)}")
    if builder.num_split_borders or builder.num_raw_answers:
        lines.append(
            f"of the records shown, {builder.num_split_borders} were tokenised apart at the border and "
            f"{builder.num_raw_answers} have their text as it is after the generation prompt"
        )
    return tuple(lines)


def _shortened(text: str) -> str:
    """Text as Python writes it, the middle of a long one left out."""
    if len(text) <= MAX_SHOWN:
        return repr(text)
    return f"{text[: MAX_SHOWN // 2]!r} ... {text[-MAX_SHOWN // 2 :]!r}"
