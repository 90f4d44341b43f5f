"""The stand-in teacher's tokenizer: bytes and three markers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from labeler.teacher.response_ends import ResponseEnds, union_of_ends
from logitstore.manifest.fields import TokenizerInfo
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint

if TYPE_CHECKING:
    from labeler.prompting.tokenization import Conversation

START_OF_TURN, END_OF_TURN, END_OF_TEXT = 256, 257, 258
"""Ids of the byte tokenizer's markers."""
BYTE_MARKERS = {START_OF_TURN: "<|start|>", END_OF_TURN: "<|end|>", END_OF_TEXT: "<|eos|>"}


class ByteTokenizer:
    """UTF-8 bytes and three markers: all the stand-in teacher needs."""

    def __init__(self, vocab_size: int, stop: Sequence[str] = (), stop_token_ids: Sequence[int] = ()) -> None:
        self._vocab_size = vocab_size
        markers = {name: marker for marker, name in BYTE_MARKERS.items()}
        named = [(END_OF_TURN, "tokenizer")]
        named += [(token_id, "sampling.stop_token_ids") for token_id in stop_token_ids]
        named += [(markers[text], "sampling.stop") for text in stop if text in markers]
        self._ends = ResponseEnds(
            tokens=union_of_ends(named, self.decode),
            stop=tuple(text for text in stop if text not in markers),
            blank_ids=frozenset({*BYTE_MARKERS, *b" \t\r\n"}),
        )

    @property
    def info(self) -> TokenizerInfo:
        vocabulary = {f"<0x{value:02X}>": value for value in range(256)}
        vocabulary |= {name: marker for marker, name in BYTE_MARKERS.items()}
        return TokenizerInfo(fingerprint=tokenizer_fingerprint(vocabulary), vocab_size=len(vocabulary))

    @property
    def ends(self) -> ResponseEnds:
        return self._ends

    @property
    def chat_template(self) -> str | None:
        return None

    @property
    def special_tokens(self) -> str:
        return json.dumps(BYTE_MARKERS)

    @property
    def bos_ids(self) -> tuple[int, ...]:
        return ()

    def encode(self, text: str) -> list[int]:
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

    def render_chat(self, conversation: Conversation, *, add_generation_prompt: bool) -> str:
        start, end = BYTE_MARKERS[START_OF_TURN], BYTE_MARKERS[END_OF_TURN]
        turns = [f"{start}{m['role']}\n{m['content']}{end}\n" for m in conversation.messages]
        return "".join(turns) + (f"{start}assistant\n" if add_generation_prompt else "")

    def answers_marked(self, conversation: Conversation) -> tuple[list[int], list[int]] | None:
        return None
