"""Tokenizers of the job: the teacher's own, and bytes for the stand-in teacher.

`transformers` is imported only when a real tokenizer is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from labeler.config.loading import ConfigError, TeacherConfig
from logitstore.manifest.fields import TokenizerInfo
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
"""{"role": ..., "content": ...}"""

START_OF_TURN, END_OF_TURN, END_OF_TEXT = 256, 257, 258
"""Ids of the byte tokenizer's markers."""
BYTE_MARKERS = {START_OF_TURN: "<|start|>", END_OF_TURN: "<|end|>", END_OF_TEXT: "<|eos|>"}


class ChatTemplateError(ValueError):
    """The chat template refuses these messages; the message says why."""


class Tokenizer(Protocol):
    """Text to ids, and messages to text."""

    @property
    def info(self) -> TokenizerInfo: ...

    @property
    def chat_template(self) -> str | None:
        """The template's text; None where there is none, or none that is a text of its own."""
        ...

    @property
    def special_tokens(self) -> str:
        """Special tokens by role, as JSON."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of markers that are no text, such as the end of a turn."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of `text`; marker names in it become markers. `add_special_tokens` adds BOS and the like
        where the tokenizer does so of itself."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The messages in the chat template. Raises ChatTemplateError."""
        ...


class HuggingFaceTokenizer:
    """The teacher's own tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special_ids = frozenset(tokenizer.all_special_ids)

    @property
    def info(self) -> TokenizerInfo:
        return TokenizerInfo(
            fingerprint=tokenizer_fingerprint(self._tokenizer.get_vocab()), vocab_size=len(self._tokenizer)
        )

    @property
    def chat_template(self) -> str | None:
        template = self._tokenizer.chat_template
        return (
            template
            if template is None or isinstance(template, str)
            else json.dumps(template, sort_keys=True)
        )

    @property
    def special_tokens(self) -> str:
        return json.dumps(self._tokenizer.special_tokens_map, sort_keys=True, ensure_ascii=False, default=str)

    @property
    def special_ids(self) -> frozenset[int]:
        return self._special_ids

    @property
    def has_chat_template(self) -> bool:
        return self._tokenizer.chat_template is not None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ChatTemplateError(f"the chat template refuses the messages: {error}") from None
        return str(text)


class ByteTokenizer:
    """UTF-8 bytes and three markers: all the stand-in teacher needs."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    @property
    def info(self) -> TokenizerInfo:
        vocabulary = {f"<0x{value:02X}>": value for value in range(256)}
        vocabulary |= {name: marker for marker, name in BYTE_MARKERS.items()}
        return TokenizerInfo(fingerprint=tokenizer_fingerprint(vocabulary), vocab_size=len(vocabulary))

    @property
    def chat_template(self) -> str | None:
        return None

    @property
    def special_tokens(self) -> str:
        return json.dumps(BYTE_MARKERS)

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(BYTE_MARKERS)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = []
        while text:
            position, marker = min(
                ((text.find(name), marker) for marker, name in BYTE_MARKERS.items() if name in text),
                default=(len(text), None),
            )
            ids.extend(text[:position].encode("utf-8", errors="replace"))
            if marker is None:
                break
            ids.append(marker)
            text = text[position + len(BYTE_MARKERS[marker]) :]
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        pieces = (
            BYTE_MARKERS[i].encode() if i in BYTE_MARKERS else bytes([i]) if i < 256 else b"?"
            for i in token_ids
        )
        return b"".join(pieces).decode("utf-8", errors="replace")

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        start, end = BYTE_MARKERS[START_OF_TURN], BYTE_MARKERS[END_OF_TURN]
        turns = [f"{start}{message['role']}\n{message['content']}{end}\n" for message in messages]
        return "".join(turns) + (f"{start}assistant\n" if add_generation_prompt else "")


def load_tokenizer(config: TeacherConfig) -> HuggingFaceTokenizer | ByteTokenizer:
    """The tokenizer of the job's teacher. Raises ConfigError where there is none."""
    if config.engine == "fake":
        return ByteTokenizer(config.fake.vocab_size)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"teacher.model = {config.model!r}: its tokenizer cannot be loaded ({_first_line(error)}); "
            "give the folder or the Hugging Face id of a complete model"
        ) from None
    return HuggingFaceTokenizer(tokenizer)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
