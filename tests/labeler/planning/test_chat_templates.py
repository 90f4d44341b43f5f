"""Conversations of every template shape give the ids of transformers' own apply_chat_template."""

import json
from copy import copy
from typing import Any

import pytest

from labeler.config.loading import load_job
from labeler.planning.preflight import check_chat_template
from labeler.prompting.tokenization import HuggingFaceTokenizer
from logitstore.common.config_file import ConfigError
from logitstore.inputs.chat_templates import REASONING_NAMES
from tests.labeler.planning.conversations import (
    CHAT,
    TOOL_CHAT,
    TOOLS,
    builder_for,
    expected,
    refused,
    response_text,
    whole_ids,
)
from tests.labeler.planning.templates import (
    END_OF_TURN,
    TEMPLATES,
    byte_tokenizer,
    tokenizer_of,
)


@pytest.mark.parametrize("shape", sorted(TEMPLATES))
def test_prompts_are_those_of_apply_chat_template(shape: str) -> None:
    tokenizer = tokenizer_of(shape)
    settings = ["input.chat_template_kwargs={date_string='1 Jan 2026'}"] if shape == "dated" else []
    prompt = builder_for(tokenizer, *settings, mode="generate").build("r", {"messages": CHAT})
    given = {"date_string": "1 Jan 2026"} if shape == "dated" else {}
    assert prompt.prompt_token_ids.tolist() == expected(
        tokenizer, CHAT[:3], add_generation_prompt=True, **given
    )


@pytest.mark.parametrize("shape", sorted(set(TEMPLATES) - {"r1"}))
def test_scored_conversations_are_those_of_apply_chat_template(shape: str) -> None:
    tokenizer = tokenizer_of(shape)
    settings = ["input.chat_template_kwargs={date_string='1 Jan 2026'}"] if shape == "dated" else []
    builder = builder_for(tokenizer, *settings)
    prompt = builder.build("r", {"messages": CHAT})
    given = {"date_string": "1 Jan 2026"} if shape == "dated" else {}
    reference = expected(tokenizer, CHAT, **given)
    ids = whole_ids(prompt)
    assert ids == reference[: len(ids)]
    behind = tokenizer.decode(reference[len(ids) :]).strip()
    assert behind == ("<|endoftext|>" if shape == "phi3" else "")
    assert tokenizer.decode(ids[-1:]) == END_OF_TURN[shape]
    assert builder.exchanges.num_split_borders == 0


@pytest.mark.parametrize("shape", sorted(TEMPLATES))
def test_a_response_ends_at_the_templates_end_of_turn_and_at_the_tokenizers_eos(shape: str) -> None:
    tokenizer = tokenizer_of(shape)
    ends = HuggingFaceTokenizer(tokenizer, named_ends=[(3, "config.json")]).ends
    by_text = {token.text: token.named_by for token in ends.tokens}
    assert by_text[END_OF_TURN[shape]] == ("chat template",)
    assert by_text["<|endoftext|>"] == ("tokenizer",)
    assert 3 in ends.token_ids
    assert set(ends.token_ids) <= ends.blank_ids


def test_a_stop_that_is_a_marker_is_an_id_and_other_stops_stay_texts() -> None:
    ends = HuggingFaceTokenizer(byte_tokenizer(), stop=("<|im_end|>", "\nUser:")).ends
    assert [token.text for token in ends.tokens] == ["<|endoftext|>", "<|im_end|>"]
    assert ends.stop == ("\nUser:",)


