"""Conversations, and the prompts that are made of them by a template."""

from typing import Any

import pytest

from labeler.config.loading import load_job
from labeler.errors import BadRecordError
from labeler.prompting.prompts import ContextLimits, PromptBuilder
from labeler.prompting.tokenization import HuggingFaceTokenizer

CHAT = [
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And three?"},
    {"role": "assistant", "content": "It is 5."},
]
TOOLS = [{"type": "function", "function": {"name": "get_temp", "parameters": {"type": "object"}}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "get_temp", "arguments": {"city": "Rome"}}}
TOOL_CHAT = [
    {"role": "user", "content": "How warm is Rome?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "name": "get_temp", "content": "21"},
    {"role": "assistant", "content": "21 degrees."},
]


def builder_for(
    tokenizer: Any, *overrides: str, kind: str = "messages", mode: str = "score"
) -> PromptBuilder:
    base = [
        "teacher.engine=fake",
        "input.uri=in",
        "output.uri=out",
        f"input.kind={kind}",
        f"labels.mode={mode}",
    ]
    job = load_job(None, [*base, *overrides], {})
    chat = job.input
    template = None if isinstance(chat.chat_template, bool) else open(chat.chat_template).read()  # noqa: SIM115
    own = HuggingFaceTokenizer(
        tokenizer, chat_template=template, chat_template_kwargs=chat.chat_template_kwargs
    )
    return PromptBuilder(job, own, ContextLimits(1000, 4096))


def whole_ids(prompt: Any) -> list[int]:
    return [*prompt.prompt_token_ids.tolist(), *prompt.response_token_ids.tolist()]


def response_text(tokenizer: Any, prompt: Any) -> str:
    return tokenizer.decode(prompt.response_token_ids.tolist())


def expected(tokenizer: Any, messages: list[dict[str, Any]], **arguments: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **arguments))


def refused(builder: PromptBuilder, record: dict[str, Any]) -> BadRecordError:
    with pytest.raises(BadRecordError) as caught:
        builder.build("r", record)
    return caught.value
