"""Which tokens of a conversation are labeled: one turn, all turns of the assistant, and those that a template marks."""

from copy import copy
from dataclasses import replace

import pytest

from labeler.planning.units import decode_records, encode_records
from labeler.records import PlannedRecord
from tests.labeler.planning.conversations import CHAT, TOOL_CHAT, builder_for, refused, whole_ids
from tests.labeler.planning.templates import (
    END_OF_TURN,
    TEMPLATES,
    UNSTABLE,
    byte_tokenizer,
    marked,
    tokenizer_of,
)


@pytest.mark.parametrize("shape", ["chatml", "llama3"])
def test_labeled_spans_are_those_of_the_assistant_mask(shape: str) -> None:
    tokenizer = tokenizer_of(shape)
    prompt = builder_for(tokenizer).build("r", {"messages": CHAT[:2]})
    reference = tokenizer.apply_chat_template(
        CHAT[:2], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = reference["assistant_masks"]
    assert prompt.label_start == mask.index(1)
    assert prompt.num_tokens == len(mask) - mask[::-1].index(1)


@pytest.mark.parametrize("shape", sorted(set(TEMPLATES) - {*UNSTABLE, "dated"}))
def test_all_turns_of_the_assistant_are_labeled_in_one_sequence(shape: str) -> None:
    tokenizer = tokenizer_of(shape)
    prompt = builder_for(tokenizer, "labels.turns=all").build("r", {"messages": CHAT})
    ids, mask_T = whole_ids(prompt), prompt.loss_mask_T
    assert mask_T is not None
    assert len(mask_T) == len(ids)
    assert (prompt.label_start, bool(mask_T[prompt.label_start])) == (int(mask_T.argmax()), True)
    reference = tokenizer.apply_chat_template(
        CHAT,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask="{% generation" in TEMPLATES[shape],
    )
    assert ids == reference["input_ids"][: len(ids)]
    if "assistant_masks" in reference:
        assert mask_T.astype(int).tolist() == reference["assistant_masks"][: len(ids)]
    starts = [i for i in range(1, len(ids)) if mask_T[i] and not mask_T[i - 1]]
    assert len(starts) == 2
    end = END_OF_TURN[shape]
    spans = tokenizer.decode([i for i, counted in zip(ids, mask_T, strict=True) if counted])
    assert [part.strip() for part in spans.split(end)] == ["It is 4.", "It is 5.", ""]


@pytest.mark.parametrize("shape", UNSTABLE)
def test_a_template_that_changes_earlier_turns_is_refused_for_all_turns(shape: str) -> None:
    error = refused(builder_for(tokenizer_of(shape), "labels.turns=all"), {"messages": CHAT})
    assert (error.kind, 'set labels.turns = "each"' in error.reason) == ("unstable_template", True)


@pytest.mark.parametrize("shape", sorted(TEMPLATES))
def test_answers_that_a_template_marks_are_the_ones_of_transformers_mask(shape: str) -> None:
    """Also where earlier turns are rendered otherwise than a last one."""
    tokenizer = copy(tokenizer_of(shape))
    tokenizer.chat_template = marked(TEMPLATES[shape])
    arguments = {"date_string": "1 Jan 2026"} if shape == "dated" else {}
    kwargs = ["input.chat_template_kwargs={date_string='1 Jan 2026'}"] if arguments else []
    prompt = builder_for(tokenizer, "labels.turns=all", *kwargs).build("r", {"messages": CHAT})
    reference = tokenizer.apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True, **arguments
    )
    ids, mask_T = whole_ids(prompt), prompt.loss_mask_T
    assert mask_T is not None
    assert ids == reference["input_ids"][: len(ids)]
    assert mask_T.astype(int).tolist() == reference["assistant_masks"][: len(ids)]
    assert not any(reference["assistant_masks"][len(ids) :])
    labeled = tokenizer.decode([i for i, counted in zip(ids, mask_T, strict=True) if counted])
    assert ("It is 4." in labeled, "It is 5." in labeled, "?" in labeled) == (True, True, False)


