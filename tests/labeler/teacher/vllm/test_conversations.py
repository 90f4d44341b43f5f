"""Conversations in the real engine: the ids that vLLM's own chat sends, and labels of whole traces.

Shape legend: T tokens, N label rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.labels import agreement
from labeler.config.loading import load_job
from labeler.prompting.prompts import ContextLimits, PromptBuilder
from labeler.prompting.segment_marks import find_marks
from labeler.prompting.tokenization import load_tokenizer
from labeler.worker.segmenting import Segmenter, with_segments
from logitstore.records import SEGMENT_NAMES
from tests.labeler import engines
from tests.labeler.planning.conversations import CHAT, TOOL_CHAT, TOOLS
from tests.labeler.planning.templates import TEMPLATES

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600), engines.needs_model]

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
AS_JSON_TEXT = [
    {**message, "tool_calls": [{**call, "function": {**call["function"], "arguments": '{"city": "Rome"}'}}]}
    if (call := (message.get("tool_calls") or [None])[0])
    else message
    for message in TOOL_CHAT
]
"""The tool trace as OpenAI's files have it: arguments are text."""
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Two"}, {"type": "text", "text": "and two?"}]}]
AS_VLLM_WRITES = [CHAT[0], {**CHAT[1], "reasoning": "2 + 2"}, CHAT[2]]
NAMES_OF_VLLM = {"reasoning_content": "reasoning"}
REASONED = [CHAT[0], {**CHAT[1], "reasoning_content": "2 + 2"}, TOOL_CHAT[2] | {"content": "5"}]


def builder_and_tokenizer(
    folder: Path, template: str | None, *settings: str
) -> tuple[PromptBuilder, Any, Any]:
    base = [f"teacher.model='{engines.MODEL}'", "input.uri=in", "input.kind=messages", "output.uri=out"]
    if template is not None:
        (folder / "template.jinja").write_text(template)
        base.append(f"input.chat_template='{folder}/template.jinja'")
    job = load_job(None, [*base, *settings], {})
    tokenizer = load_tokenizer(job.teacher, job.input, job.sampling)
    return PromptBuilder(job, tokenizer, ContextLimits(49_152, engines.MAX_MODEL_LEN)), tokenizer, job


@pytest.fixture(scope="module")
def llm() -> Any:
    """vLLM's `LLM`, as its constructor makes it, around the engine that the tests share."""
    from vllm import LLM
    from vllm.v1.engine.llm_engine import LLMEngine

    engine = engines.generate_teacher().engine
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LLMEngine, "from_engine_args", classmethod(lambda cls, *args, **kwargs: engine))
        return LLM(str(engines.MODEL))


@pytest.mark.parametrize(
    ("template", "messages", "tools", "kwargs"),
    [
        (None, CHAT[:3], None, {}),
        (None, [{"role": "system", "content": "Be brief."}, *CHAT[:1]], None, {}),
        (None, PARTS, None, {}),
        ("tools", TOOL_CHAT[:3], TOOLS, {}),
        ("tools", AS_JSON_TEXT[:3], TOOLS, {}),
        ("qwen3", CHAT[:3], None, {"enable_thinking": False}),
        ("qwen3", REASONED, None, {}),
        ("qwen3", AS_VLLM_WRITES, None, {}),
        ("dated", CHAT[:1], None, {"date_string": "1 Jan 2026"}),
        ("gemma", CHAT[:3], None, {}),
    ],
    ids=["own", "system", "parts", "tools", "json", "no thinking", "reasoning", "theirs", "dated", "gemma"],
)
def test_the_ids_sent_are_those_of_vllms_own_chat(
    llm: Any, tmp_path: Path, template: str | None, messages: Any, tools: Any, kwargs: dict[str, Any]
) -> None:
    from vllm import SamplingParams

    text = None if template is None else TEMPLATES[template]
    settings = [f"input.chat_template_kwargs.{name}={json.dumps(value)}" for name, value in kwargs.items()]
    builder, _, _ = builder_and_tokenizer(tmp_path, text, "labels.mode=generate", *settings)
    ours = builder.build("r", {"messages": messages, "tools": tools}).prompt_token_ids.tolist()
    # Their name for it; a "reasoning_content" is dropped by their chat, and by ours it is not.
    theirs = [{NAMES_OF_VLLM.get(key, key): value for key, value in one.items()} for one in messages]
    (output,) = llm.chat(
        theirs,
        SamplingParams(max_tokens=1, temperature=0.0),
        use_tqdm=False,
        chat_template=text,
        tools=tools,
        chat_template_kwargs=kwargs,
    )
    assert ours == list(output.prompt_token_ids)
    assert len(ours) > 10


