"""Text for token ids: what a person reads, whatever the tokenizer's alphabet.

A tokenizer's token is a string of bytes, and a byte-level token is often a part of a character. A
sequence is therefore decoded as one stream of bytes, in which a character stands at the token that
completes it; an alternative alone shows the bytes that make no character as hex.

Shape legend: T tokens of a sequence, V ids of the tokenizer.
"""

from __future__ import annotations

import codecs
import functools
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from logitstore.errors import UnsupportedInputError

END_OF_WORD = "</w>"
"""Ends the last token of a word where the decoder is a BPEDecoder, as GPT-1's; read as a space."""


class VocabularyDecoder(Protocol):
    """The part of `tokenizers.decoders.Decoder` used here: pickling gives its description as JSON."""

    def __getstate__(self) -> bytes: ...


class Vocabulary(Protocol):
    """The part of `tokenizers.Tokenizer` used here."""

    @property
    def decoder(self) -> VocabularyDecoder | None: ...

    def id_to_token(self, id: int) -> str | None: ...

    def get_added_tokens_decoder(self) -> dict[int, Any]: ...

    def get_vocab(self) -> dict[str, int]: ...


def visible(text: str) -> str:
    """The text with control and directional-override characters written as escapes.

    Newlines and tabs stay: the page shows them. A raw U+202E would reverse the page around it.
    """

    def one(character: str) -> str:
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            return character
        if character in "\u200c\u200d":  # joiners belong to emoji and to several scripts
            return character
        return f"\\u{ord(character):04x}"

    return "".join(map(one, text))


def piece_text(raw: bytes) -> str:
    """One token alone: its text, with bytes that are no character as hex between angle brackets."""
    try:
        return visible(raw.decode("utf-8"))
    except UnicodeDecodeError:
        text = raw.decode("utf-8", errors="surrogateescape")
        parts = [f"⟨{ord(c) - 0xDC00:02X}⟩" if 0xDC80 <= ord(c) <= 0xDCFF else visible(c) for c in text]
        return "".join(parts).replace("⟩⟨", " ")


def stream_texts(pieces: Iterable[bytes], *, is_whole: bool = True) -> list[str]:
    """Text of each token of a sequence; "" for a token whose character a later token completes.

    Bytes that no later token completes appear as `\\xNN`, as in Python; where the sequence goes on after
    `pieces`, a character that only begins in them is left out.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
    texts = [visible(decoder.decode(raw)) for raw in pieces]
    rest = decoder.decode(b"", final=True) if is_whole else ""
    if rest:
        texts[-1] += rest
    return texts


class TokenTexts:
    """Texts of ids: from a tokenizer's vocabulary, or the bare ids where none is known."""

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        self._vocabulary = vocabulary
        self._kinds: frozenset[str] = frozenset()
        self._added: dict[int, str] = {}
        self._special: frozenset[int] = frozenset()
        self._cache: dict[int, bytes] = {}
        if vocabulary is not None:
            added = vocabulary.get_added_tokens_decoder()
            self._added = {token_id: token.content for token_id, token in added.items()}
            self._special = frozenset(token_id for token_id, token in added.items() if token.special)
            if vocabulary.decoder is not None:
                self._kinds = frozenset(_decoder_types(json.loads(vocabulary.decoder.__getstate__())))

    @property
    def known(self) -> bool:
        """Whether texts come from a tokenizer."""
        return self._vocabulary is not None

    @property
    def kinds(self) -> frozenset[str]:
        """Types of the decoders that the tokenizer is made of."""
        return self._kinds

    def vocabulary(self) -> dict[str, int]:
        """Every token's id; empty where no tokenizer is known."""
        return {} if self._vocabulary is None else self._vocabulary.get_vocab()

    def raw(self, token_id: int) -> bytes:
        """Bytes that the token stands for; those of `⟨id⟩` for an id outside the vocabulary."""
        found = self._cache.get(token_id)
        if found is None:
            found = self._cache[token_id] = self._look_up(token_id)
        return found

    def raw_of_all(self, vocabulary: Mapping[str, int]) -> dict[int, bytes]:
        """`raw` of every id of its `vocabulary`, ids ascending; many times as fast as one by one."""
        token_by_id = dict(zip(vocabulary.values(), vocabulary, strict=True)) | self._added
        ids = sorted(token_by_id)
        tokens = [token_by_id[token_id] for token_id in ids]
        raws = _all_byte_level(tokens) if "ByteLevel" in self._kinds else list(map(self._plain, tokens))
        added = {token_id: token.encode() for token_id, token in self._added.items()}
        return dict(zip(ids, raws, strict=True)) | added

    def knows_all(self, token_ids_T: np.ndarray) -> bool:
        """Whether the tokenizer has each of these ids."""
        is_token_V = self._is_token_by_id
        return bool(is_token_V[np.minimum(token_ids_T, len(is_token_V) - 1)].all())

    @functools.cached_property
    def _is_token_by_id(self) -> np.ndarray:
        """bool by id, and one more: False."""
        ids = np.array([*self.vocabulary().values(), *self._added], np.int64)
        is_token_V = np.zeros(int(ids.max(initial=-1)) + 2, bool)
        is_token_V[ids] = True
        return is_token_V

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a marker, such as the end of a turn."""
        return token_id in self._special

    def piece(self, token_id: int) -> str:
        return piece_text(self.raw(token_id))

    def sequence(self, token_ids: Sequence[int], *, is_whole: bool = True) -> list[str]:
        """Each token's text; `is_whole` false for ids that are only the beginning of a sequence."""
        return stream_texts(map(self.raw, token_ids), is_whole=is_whole) if token_ids else []

    def _look_up(self, token_id: int) -> bytes:
        token = None if self._vocabulary is None else self._vocabulary.id_to_token(token_id)
        if token is None:
            return f"⟨{token_id}⟩".encode()
        if token_id in self._added:
            return token.encode()
        return self._plain(token)

    def _plain(self, token: str) -> bytes:
        """Bytes of a token that is not an added one."""
        if "ByteLevel" in self._kinds:
            return _byte_level(token)
        if "ByteFallback" in self._kinds and len(token) == 6 and token.startswith("<0x"):
            return bytes.fromhex(token[3:5])
        if "WordPiece" in self._kinds:
            return token.removeprefix("##").encode() if token.startswith("##") else b" " + token.encode()
        if "BPEDecoder" in self._kinds and token.endswith(END_OF_WORD):
            return token.removesuffix(END_OF_WORD).encode() + b" "
        return token.replace("▁", " ").encode()