def test_tools_calls_and_null_content_reach_the_template() -> None:
    tokenizer = tokenizer_of("tools")
    record = {"messages": TOOL_CHAT, "tools": TOOLS}
    prompt = builder_for(tokenizer).build("r", record)
    assert whole_ids(prompt) == expected(tokenizer, TOOL_CHAT, tools=TOOLS)[:-1]
    text = tokenizer.decode(prompt.prompt_token_ids.tolist())
    assert "get_temp" in text
    assert "None" not in text
    as_text = [*TOOL_CHAT[:1], json.loads(json.dumps(TOOL_CHAT[1])), *TOOL_CHAT[2:]]
    as_text[1]["tool_calls"][0]["function"]["arguments"] = '{"city": "Rome"}'
    other = builder_for(tokenizer).build("r", {"messages": as_text, "tools": json.dumps(TOOLS)})
    assert whole_ids(other) == whole_ids(prompt), "arguments and tools as JSON text are the same"
    as_text[1]["tool_calls"] = json.dumps(as_text[1]["tool_calls"])
    other = builder_for(tokenizer).build("r", {"messages": as_text, "tools": TOOLS})
    assert whole_ids(other) == whole_ids(prompt), "and the calls themselves"


@pytest.mark.parametrize(
    "calls", [5, True, "get_temp()", {"name": "get_temp"}, ["get_temp"], [[]], '"5"', "{}"]
)
def test_calls_that_are_no_list_of_objects_reject_the_record(calls: Any) -> None:
    messages = [TOOL_CHAT[0], {"role": "assistant", "content": "", "tool_calls": calls}, *TOOL_CHAT[2:]]
    error = refused(builder_for(tokenizer_of("tools")), {"messages": messages, "tools": TOOLS})
    assert error.kind == "bad_type"
    assert "tool_calls" in error.reason


def test_a_call_as_the_last_turn_is_the_response() -> None:
    tokenizer = tokenizer_of("tools")
    prompt = builder_for(tokenizer).build("r", {"messages": TOOL_CHAT[:2], "tools": TOOLS})
    response = response_text(tokenizer, prompt)
    assert response == '<tool_call>{"name": "get_temp", "arguments": {"city": "Rome"}}</tool_call><|im_end|>'


def test_what_a_template_does_not_read_rejects_the_record_by_name() -> None:
    error = refused(builder_for(tokenizer_of("llama3")), {"messages": CHAT[:2], "tools": TOOLS})
    assert error.kind == "unread_key"
    assert "the record's tools" in error.reason
    reasoned = [CHAT[0], {**CHAT[1], "reasoning_content": "two plus two"}]
    error = refused(builder_for(tokenizer_of("chatml")), {"messages": reasoned})
    assert (error.kind, "'reasoning_content' of a message of 'assistant'" in error.reason) == (
        "unread_key",
        True,
    )
    allowed = builder_for(tokenizer_of("chatml"), 'input.ignore_keys=["reasoning_content"]')
    assert whole_ids(allowed.build("r", {"messages": reasoned})) == whole_ids(
        builder_for(tokenizer_of("chatml")).build("r", {"messages": CHAT[:2]})
    )
    assert builder_for(tokenizer_of("chatml")).build("r", {"messages": [{**CHAT[0], "id": "m1"}, CHAT[1]]})


def test_reasoning_reaches_a_template_that_reads_it_also_where_it_drops_that_of_earlier_turns() -> None:
    tokenizer = tokenizer_of("qwen3")
    chat = [CHAT[0], {**CHAT[1], "reasoning_content": "a"}, CHAT[2], {**CHAT[3], "reasoning_content": "b b"}]
    prompt = builder_for(tokenizer).build("r", {"messages": chat})
    assert whole_ids(prompt) == expected(tokenizer, chat)[:-1]
    assert response_text(tokenizer, prompt).startswith("<think>\nb b\n</think>\n\nIt is 5.")