CONTEXT, TOOL, ANSWER, END = "context", "tool", "answer", "end"
CALL_TEXT = '<tool_call>{"name": "get_temp", "arguments": {"city": "Rome"}}</tool_call>'
TOOLS_TEXT = '{"type": "function", "function": {"name": "get_temp", "parameters": {"type": "object"}}}'
IM_END = "<|im_end|>"
TOOL_TRACE = [
    (f"<|im_start|>system\nTOOLS {TOOLS_TEXT}{IM_END}\n", CONTEXT),
    (f"<|im_start|>user\nHow warm is Rome?{IM_END}\n<|im_start|>assistant\n", CONTEXT),
    (CALL_TEXT, TOOL),
    (IM_END, END),
    (f"\n<|im_start|>tool\n21{IM_END}\n<|im_start|>assistant\n", CONTEXT),
    ("21 degrees.", ANSWER),
    (IM_END, END),
]
TWO_TURNS = [
    (f"<|im_start|>system\n{SYSTEM}{IM_END}\n", CONTEXT),
    (f"<|im_start|>user\nTwo and two?{IM_END}\n<|im_start|>assistant\n", CONTEXT),
    ("It is 4.", ANSWER),
    (IM_END, END),
    (f"\n<|im_start|>user\nAnd three?{IM_END}\n<|im_start|>assistant\n", CONTEXT),
    ("It is 5.", ANSWER),
    (IM_END, END),
]
"""Written by hand: the whole text of the conversation, and what each piece of it is."""


def by_hand(pieces: list[tuple[str, str]]) -> tuple[list[int], list[str]]:
    """Ids of the text, and for each the kind of the piece in which it begins."""
    tokenizer: Any = engines.tokenizer()
    encoded = tokenizer("".join(text for text, _ in pieces), return_offsets_mapping=True)
    kinds = [kind for text, kind in pieces for _ in text]
    return encoded["input_ids"], [kinds[start] for start, _ in encoded["offset_mapping"]]


@pytest.mark.parametrize(
    ("template", "record", "pieces"),
    [
        ("tools", {"messages": TOOL_CHAT, "tools": TOOLS}, TOOL_TRACE),
        (None, {"messages": CHAT}, TWO_TURNS),
    ],
    ids=["tool trace", "two turns"],
)
def test_every_turn_is_labeled_at_the_tokens_that_the_assistant_wrote(
    tmp_path: Path, template: str | None, record: dict[str, Any], pieces: list[tuple[str, str]]
) -> None:
    text = None if template is None else TEMPLATES[template]
    builder, tokenizer, job = builder_and_tokenizer(tmp_path, text, "labels.turns=all")
    prompt = builder.build("r", record)
    labeled = list(engines.labeled(engines.score_teacher(), [prompt]).values())
    marks = find_marks(tokenizer, job.labels.reasoning)
    (item,) = with_segments(labeled, [prompt], Segmenter(marks, tokenizer.ends, tokenizer.decode))
    ids, kinds = by_hand(pieces)
    assert item.token_ids_T.tolist() == ids
    assert item.segments_T is not None
    assert [SEGMENT_NAMES[number] for number in item.segments_T] == kinds
    assert item.label_start == next(place for place, kind in enumerate(kinds) if kind != CONTEXT)
    assert item.loss_mask_N.tolist() == [kind != CONTEXT for kind in kinds[item.label_start :]]
    logits_NV = agreement.reference_logits(engines.reference_model(), item)
    logprobs_NV = logits_NV - np.logaddexp.reduce(logits_NV, axis=1, keepdims=True)
    theirs_N = logprobs_NV[np.arange(len(logprobs_NV)), ids[item.label_start :]]
    assert np.abs(theirs_N - item.rows.label_logprob_N).max() < 1e-2
    assert (item.rows.token_ids_NK[:, 0] == logits_NV.argmax(axis=1)).mean() > 0.95
