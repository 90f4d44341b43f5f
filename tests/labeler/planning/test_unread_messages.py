"""What a chat template leaves out of a conversation, and roles that it is not made for, are never silent."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import pytest

from labeler.config.loading import InputConfig, TeacherConfig, load_job
from labeler.prompting.tokenization import load_tokenizer
from logitstore.common.config_file import ConfigError
from tests.labeler.planning.conversations import CHAT, builder_for, refused, response_text, whole_ids
from tests.labeler.planning.templates import tokenizer_of

TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SYSTEM = {"role": "system", "content": "Talk like a pirate."}
LEAVE_OUT = {
    "system messages": (
        "{% for m in messages if m['role'] != 'system' %}" + TURN + "{% endfor %}",
        [SYSTEM, *CHAT],
        1,
    ),
    "a later system message": (
        "{% for m in messages %}{% if m['role'] != 'system' or loop.first %}"
        + TURN
        + "{% endif %}{% endfor %}",
        [SYSTEM, CHAT[0], {"role": "system", "content": "Now be brief."}, *CHAT[1:]],
        3,
    ),
    "all but the last turns": ("{% for m in messages[-2:] %}" + TURN + "{% endfor %}", CHAT, 1),
    "answers of tools": (
        "{% for m in messages if m['role'] in ('user', 'assistant') %}" + TURN + "{% endfor %}",
        [CHAT[0], {"role": "tool", "content": "21 degrees"}, CHAT[1]],
        2,
    ),
}


def tokenizer_with(template: str) -> Any:
    tokenizer = copy(tokenizer_of("chatml"))
    tokenizer.chat_template = template + OPEN
    return tokenizer


@pytest.mark.parametrize("left_out", LEAVE_OUT)
@pytest.mark.parametrize("mode", ["score", "generate"])
def test_a_message_that_the_template_leaves_out_rejects_the_record(left_out: str, mode: str) -> None:
    template, messages, place = LEAVE_OUT[left_out]
    error = refused(builder_for(tokenizer_with(template), mode=mode), {"messages": messages})
    assert error.kind == "unread_message"
    assert f"leaves out message {place}, of {messages[place - 1]['role']!r}" in error.reason
    assert messages[place - 1]["content"] in error.reason


def test_a_jobs_system_prompt_is_not_lost_either() -> None:
    builder = builder_for(
        tokenizer_with(LEAVE_OUT["system messages"][0]),
        "input.system_prompt=Be brief.",
        kind="prompt",
        mode="generate",
    )
    assert refused(builder, {"prompt": "Two and two?"}).kind == "unread_message"


def test_a_text_that_the_template_shortens_is_counted_and_said() -> None:
    cut = "{% for m in messages %}" + TURN.replace("m['content']", "m['content'][:5]") + "{% endfor %}"
    for template, num_changed in ((cut, 1), ("{% for m in messages %}" + TURN + "{% endfor %}", 0)):
        builder = builder_for(tokenizer_with(template))
        builder.build("r", {"messages": CHAT})
        assert builder.exchanges.num_changed_texts == num_changed
        assert ("changes or shortens" in builder.exchanges.fallbacks) is bool(num_changed)
    thoughts = {"role": "assistant", "content": "<think>hm</think>It is 4."}
    builder = builder_for(tokenizer_of("r1"), mode="generate")
    builder.build("r", {"messages": [CHAT[0], thoughts, CHAT[2]]})
    assert builder.exchanges.num_changed_texts == 1


@pytest.mark.parametrize("role", ["model", "Assistant", "bard", "narrator"])
def test_a_role_that_no_template_is_made_for_rejects_the_record(role: str) -> None:
    """A template that prints any role would show it, and the answer below it would be taken for a question."""
    messages = [CHAT[0], {"role": role, "content": "It is 4."}]
    for shape in ("chatml", "gemma"):
        error = refused(builder_for(tokenizer_of(shape), mode="generate"), {"messages": messages})
        assert error.kind == "unknown_role"
        assert f"message 2 is of the role {role!r}" in error.reason


def test_a_role_that_the_template_names_is_its_own() -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'narrator' %}NARRATOR {% endif %}" + TURN + "{% endfor %}"
    )
    messages = [{"role": "narrator", "content": "Night."}, *CHAT]
    tokenizer = tokenizer_with(template)
    prompt = builder_for(tokenizer).build("r", {"messages": messages})
    assert "NARRATOR <|im_start|>narrator\nNight." in tokenizer.decode(whole_ids(prompt))


def test_sharegpts_calls_of_functions_are_calls_of_tools() -> None:
    tokenizer = tokenizer_of("tools")
    call = '{"name": "get_temp", "arguments": {"city": "Rome"}}'
    turns = [
        {"from": "human", "value": "How warm is Rome?"},
        {"from": "function_call", "value": call},
        {"from": "observation", "value": "21"},
        {"from": "gpt", "value": "21 degrees."},
    ]
    prompt = builder_for(tokenizer).build("r", {"messages": turns})
    assert f"assistant\n<tool_call>{call}</tool_call><|im_end|>" in tokenizer.decode(whole_ids(prompt))
    last = builder_for(tokenizer).build("r", {"messages": turns[:2]})
    assert response_text(tokenizer, last) == f"<tool_call>{call}</tool_call><|im_end|>"
    several = {"from": "function_call", "value": f"[{call}, {call}]"}
    prompt = builder_for(tokenizer).build("r", {"messages": [turns[0], several, *turns[2:]]})
    assert tokenizer.decode(whole_ids(prompt)).count(call) == 2
    for bad in ("get_temp(Rome)", "7", '{"arguments": {}}'):
        error = refused(
            builder_for(tokenizer), {"messages": [turns[0], {"from": "function_call", "value": bad}]}
        )
        assert error.kind == "bad_type"
        assert "the value of a function_call is" in error.reason


@pytest.mark.parametrize("key", ["train", "training", "loss"])
def test_an_answer_that_is_not_to_be_learned_is_not_labeled(key: str) -> None:
    """As axolotl's data says it; `weight` is OpenAI's key for the same."""
    tokenizer = tokenizer_of("chatml")
    messages = [CHAT[0], {**CHAT[1], key: False}, *CHAT[2:]]
    builder = builder_for(tokenizer, "labels.turns=all")
    prompt = builder.build("r", {"messages": messages})
    assert prompt.loss_mask_T is not None
    learned = [token for token, counts in zip(whole_ids(prompt), prompt.loss_mask_T, strict=True) if counts]
    assert tokenizer.decode(learned) == "It is 5.<|im_end|>"
    error = refused(builder_for(tokenizer), {"messages": messages[:2]})
    assert (error.kind, "not to be learned" in error.reason) == ("no_response", True)


def test_texts_of_openais_responses_are_texts() -> None:
    tokenizer = tokenizer_of("chatml")
    messages = [
        {"role": "user", "content": [{"type": "input_text", "text": "Two and two?"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "It is 4."}]},
    ]
    prompt = builder_for(tokenizer).build("r", {"messages": messages})
    assert whole_ids(prompt) == whole_ids(builder_for(tokenizer).build("r", {"messages": CHAT[:2]}))


def test_the_same_greedy_response_several_times_is_refused() -> None:
    settings = [
        "teacher.model=m",
        "input.uri=in",
        "input.kind=prompt",
        "output.uri=out",
        "labels.mode=generate",
    ]
    settings.append("sampling.n=3")
    assert load_job(None, [*settings, "sampling.temperature=1"], {}).labels_per_record == 3
    with pytest.raises(
        ConfigError, match="writes and labels the same response 3 times; set n = 1, or a temp"
    ):
        load_job(None, [*settings, "sampling.temperature=0"], {})


def test_a_template_variable_that_is_not_read_is_refused_before_the_start(tmp_path: Path) -> None:
    """A misspelt enable_thinking would change nothing, and nobody would know."""
    tokenizer_of("qwen3").save_pretrained(tmp_path)
    teacher = TeacherConfig(model=str(tmp_path))
    for name in ("enable_thinking", "enable_thinkng"):
        chat = InputConfig(uri="in", kind="prompt", chat_template_kwargs={name: False})
        if name == "enable_thinking":
            load_tokenizer(teacher, chat)
            continue
        with pytest.raises(ConfigError, match="sets 'enable_thinkng', which the chat template does not read"):
            load_tokenizer(teacher, chat)