def load_token_texts(path: str | None) -> TokenTexts:
    """Texts of the tokenizer in a folder or `tokenizer.json`; bare ids for None.

    Raises:
        FileNotFoundError: no `tokenizer.json` at the path.
        UnsupportedInputError: what is there is no tokenizer.
        ModuleNotFoundError: the `tokenizers` package is not installed.
    """
    if path is None:
        return TokenTexts()
    file = Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(
            f"no tokenizer at {path!r}: it must be a tokenizer.json or a folder holding one; "
            "leave --tokenizer out to see token ids"
        )
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "showing tokens as text needs the tokenizers package: pip install tokenizers, "
            "or leave --tokenizer out to see token ids"
        ) from error
    try:
        return TokenTexts(Tokenizer.from_file(str(file)))
    except Exception as error:  # the package raises bare Exceptions
        raise UnsupportedInputError(
            f"{file} is no tokenizer that this machine reads ({error}); name another with --tokenizer"
        ) from error


def _decoder_types(node: object) -> Iterable[str]:
    """Every "type" in a tokenizers decoder's description, nested ones too."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node["type"]
        for value in node.values():
            yield from _decoder_types(value)
    elif isinstance(node, list):
        for value in node:
            yield from _decoder_types(value)


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's alphabet of 256 printable characters, by character: the byte each one stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}


def _byte_level(token: str) -> bytes:
    """Bytes of a byte-level token; a character outside the alphabet stands for itself."""
    return b"".join(_BYTE_OF[c] if c in _BYTE_OF else c.encode() for c in token)


def _all_byte_level(tokens: Sequence[str]) -> list[bytes]:
    """`_byte_level` of each."""
    points = np.frombuffer("".join(tokens).encode("utf-32-le", "surrogatepass"), np.uint32)
    known = np.minimum(points, len(_BYTE_OF_POINT) - 1)
    is_byte = (_BYTE_OF_POINT[known] >= 0) & (points == known)
    raw = _BYTE_OF_POINT[known].astype(np.uint8).tobytes()
    ends = np.cumsum(np.fromiter(map(len, tokens), np.int64, len(tokens)))
    found = [raw[start:end] for start, end in pairwise([0, *ends.tolist()])]
    odd: list[int] = np.searchsorted(ends, np.flatnonzero(~is_byte), side="right").tolist()
    for place in set(odd):
        found[place] = _byte_level(tokens[place])
    return found


_BYTE_OF = _byte_alphabet()
_BYTE_OF_POINT = np.full(max(map(ord, _BYTE_OF)) + 1, -1, np.int16)
"""The byte of each character of the alphabet by its code point, -1 for a character outside it."""
_BYTE_OF_POINT[[ord(character) for character in _BYTE_OF]] = [raw[0] for raw in _BYTE_OF.values()]