@pytest.mark.parametrize("read", REASONING_NAMES)
def test_reasoning_under_any_name_is_what_a_template_reads(read: str) -> None:
    """vLLM's servers write "reasoning", most templates read "reasoning_content", and gpt-oss's "thinking"."""
    for named in set(REASONING_NAMES) - {read}:
        tokenizer = copy(tokenizer_of("qwen3"))
        tokenizer.chat_template = TEMPLATES["qwen3"].replace("reasoning_content", read)
        chat = [CHAT[0], {**CHAT[1], named: "2 and 2"}]
        builder = builder_for(tokenizer)
        prompt = builder.build("r", {"messages": chat})
        assert whole_ids(prompt) == expected(tokenizer, [CHAT[0], {**CHAT[1], read: "2 and 2"}])[:-1]
        assert "2 and 2" in response_text(tokenizer, prompt)
        left_out = builder_for(tokenizer, f'input.ignore_keys=["{named}"]').build("r", {"messages": chat})
        assert whole_ids(left_out) == expected(tokenizer, CHAT[:2])[:-1]
        error = refused(builder_for(tokenizer_of("chatml")), {"messages": chat})
        assert (error.kind, f"does not read '{named}'" in error.reason) == ("unread_key", True)


def test_template_variables_reach_the_template() -> None:
    tokenizer = tokenizer_of("qwen3")
    builder = builder_for(tokenizer, "input.chat_template_kwargs={enable_thinking=false}", mode="generate")
    prompt = builder.build("r", {"messages": CHAT[:1]})
    assert prompt.prompt_token_ids.tolist() == expected(
        tokenizer, CHAT[:1], add_generation_prompt=True, enable_thinking=False
    )
    assert tokenizer.decode(prompt.prompt_token_ids.tolist()).endswith("</think>\n\n")


def test_a_template_file_stands_in_for_the_tokenizers_own(tmp_path: Any) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(TEMPLATES["gemma"])
    prompt = builder_for(tokenizer_of("chatml"), f"input.chat_template='{path}'").build(
        "r", {"messages": CHAT}
    )
    reference = expected(tokenizer_of("chatml"), CHAT, chat_template=TEMPLATES["gemma"])
    assert whole_ids(prompt) == reference[: prompt.num_tokens]


def test_a_template_that_is_none_is_told_at_the_start_and_not_of_each_record() -> None:
    tokenizer = copy(tokenizer_of("chatml"))
    tokenizer.chat_template = "{% for m in messages %}\n{{ m['content'] }"
    settings = ["teacher.engine=fake", "input.uri=in", "output.uri=out", "input.kind=messages"]
    job = load_job(None, settings, {})
    with pytest.raises(ConfigError, match=r"no valid Jinja \(line 2: .*\); correct it"):
        check_chat_template(job, HuggingFaceTokenizer(tokenizer))
    plain = load_job(None, [*settings, "input.chat_template=false"], {})
    check_chat_template(plain, HuggingFaceTokenizer(tokenizer))


def test_a_template_that_opens_reasoning_gives_what_the_teacher_would_write() -> None:
    tokenizer = tokenizer_of("r1")
    start = expected(tokenizer, CHAT[:1], add_generation_prompt=True)
    for answer in (
        {"role": "assistant", "content": "<think>\nit is even\n</think>\n\nIt is 4."},
        {"role": "assistant", "content": "it is even\n</think>\n\nIt is 4."},
        {"role": "assistant", "content": "It is 4.", "reasoning_content": "it is even"},
        {"role": "assistant", "content": "It is 4.", "reasoning": "it is even"},
    ):
        builder = builder_for(tokenizer)
        prompt = builder.build("r", {"messages": [CHAT[0], answer]})
        assert prompt.prompt_token_ids.tolist() == start
        response = response_text(tokenizer, prompt)
        assert response == "it is even\n</think>\n\nIt is 4.<|end_of_sentence|>"
        assert builder.exchanges.num_raw_answers == 1
    error = refused(builder_for(tokenizer), {"messages": CHAT[:2]})
    assert (error.kind, "which the answer does not close" in error.reason) == ("bad_prompt", True)
    assert "chat_template = false" not in error.reason
    earlier = [CHAT[0], {**CHAT[1], "reasoning_content": "lost"}, CHAT[2], {**CHAT[3], "reasoning": "kept"}]
    error = refused(builder_for(tokenizer), {"messages": earlier})
    assert (error.kind, "would not see 'lost'" in error.reason) == ("unread_key", True)


