"""A server with chat completions alone, without token ids or log-probabilities: its answer is the question backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from tests.labeler.teacher.openai.json_server import Reply, json_server

TEMPLATE = (
    "{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content }}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)
VOCAB_SIZE = 258


def write_student(folder: Path) -> Path:
    """Config and tokenizer of a student whose tokens are bytes."""
    LlamaConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=512).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|s|>", "<|e|>")])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|e|>", chat_template=TEMPLATE)
    made.save_pretrained(folder)
    return folder


def answer_to(messages: list[dict[str, str]], most: int) -> dict[str, Any]:
    asked = messages[-1]["content"]
    if asked.startswith("forbidden"):
        return {"message": {"role": "assistant", "content": None, "refusal": "No."}, "finish_reason": "stop"}
    if asked.startswith(("ponder", "mute")):
        message = {"role": "assistant", "content": None}
        thought = {"reasoning_content": "I do not kn"} if asked.startswith("ponder") else {}
        return {"message": message | thought, "finish_reason": "length"}
    text = asked[::-1]
    message: dict[str, Any] = {"role": "assistant", "content": text[:most]}
    if asked.startswith("think"):
        message["reasoning_content"] = "Backwards."
    return {"message": message, "finish_reason": "stop" if len(text) <= most else "length"}


def chat_reply(path: str, body: dict[str, Any]) -> Reply:
    """Status and body of OpenAI's own form."""
    if path != "/v1/chat/completions":
        return 404, {"error": {"message": "unknown path"}}
    choice = {"index": 0, **answer_to(body["messages"], body["max_tokens"])}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    answer = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
    return 200, {**answer, "choices": [choice], "usage": usage}


@contextmanager
def chat_server(
    asked: list[dict[str, Any]], reply: Callable[[str, dict[str, Any]], Reply] = chat_reply
) -> Iterator[str]:
    """Its address up to the version; `asked` gets every request."""

    def reply_noted(path: str, _: Message, body: dict[str, Any]) -> Reply:
        asked.append(body)
        return reply(path, body)

    with json_server(reply_noted) as address:
        yield address
