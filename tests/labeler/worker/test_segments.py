"""What each token is: by template markers where they are, over template shapes, marks and given segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labeler.config.label_settings import ReasoningMarks
from labeler.config.loading import identity, load_job
from labeler.errors import OtherSettingsError
from labeler.planning.plan import Plan
from labeler.planning.provenance import provenance_of
from labeler.planning.units import decode_records, encode_records
from labeler.prompting.prompts import ContextLimits, PromptBuilder
from labeler.prompting.segment_marks import Mark, SegmentMarks, find_marks
from labeler.prompting.tokenization import HuggingFaceTokenizer
from labeler.records import Lease, PlannedRecord, TokenizedPrompt
from labeler.worker.segmenting import Segmenter, with_segments
from logitstore.common.config_file import ConfigError
from logitstore.manifest.fields import SEGMENTS
from logitstore.records import SEGMENT_NAMES, LabeledSequence, Segment
from logitstore.store import LogitStore
from tests.labeler.jobs import label_and_commit
from tests.labeler.planning.conversations import (
    CHAT,
    TOOL_CHAT,
    TOOLS,
    builder_for,
    refused,
    whole_ids,
)
from tests.labeler.planning.templates import END_OF_TURN, TEMPLATES, byte_tokenizer, tokenizer_of
from tests.labeler.worker.test_actor import set_up
from tests.labeler.worker.test_filters import rows

DATED = ["input.chat_template_kwargs={date_string='1 Jan 2026'}"]
MARKED_CALLS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% elif m['tool_calls'] %}[TOOL_CALLS][{% for c in m['tool_calls'] %}{{ c['function'] | tojson }}"
    "{% endfor %}]</s>{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
BARE_CALLS = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{% if m['tool_calls'] %}"
    "{\"name\": \"{{ m['tool_calls'][0]['function']['name'] }}\", \"parameters\": "
    "{{ m['tool_calls'][0]['function']['arguments'] | tojson }}}{% else %}{{ m['content'] }}{% endif %}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def sequence_of(prompt: TokenizedPrompt) -> LabeledSequence:
    ids = np.array(whole_ids(prompt), np.int32)
    count = len(ids) - prompt.label_start
    return LabeledSequence(
        prompt.record_id,
        0,
        ids,
        len(prompt.prompt_token_ids),
        prompt.label_start,
        rows(count),
        np.ones(count, bool),
        "scored",
    )


def segmented(
    tokenizer: Any, prompt: TokenizedPrompt, reasoning: ReasoningMarks | None = None
) -> LabeledSequence:
    own = HuggingFaceTokenizer(tokenizer)
    segmenter = Segmenter(find_marks(own, reasoning), own.ends, own.decode)
    return with_segments([sequence_of(prompt)], [prompt], segmenter)[0]


def spans(tokenizer: Any, sequence: LabeledSequence) -> list[tuple[str, str]]:
    """(segment, text) of each run behind the prompt."""
    segments_T, ids = sequence.segments_T, sequence.token_ids_T.tolist()
    assert segments_T is not None
    found: list[tuple[str, list[int]]] = []
    for number, token_id in list(zip(segments_T.tolist(), ids, strict=True))[sequence.prompt_length :]:
        if not found or found[-1][0] != SEGMENT_NAMES[number]:
            found.append((SEGMENT_NAMES[number], []))
        found[-1][1].append(token_id)
    return [(name, tokenizer.decode(token_ids)) for name, token_ids in found]


@pytest.mark.parametrize("shape", sorted(set(TEMPLATES) - {"r1", "qwen3", "harmony"}))
def test_every_shape_has_answers_ends_and_context(shape: str) -> None:
    tokenizer = tokenizer_of(shape)
    prompt = builder_for(tokenizer, *(DATED if shape == "dated" else [])).build("r", {"messages": CHAT})
    found = segmented(tokenizer, prompt)
    assert [name for name, _ in spans(tokenizer, found)] == ["answer", "end"]
    assert [text.strip() for _, text in spans(tokenizer, found)] == ["It is 5.", END_OF_TURN[shape]]
    assert found.segments_T is not None
    assert not found.segments_T[: found.prompt_length].any()


@pytest.mark.parametrize("shape", ["chatml", "llama3"])
@pytest.mark.parametrize("messages", [CHAT[:2], CHAT])
def test_labeled_tokens_are_those_of_the_assistant_tokens_mask(shape: str, messages: list[Any]) -> None:
    tokenizer = tokenizer_of(shape)
    prompt = builder_for(tokenizer, "labels.turns=all").build("r", {"messages": messages})
    mask = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )["assistant_masks"]
    found = segmented(tokenizer, prompt).segments_T
    assert found is not None
    assert (found != Segment.CONTEXT).astype(int).tolist() == mask[: len(found)]
    assert not any(mask[len(found) :])
    assert (found == Segment.END).sum() == len(messages) // 2


def test_the_reasoning_of_a_qwen3_like_answer_is_found_from_its_template() -> None:
    tokenizer = tokenizer_of("qwen3")
    assert (
        str(find_marks(HuggingFaceTokenizer(tokenizer), None)) == "reasoning between '<think>' and '</think>'"
    )
    answer = {"role": "assistant", "content": "It is 5.", "reasoning_content": "2 + 3"}
    prompt = builder_for(tokenizer).build("r", {"messages": [*CHAT[:3], answer]})
    assert spans(tokenizer, segmented(tokenizer, prompt)) == [
        ("reasoning", "<think>\n2 + 3\n</think>"),
        ("answer", "\n\nIt is 5."),
        ("end", "<|im_end|>"),
    ]


def test_a_template_that_opens_the_reasoning_in_its_generation_prompt() -> None:
    tokenizer = tokenizer_of("r1")
    answer = {"role": "assistant", "content": "<think>\n2 + 3\n</think>\n\nIt is 5."}
    prompt = builder_for(tokenizer).build("r", {"messages": [*CHAT[:3], answer]})
    assert tokenizer.decode(prompt.prompt_token_ids.tolist()).endswith("<think>\n")
    assert spans(tokenizer, segmented(tokenizer, prompt)) == [
        ("reasoning", "2 + 3\n</think>"),
        ("answer", "\n\nIt is 5."),
        ("end", "<|end_of_sentence|>"),
    ]
    assert "does not close" in refused(builder_for(tokenizer), {"messages": CHAT}).reason


def test_calls_of_tools_and_what_tools_answer() -> None:
    tokenizer = tokenizer_of("tools")
    prompt = builder_for(tokenizer, "labels.turns=all").build("r", {"messages": TOOL_CHAT, "tools": TOOLS})
    found = spans(tokenizer, segmented(tokenizer, prompt))
    assert [name for name, _ in found] == ["tool", "end", "context", "answer", "end"]
    assert found[0][1].startswith("<tool_call>{")
    assert found[0][1].endswith("</tool_call>")
    assert "21" in found[2][1]
    assert found[3][1] == "21 degrees."


@pytest.mark.parametrize(
    ("template", "marks"),
    [
        (MARKED_CALLS, "calls of tools from '[TOOL_CALLS]' to the end of the turn"),
        (BARE_CALLS, 'calls of tools from \'{"name": "\' to the end of the turn'),
        (TEMPLATES["tools"], "calls of tools from '<tool_call>' to '</tool_call>'"),
        (TEMPLATES["chatml"], "no reasoning and no calls of tools, all is answer"),
    ],
)
def test_marks_of_calls_are_found_from_the_template(template: str, marks: str) -> None:
    tokenizer = byte_tokenizer(bos="<s>")
    tokenizer.chat_template = template
    own = HuggingFaceTokenizer(tokenizer)
    assert str(find_marks(own, None)) == marks
    if template == TEMPLATES["chatml"]:
        return
    prompt = builder_for(tokenizer, "input.ignore_keys=['tools']").build("r", {"messages": TOOL_CHAT[:2]})
    found = spans(tokenizer, segmented(tokenizer, prompt))
    assert [name for name, text in found if text.strip()] == ["tool", "end"]


def test_marks_of_several_tokens_are_found_in_the_text() -> None:
    tokenizer = tokenizer_of("chatml")
    given = ReasoningMarks(start="BEGIN:", end=":DONE")
    answer = {"role": "assistant", "content": "BEGIN:2 + 3, naïve 中文:DONE It is 5."}
    prompt = builder_for(tokenizer).build("r", {"messages": [*CHAT[:3], answer]})
    marks = find_marks(HuggingFaceTokenizer(tokenizer), given)
    assert not marks.are_tokens
    found = spans(tokenizer, segmented(tokenizer, prompt, given))
    assert found == [
        ("reasoning", "BEGIN:2 + 3, naïve 中文:DONE"),
        ("answer", " It is 5."),
        ("end", "<|im_end|>"),
    ]


def test_parts_of_a_turn_by_their_ids() -> None:
    think, thought, call, called = Mark("a", 1), Mark("b", 2), Mark("c", 3), Mark("d", 4)
    segmenter = Segmenter(
        SegmentMarks((think, thought), (call, called)), HuggingFaceTokenizer(tokenizer_of("chatml")).ends
    )

    def found(ids: list[int], prompt: int = 1) -> list[int]:
        written_T = np.arange(len(ids)) >= prompt
        return segmenter.segments(np.array(ids, np.int32), written_T).tolist()

    assert found([9, 1, 7, 2, 8, 3, 7, 4, 8]) == [0, 1, 1, 1, 2, 3, 3, 3, 2]
    assert found([1, 7, 2, 8]) == [0, 1, 1, 2], "the prompt opens it"
    assert found([9, 7, 2, 8]) == [0, 1, 1, 2], "it is closed without having been opened"
    assert found([9, 1, 7, 7]) == [0, 1, 1, 1]
    assert found([9, 1, 3, 2, 8, 1, 2, 3]) == [0, 1, 1, 1, 2, 1, 1, 3], "twice, and a call that never ends"
    assert found([9, 8, 3, 7, 4, 3, 7, 4]) == [0, 2, 3, 3, 3, 3, 3, 3]


def given_builder(*overrides: str) -> PromptBuilder:
    base = ["teacher.engine=fake", "input.uri=in", "output.uri=out", "input.kind=token_ids"]
    job = load_job(None, [*base, "input.fields={segments='segments'}", *overrides], {})
    return PromptBuilder(job, HuggingFaceTokenizer(byte_tokenizer()), ContextLimits(1000, 4096))


def test_segments_given_with_token_ids_are_kept_and_mask_the_context() -> None:
    names = ["context", "reasoning", "context", "tool", "end"]
    prompt = given_builder().build("r", {"token_ids": [5, 6, 7, 8, 9], "segments": names})
    assert prompt.loss_mask_T is not None
    assert prompt.loss_mask_T.tolist() == [False, True, False, True, True]
    (read,) = decode_records(encode_records([PlannedRecord(prompt, "f", 1)]))
    assert read.prompt.segments_T is not None
    assert read.prompt.segments_T.dtype == np.uint8
    assert segmented(tokenizer_of("chatml"), read.prompt).segments_T.tolist() == [0, 1, 0, 3, 4]  # type: ignore[union-attr]
    numbers = given_builder().build("r", {"token_ids": [5, 6, 7, 8, 9], "segments": [0, 1, 0, 3, 4]})
    assert numbers.segments_T.tolist() == read.prompt.segments_T.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("segments", [["context"], ["context", "thought"], [0, 5], "context", [0, True]])
def test_segments_that_fit_no_record_are_refused(segments: Any) -> None:
    assert (
        "context, reasoning, answer, tool, end"
        in refused(given_builder(), {"token_ids": [5, 6], "segments": segments}).reason
    )


def test_segments_of_a_prompt_are_context_and_written_responses_have_none_given() -> None:
    builder = given_builder("input.fields.response_token_ids=more")
    bad = refused(builder, {"token_ids": [5], "more": [6], "segments": ["answer", "answer"]})
    assert "another segment than context" in bad.reason
    with pytest.raises(ConfigError, match=r"input\.fields\.segments needs labels\.mode"):
        given_builder("labels.mode=generate")


def test_channels_as_gpt_oss_has_them() -> None:
    tokenizer = tokenizer_of("harmony")
    marks = find_marks(HuggingFaceTokenizer(tokenizer), None)
    assert str(marks) == (
        "reasoning between '<|channel|>analysis<|message|>' and '<|end|>'; "
        "calls of tools from 'to=functions.' to '<|call|>'"
    )
    answer = {"role": "assistant", "content": "It is 5.", "thinking": "2 + 3"}
    prompt = builder_for(tokenizer).build("r", {"messages": [*CHAT[:3], answer]})
    assert spans(tokenizer, segmented(tokenizer, prompt)) == [
        ("reasoning", "<|channel|>analysis<|message|>2 + 3<|end|>"),
        ("answer", "<|start|>assistant<|channel|>final<|message|>It is 5."),
        ("end", "<|return|>"),
    ]
    call = {**TOOL_CHAT[1], "thinking": "ask"}
    prompt = builder_for(tokenizer, "input.ignore_keys=['tools']").build(
        "r", {"messages": [TOOL_CHAT[0], call], "tools": TOOLS}
    )
    (_, reasoning), *others = spans(tokenizer, segmented(tokenizer, prompt))
    assert reasoning == "<|channel|>analysis<|message|>ask<|end|>"
    assert others[0] == ("answer", "<|start|>assistant ")
    assert others[1][0] == "tool"
    assert others[1][1].startswith('to=functions.get_temp<|channel|>commentary json<|message|>{"city"')


def test_segments_can_be_left_out_and_that_is_fixed_with_the_first_label(tmp_path: Path) -> None:
    items = [{"uid": 0, "messages": CHAT[:2]}]
    worker, units, setup = set_up(tmp_path, items, "labels.segments=false", kind="messages")
    label_and_commit(worker, Lease(0, units[0], "w"))
    store = LogitStore.open(tmp_path / "store")
    (found,) = store.iter_sequences()
    assert (found.segments_T, SEGMENTS in store.manifest.features) == (None, False)
    assert found.rows.num_rows == len("It is 4.") + 1
    prepared, job = setup.prepared, setup.job
    other = job.model_copy(update={"labels": job.labels.model_copy(update={"segments": True})})
    plan, provenance = Plan(prepared.objects), provenance_of(job, prepared.tokenizer)
    assert plan.claim(identity(job), provenance, has_manifest=True, num_labeled=1) == ""
    with pytest.raises(OtherSettingsError, match=r"labels\.segments: False in the store, True now"):
        plan.claim(identity(other), provenance, has_manifest=True, num_labeled=1)


def test_segments_that_are_given_and_left_out_are_refused() -> None:
    base = ["teacher.engine=fake", "input.uri=in", "output.uri=out", "input.kind=token_ids"]
    with pytest.raises(ConfigError, match="leaves out what"):
        load_job(None, [*base, "input.fields.segments=s", "labels.segments=false"], {})