def test_sharegpt_parts_and_the_records_own_system_are_understood() -> None:
    tokenizer = tokenizer_of("chatml")
    sharegpt = [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "It is 4."}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Two and two?"}]}, CHAT[1]]
    reference = builder_for(tokenizer).build("r", {"messages": CHAT[:2]})
    for messages in (sharegpt, parts):
        assert whole_ids(builder_for(tokenizer).build("r", {"messages": messages})) == whole_ids(reference)
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, CHAT[1]]
    assert refused(builder_for(tokenizer), {"messages": image}).kind == "bad_type"
    own = builder_for(tokenizer, "input.fields={system='system_prompt'}")
    prompt = own.build("r", {"messages": CHAT[:2], "system_prompt": "Be brief."})
    system = {"role": "system", "content": "Be brief."}
    assert whole_ids(prompt) == expected(tokenizer, [system, *CHAT[:2]])


def test_of_two_different_system_prompts_none_is_lost_in_silence() -> None:
    builder = builder_for(tokenizer_of("chatml"), "input.fields.system=sys", "input.system_prompt=Be fast.")
    record = {"messages": [{"role": "system", "content": "Be kind."}, *CHAT], "sys": "Be brief."}
    error = refused(builder, record)
    assert error.kind == "bad_prompt"
    assert "field 'sys' is 'Be brief.', and the messages begin with another system message" in error.reason
    same = builder.build("r", {**record, "sys": "Be kind. "})
    assert whole_ids(same) == whole_ids(builder.build("r", {**record, "sys": None}))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "record",
    [
        {"messages": CHAT, "tools": DEEP},
        {"messages": [CHAT[0], {"role": "assistant", "content": None, "tool_calls": DEEP}, *CHAT[2:]]},
        {"messages": [CHAT[0], {"from": "function_call", "value": DEEP}, *CHAT[2:]]},
        {
            "messages": [
                TOOL_CHAT[0],
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": DEEP}}]},
                *TOOL_CHAT[2:],
            ]
        },
    ],
    ids=["tools", "tool_calls", "function_call", "arguments"],
)
def test_json_text_that_is_nested_too_deeply_rejects_its_record(record: dict[str, Any]) -> None:
    error = refused(builder_for(tokenizer_of("tools")), record)
    assert (error.kind, "nested too deeply" in error.reason) == ("bad_type", True)


def test_of_two_values_of_one_name_in_json_text_none_is_lost_in_silence() -> None:
    error = refused(builder_for(tokenizer_of("tools")), {"messages": CHAT, "tools": '[{"a": 1, "a": 2}]'})
    assert "must be a list" in error.reason
    assert "'a'" in error.reason


def test_alpacas_input_follows_its_instruction() -> None:
    tokenizer = tokenizer_of("chatml")
    fields = "input.fields={prompt='instruction', context='input', response='output'}"
    record = {"instruction": "Add.", "input": "2 2", "output": "4"}
    prompt = builder_for(tokenizer, fields, kind="prompt_response").build("r", record)
    assert "Add.\n\n2 2<|im_end|>" in tokenizer.decode(prompt.prompt_token_ids.tolist())
    without = builder_for(tokenizer, fields, kind="prompt_response").build("r", {**record, "input": ""})
    assert "Add.<|im_end|>" in tokenizer.decode(without.prompt_token_ids.tolist())


def test_lists_of_texts_are_never_cut_to_the_first_in_silence() -> None:
    tokenizer = tokenizer_of("chatml")
    record = {"prompt": "Colour?", "response": ["Blue.", "Red."]}
    assert refused(builder_for(tokenizer, kind="prompt_response"), record).kind == "list_of_texts"
    pages = {"text": ["one", "two"]}
    assert refused(builder_for(tokenizer, kind="text"), pages).kind == "list_of_texts"
    joined = builder_for(tokenizer, "input.list_of_texts=join", kind="text").build("r", pages)
    assert response_text(tokenizer, joined) == "one\n\ntwo"


