"""A tokenizer as tables: the bytes of each id, its special tokens, and which id of another it equals.

Shape legend: V ids of a vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.decoding.tokens import TokenTexts
from logitstore.errors import UnsupportedInputError
from logitstore.manifest.fields import MAX_VOCAB_SIZE, TokenizerInfo
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NO_ID = -1
"""In a map of ids: the id has no equal in the other vocabulary."""
WORD_MARKS = ("WordPiece", "BPEDecoder")
"""Decoders that mark pieces of words (by ## before them), or the ends of words (by </w> behind them)."""
ROLES = ("bos_token", "eos_token")
"""Tokens of `tokenizer_config.json` that stand for each other where their texts differ."""


@dataclass(frozen=True)
class Tokenization:
    """What is needed of a tokenizer to write texts in its tokens and to read its ids as bytes."""

    path: str
    """As it was given."""
    encoder: Tokenizer
    inner_encoder: Tokenizer
    """For a text after a special token: without the space that `encoder` puts at a beginning alone."""
    continuing_encoder: Tokenizer
    """For a text that goes on another, as a response on its prompt: without any space of `encoder`'s own."""
    info: TokenizerInfo
    vocab_size: int
    """Width of the logits: ids are below it; at least the tokenizer's largest id and one."""
    bytes_by_id: dict[int, bytes]
    """By rising id."""
    added: dict[str, int]
    """Added tokens by their text, special ones included."""
    special: frozenset[int]
    """Ids of special tokens: they never come of plain text."""
    roles: dict[str, int]
    """Ids of ROLES, as far as `tokenizer_config.json` names them."""
    leading: tuple[int, ...]
    """Ids that the tokenizer puts before every text of its own accord."""
    has_dummy_prefix: bool
    """It puts a space before a text that does not begin with one, as SentencePiece does."""
    has_inner_dummy_prefix: bool
    """It does so after a special token too, and not at the beginning alone."""
    word_marks: str
    """The decoder of tokens that say where words are and leave spaces to rules of language, of WORD_MARKS;
    "" for tokens that spell their text."""

    def ordinary(self) -> tuple[list[int], list[bytes]]:
        """Ids of the tokens that a text can hold, and their bytes.

        Of several with the same bytes the first stands for them: the smallest id, and no byte's fallback
        where there is another.
        """
        tokens = (self.encoder.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        fallbacks = {token_id for token_id in tokens if token_id is not None} - self.special
        found = dict(self.bytes_by_id)
        for token_id in self.special & found.keys():
            del found[token_id]
        last = {token_id: found.pop(token_id) for token_id in sorted(fallbacks)}
        return [*found, *last], [*found.values(), *last.values()]


def load_tokenization(path: str, *, vocab_size: int | None = None) -> Tokenization:
    """The tokenizer of a folder or `tokenizer.json`.

    `vocab_size` is the width of the model's logits; None takes it from the folder's `config.json`, else
    from the tokenizer. Raises UnsupportedInputError for what is no tokenizer, and without the `tokenizers`
    package.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    encoder = _encoder(path, folder / "tokenizer.json" if Path(path).is_dir() else Path(path))
    vocabulary = encoder.get_vocab()
    decoder = encoder.get_added_tokens_decoder()
    texts = TokenTexts(encoder)
    bytes_by_id = texts.raw_of_all(vocabulary)
    plain = encoder.encode("a", add_special_tokens=False).ids
    whole = encoder.encode("a", add_special_tokens=True).ids
    has_dummy_prefix = _begins_with_space(bytes_by_id, plain)
    has_inner = has_dummy_prefix and _has_inner_dummy_prefix(encoder, bytes_by_id)
    continuing = _without_prefix(encoder, bytes_by_id) if has_dummy_prefix else encoder
    width = _width(path, max(vocabulary.values()) + 1, vocab_size, _configured_width(folder))
    return Tokenization(
        path=path,
        encoder=encoder,
        inner_encoder=encoder if has_inner else continuing,
        continuing_encoder=continuing,
        info=TokenizerInfo(tokenizer_fingerprint(vocabulary), len(vocabulary)),
        vocab_size=width,
        bytes_by_id=bytes_by_id,
        added={token.content: token_id for token_id, token in decoder.items()},
        special=frozenset(token_id for token_id, token in decoder.items() if token.special),
        roles=_roles(folder, vocabulary),
        leading=tuple(whole[: _place(whole, plain)]),
        has_dummy_prefix=has_dummy_prefix,
        has_inner_dummy_prefix=has_inner,
        word_marks=next((kind for kind in WORD_MARKS if kind in texts.kinds), ""),
    )


def _encoder(path: str, file: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file, which takes any text as text. Raises UnsupportedInputError."""
    if not file.is_file():
        raise UnsupportedInputError(
            f"no tokenizer at {path!r}: it must be a tokenizer.json or a folder holding one; tokenizers of "
            "other kinds can be saved as one with transformers' AutoTokenizer(...).save_pretrained(FOLDER)"
        )
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise UnsupportedInputError(
            "reading a tokenizer needs the tokenizers package: pip install tokenizers"
        ) from error
    try:
        encoder = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare Exceptions
        raise UnsupportedInputError(f"{file} is no tokenizer that this machine reads: {error}") from error
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True  # text that looks like a special token is text
    if not encoder.get_vocab():
        raise UnsupportedInputError(f"{file} has no tokens; give the tokenizer that the model was made with")
    return encoder


def _begins_with_space(bytes_by_id: Mapping[int, bytes], ids: list[int]) -> bool:
    return b"".join(bytes_by_id[token_id] for token_id in ids).startswith(b" ")


def _has_inner_dummy_prefix(encoder: Tokenizer, bytes_by_id: Mapping[int, bytes]) -> bool:
    """Whether a text without a space gets one after a special token; True where there is none to try."""
    special = {token_id: one for token_id, one in encoder.get_added_tokens_decoder().items() if one.special}
    encoder.encode_special_tokens = False
    try:
        for token_id, one in special.items():
            ids = encoder.encode(one.content + "a", add_special_tokens=False).ids
            if ids[:1] == [token_id] and not one.rstrip:
                return _begins_with_space(bytes_by_id, ids[1:])
    finally:
        encoder.encode_special_tokens = True
    return True


def _without_prefix(encoder: Tokenizer, bytes_by_id: Mapping[int, bytes]) -> Tokenizer:
    """The same, with no space of its own before a text; itself where that is made in another way, or where
    all spaces are those before words, as in T5 of transformers, whose splitter drops the written ones."""
    from tokenizers import Tokenizer

    described = json.loads(encoder.to_str())
    for part in ("normalizer", "pre_tokenizer"):
        described[part] = _prefixless(described[part])
    inner = Tokenizer.from_str(json.dumps(described))
    inner.encode_special_tokens = True
    spelled = b"".join(
        bytes_by_id[token_id] for token_id in inner.encode("a a", add_special_tokens=False).ids
    )
    return inner if b" " in spelled else encoder


def _prefixless(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A step of a tokenizer, or a sequence of steps, as its file has it, without what puts a space first."""
    if step is None or step["type"] == "Prepend":
        return None
    changed = {"Metaspace": {"prepend_scheme": "never"}, "ByteLevel": {"add_prefix_space": False}}
    found = {**step, **changed.get(step["type"], {})}
    for steps in ("normalizers", "pretokenizers"):
        if steps in found:
            found[steps] = [one for one in map(_prefixless, found[steps]) if one is not None]
    return found


def equal_ids(teacher: Tokenization, student: Tokenization, pairs: Mapping[str, str]) -> np.ndarray:
    """int32 [V of the teacher]: the student's id that stands for the same bytes, or NO_ID.

    Special tokens are equal to those of the same text, to those that `pairs` name (the teacher's text to
    the student's), and the beginning and end of a text to the student's. No two ids of the teacher have
    the same equal: of several, one has it. Raises UnsupportedInputError for pairs of unknown tokens.
    """
    equal_V = np.full(teacher.vocab_size, NO_ID, np.int32)
    for left, right in pairs.items():
        equal_V[_added_id(teacher, left, "teacher")] = _added_id(student, right, "student")
    if len(set(pairs.values())) < len(pairs):
        raise UnsupportedInputError("--token names one token of the student twice; each can have one equal")
    taken = {token_id for token_id in equal_V.tolist() if token_id != NO_ID}
    ids, raws = student.ordinary()
    theirs = dict(zip(reversed(raws), reversed(ids), strict=True))
    theirs.pop(b"", None)
    ids, raws = teacher.ordinary()
    equals = np.fromiter(map(theirs.get, raws, repeat(NO_ID)), np.int32, len(raws))
    first = np.unique(equals, return_index=True)[1]
    ids, equals = np.array(ids)[first], equals[first]
    is_free = (equals != NO_ID) & (equal_V[ids] == NO_ID) & ~np.isin(equals, sorted(taken))
    equal_V[ids[is_free]] = equals[is_free]
    taken.update(equals[is_free].tolist())
    candidates = [
        (token_id, student.added.get(text))
        for text, token_id in teacher.added.items()
        if token_id in teacher.special or student.added.get(text) in student.special
    ]
    candidates += [(teacher.roles[role], student.roles.get(role)) for role in ROLES if role in teacher.roles]
    for token_id, equal in candidates:
        if equal is not None and equal not in taken and equal_V[token_id] == NO_ID:
            equal_V[token_id] = equal
            taken.add(equal)
    return equal_V


def _added_id(tokenization: Tokenization, text: str, whose: str) -> int:
    found = tokenization.added.get(text)
    if found is None:
        known = ", ".join(list(tokenization.added)[:8])
        raise UnsupportedInputError(
            f"--token names {text!r}, which is no added token of the {whose}'s tokenizer; those begin with: "
            f"{known or 'none'}"
        )
    return found


def _width(path: str, least: int, given: int | None, configured: int | None) -> int:
    """Number of logits: the given one, else the configured one where it is no less than the tokens need."""
    if given is not None and given < least:
        raise UnsupportedInputError(
            f"--vocab-size is {given}, but the tokenizer at {path!r} has ids up to {least - 1}; give "
            "the number of the student's logits"
        )
    width = max(given or configured or 0, least)
    if width > MAX_VOCAB_SIZE:
        whose = "--vocab-size" if given else f"the configuration of {path!r}"
        raise UnsupportedInputError(
            f"{whose} says {width:,} logits; a store holds labels of at most {MAX_VOCAB_SIZE:,}, so give the "
            "number of the student's with --vocab-size"
        )
    return width


def _configured_width(folder: Path) -> int | None:
    """`vocab_size` of a model's `config.json` beside the tokenizer."""
    value = _json_object(folder / "config.json").get("vocab_size")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedInputError(
            f"{folder / 'config.json'} has the vocab_size {value!r:.80}, which must be a number above 0; "
            "mend it"
        )
    return value


def _roles(folder: Path, vocabulary: Mapping[str, int]) -> dict[str, int]:
    config = _json_object(folder / "tokenizer_config.json")
    found: dict[str, int] = {}
    for role in ROLES:
        value = config.get(role)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text in vocabulary:
            found[role] = vocabulary[text]
    return found


def _json_object(file: Path) -> dict[str, object]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedInputError(f"{file} cannot be read as JSON: {error}; mend or remove it") from error
    return value if isinstance(value, dict) else {}


def _place(whole: list[int], part: list[int]) -> int:
    """Where `part` begins in `whole`; 0 where it is no part of it."""
    for place in range(len(whole) - len(part) + 1):
        if whole[place : place + len(part)] == part:
            return place
    return 0