PRINTED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{% for c in m['tool_calls'] %}<tool_call>{{ c['function']['name'] }}</tool_call>{% endfor %}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Prints the content whatever it is, also null."""


def test_marks_are_those_of_the_text_that_is_sent_where_content_is_null() -> None:
    tokenizer = copy(tokenizer_of("chatml"))
    tokenizer.chat_template = PRINTED
    prompt = builder_for(tokenizer, "labels.turns=all").build("r", {"messages": TOOL_CHAT})
    meant = [{**message, "content": message["content"] or ""} for message in TOOL_CHAT]
    reference = tokenizer.apply_chat_template(meant, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask_T = whole_ids(prompt), prompt.loss_mask_T
    assert mask_T is not None
    assert ids == reference["input_ids"][: len(ids)]
    assert mask_T.astype(int).tolist() == reference["assistant_masks"][: len(ids)]


def test_each_null_content_is_shown_as_the_template_shows_that_message() -> None:
    tokenizer = copy(tokenizer_of("chatml"))
    checks = "{% if m['content'] is not none or not m['tool_calls'] %}{{ m['content'] }}{% endif %}"
    tokenizer.chat_template = PRINTED.replace(
        "{{ m['content'] }}{% for", checks + "{{ m['thinking'] }}{% for"
    )
    messages = [*TOOL_CHAT[:3], {"role": "assistant", "content": None, "thinking": "warm"}]
    prompt = builder_for(tokenizer).build("r", {"messages": messages})
    text = tokenizer.decode(whole_ids(prompt))
    assert "None" not in text
    assert text.endswith("assistant\nwarm<|im_end|>")


def test_a_tokenizer_without_places_in_the_text_has_its_answers_by_prefixes() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATES["chatml"]
    assert "generation %}" in TEMPLATES["chatml"]
    prompt = builder_for(tokenizer, "labels.turns=all").build("r", {"messages": CHAT})
    assert prompt.loss_mask_T is not None
    labeled = [i for i, counted in zip(whole_ids(prompt), prompt.loss_mask_T, strict=True) if counted]
    assert tokenizer.decode(labeled) == "It is 4.<|im_end|>It is 5.<|im_end|>"


def test_given_ids_may_have_a_loss_mask() -> None:
    fields = "input.fields={response_token_ids='r', loss_mask='m'}"
    builder = builder_for(byte_tokenizer(), fields, kind="token_ids")
    prompt = builder.build("r", {"token_ids": [5], "r": [6, 7], "m": [0, 1, 0]})
    assert prompt.loss_mask_T is not None
    assert prompt.loss_mask_T.tolist() == [False, True, False]
    assert "zeros and ones" in refused(builder, {"token_ids": [5], "r": [6, 7], "m": [0, 1]}).reason


def test_loss_masks_travel_with_the_plan_and_old_plans_have_none() -> None:
    fields = "input.fields={response_token_ids='r', loss_mask='m'}"
    builder = builder_for(byte_tokenizer(), fields, kind="token_ids")
    masked = builder.build("a", {"token_ids": [5], "r": [6, 7], "m": [0, 1, 0]})
    plain = replace(masked, record_id="b", loss_mask_T=None)
    found = decode_records(encode_records([PlannedRecord(masked, "f", 1), PlannedRecord(plain, "f", 2)]))
    assert found[0].prompt.loss_mask_T is not None
    assert found[0].prompt.loss_mask_T.tolist() == [False, True, False]
    assert found[1].prompt.loss_mask_T is None


@pytest.mark.parametrize("shape", ["chatml", "gemma"])
def test_an_answer_of_weight_0_is_read_and_not_labeled(shape: str) -> None:
    tokenizer = tokenizer_of(shape)
    messages = [CHAT[0], {**CHAT[1], "weight": 0}, CHAT[2], {**CHAT[3], "weight": 1}]
    prompt = builder_for(tokenizer, "labels.turns=all").build("r", {"messages": messages})
    assert prompt.loss_mask_T is not None
    labeled = [i for i, counted in zip(whole_ids(prompt), prompt.loss_mask_T, strict=True) if counted]
    assert tokenizer.decode(labeled).strip() == f"It is 5.{END_OF_TURN[shape]}"
    last = [*CHAT[:3], {**CHAT[3], "weight": 0}]
    assert refused(builder_for(tokenizer), {"messages": last}).kind == "no_response"
    nothing = [CHAT[0], {**CHAT[1], "weight": 0}]
    assert refused(builder_for(tokenizer, "labels.turns=all"), {"messages": nothing}).kind == "no_response"