def test_a_prompt_that_is_rendered_already_is_not_rendered_again() -> None:
    tokenizer = tokenizer_of("chatml")
    rendered = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    error = refused(builder_for(tokenizer, kind="prompt", mode="generate"), {"prompt": rendered})
    assert error.kind == "rendered_already"
    plain = builder_for(tokenizer, "input.chat_template=false", kind="prompt", mode="generate")
    ids = plain.build("r", {"prompt": rendered}).prompt_token_ids.tolist()
    assert ids == expected(tokenizer, CHAT[:1], add_generation_prompt=True)


@pytest.mark.parametrize("family", ["byte_bpe", "metaspace", "metaspace_no_prefix"])
@pytest.mark.parametrize("adds_eos", [False, True])
def test_plain_text_has_one_beginning_and_no_end_of_its_own(family: str, adds_eos: bool) -> None:
    tokenizer = byte_tokenizer(family=family, bos="<s>", adds_eos=adds_eos)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    plain = ("input.chat_template=false",)
    for text in ("Once the houses", "<s>Once the houses"):
        prompt = builder_for(tokenizer, *plain, kind="prompt", mode="generate").build("r", {"prompt": text})
        ids = prompt.prompt_token_ids.tolist()
        assert (ids[0], ids.count(bos), ids.count(eos)) == (bos, 1, 0)
        whole = builder_for(tokenizer, kind="text").build("r", {"text": text})
        assert whole.response_token_ids is not None
        assert whole.response_token_ids.tolist() == ids


@pytest.mark.parametrize("family", ["byte_bpe", "metaspace", "metaspace_no_prefix"])
def test_a_response_goes_on_where_the_prompt_ends(family: str) -> None:
    tokenizer = byte_tokenizer(family=family, bos="<s>", adds_eos=True)
    builder = builder_for(tokenizer, "input.chat_template=false", kind="prompt_response")
    for prompt_text, response in (("Capital of France? Answer:", " Paris"), ("the hous", "es are big")):
        prompt = builder.build("r", {"prompt": prompt_text, "response": response})
        assert prompt.response_token_ids is not None
        bos = tokenizer.bos_token_id
        assert _spelled(tokenizer, whole_ids(prompt)[1:]) == prompt_text + response
        assert whole_ids(prompt)[0] == bos
        assert _spelled(tokenizer, prompt.prompt_token_ids.tolist()[1:]) == prompt_text


def _spelled(tokenizer: Any, ids: list[int]) -> str:
    """The text of the tokens themselves, white space within them kept."""
    spelled = "".join(tokenizer.convert_ids_to_tokens(ids))
    return spelled.replace("\u2581", " ").replace("\u0120", " ").removeprefix(" ")


def test_null_content_that_a_template_cannot_take_is_empty_text() -> None:
    """As vLLM's own chat has it; and an empty content with the same calls is the same record."""
    tokenizer = copy(tokenizer_of("chatml"))
    tokenizer.chat_template = TEMPLATES["tools"].replace(
        "{% if m['content'] %}{{ m['content'] }}{% endif %}", "{{ m['content'] + '' }}"
    )
    meant = [{**message, "content": message["content"] or ""} for message in TOOL_CHAT]
    for settings in ([], ["labels.turns=all"]):
        builder = builder_for(tokenizer, *settings)
        prompt = builder.build("r", {"messages": TOOL_CHAT, "tools": TOOLS})
        assert whole_ids(prompt) == expected(tokenizer, meant, tools=TOOLS)[:-1]
        assert whole_ids(builder.build("r", {"messages": meant, "tools": TOOLS})) == whole_ids(prompt)
    tokenizer.chat_template = TEMPLATES["chatml"].replace("m['content']", "m['content'] + ''")
    for messages in (TOOL_CHAT, meant):
        error = refused(builder_for(tokenizer), {"messages": messages})
        assert (error.kind, "does not read 'tool_calls'" in error.reason) == ("unread_key", True)
