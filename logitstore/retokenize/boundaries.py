"""Sequences in another tokenizer's tokens, and the places where both tokenizations begin a token.

A sequence is cut into pieces: special tokens that the student has too stand for themselves, everything
between them is text, which the student's tokenizer splits in its own way. The prompt and the response
are separate pieces. Offsets are bytes of the text, a special token counting as one.

Shape legend: T the teacher's tokens of a sequence, S the student's, V the teacher's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from logitstore.records import LabeledSequence
from logitstore.retokenize.tokenization import NO_ID, Tokenization

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NOT_SHARED = -1


class UnwritableTextError(ValueError):
    """A sequence that the other tokenizer cannot write; `kind` is a stable word to count by."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


Place = Literal["beginning", "after special", "after text"]
"""Where in a sequence a text stands, by which a tokenizer may put a space of its own before it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a sequence."""

    first: int
    """Position of its first token, the teacher's."""
    lengths: np.ndarray
    """int64, bytes of each of the teacher's tokens."""
    text: str
    equal_id: int
    """The student's id of a special token; NO_ID for a text."""
    has_dummy_space: bool
    """The teacher's tokens begin with a space that the text does not have."""
    place: Place
    """Where it stands: its "beginning" may have tokens before it that the student's tokenizer puts there."""


@dataclass(frozen=True, slots=True)
class Writing:
    """A sequence in the student's tokens."""

    token_ids_S: np.ndarray
    """int32."""
    prompt_length: int
    shared_S: np.ndarray
    """int32 [S + 1]: the teacher's position that begins where the student's does, or NOT_SHARED."""
    offsets_S: np.ndarray
    """int64 [S + 1]: where each of the student's tokens begins; the last item is the end."""
    offsets_T: np.ndarray
    """int64 [T + 1]: the same of the teacher's tokens."""


class Writer:
    """Writes sequences of one tokenizer in the tokens of another."""

    def __init__(self, teacher: Tokenization, student: Tokenization, equal_V: np.ndarray) -> None:
        self._teacher, self._student, self._equal_V = teacher, student, equal_V
        self._encoders: dict[Place, Tokenizer] = {
            "beginning": student.encoder,
            "after special": student.inner_encoder,
            "after text": student.continuing_encoder,
        }
        is_special = np.zeros(teacher.vocab_size, bool)
        is_special[sorted(teacher.special)] = True
        its_equal_is = np.isin(equal_V, sorted(student.special)) & (equal_V != NO_ID)
        self._stands_alone_V = (is_special & (equal_V != NO_ID)) | its_equal_is
        self._is_known_V = np.zeros(teacher.vocab_size, bool)
        self._is_known_V[sorted(teacher.bytes_by_id)] = True
        self._unequal_V = is_special & (equal_V == NO_ID)

    def unequal(self, sequence: LabeledSequence) -> list[str]:
        """Texts of the special tokens in the sequence that the student does not have: it sees their text."""
        ids_T = sequence.token_ids_T
        return [
            self._teacher.bytes_by_id[token_id].decode()
            for token_id in ids_T[self._unequal_V[ids_T]].tolist()
        ]

    def write(self, sequences: Sequence[LabeledSequence]) -> list[Writing | UnwritableTextError]:
        """Each sequence in the student's tokens, or why it cannot be written; encodes all texts at once."""
        cut: list[list[Piece] | UnwritableTextError] = []
        for sequence in sequences:
            try:
                cut.append(self._pieces(sequence))
            except UnwritableTextError as error:
                cut.append(error)
        whole = [piece for pieces in cut if isinstance(pieces, list) for piece in pieces]
        encoded = {
            place: iter(
                encoder.encode_batch_fast(
                    [one.text for one in whole if one.equal_id == NO_ID and one.place == place],
                    add_special_tokens=False,
                )
            )
            for place, encoder in self._encoders.items()
        }
        written: list[Writing | UnwritableTextError] = []
        for sequence, pieces in zip(sequences, cut, strict=True):
            if isinstance(pieces, UnwritableTextError):
                written.append(pieces)
                continue
            tokens = [
                [piece.equal_id] if piece.equal_id != NO_ID else next(encoded[piece.place]).ids
                for piece in pieces
            ]
            try:
                written.append(self._join(sequence, pieces, tokens))
            except UnwritableTextError as error:
                written.append(error)
        return written

    def _pieces(self, sequence: LabeledSequence) -> list[Piece]:
        ids_T = sequence.token_ids_T
        if not self._is_known_V[ids_T].all():
            raise UnwritableTextError(
                "unknown_token",
                f"token id {int(ids_T[~self._is_known_V[ids_T]][0])} is no token of the teacher's tokenizer, "
                "so it has no text",
            )
        alone = np.flatnonzero(self._stands_alone_V[ids_T])
        cuts = {0, len(ids_T), sequence.prompt_length, *alone.tolist(), *(alone + 1).tolist()}
        bounds = sorted(cuts)
        alone_set = set(alone.tolist())
        pieces: list[Piece] = []
        for first, end in pairwise(bounds):
            if first in alone_set:
                equal = int(self._equal_V[ids_T[first]])
                pieces.append(Piece(first, np.ones(1, np.int64), "", equal, False, "beginning"))
            else:
                begins = self._begins(ids_T, first, pieces)
                piece = self._text_piece(ids_T, first, end, begins=begins, is_last=end == len(ids_T))
                pieces.append(replace(piece, place=self._place(pieces)))
        return pieces

    def _place(self, before: list[Piece]) -> Place:
        """Where a text stands after these pieces."""
        if tuple(one.equal_id for one in before) in ((), self._student.leading):
            return "beginning"
        return "after text" if before[-1].equal_id == NO_ID else "after special"

    def _begins(self, ids_T: np.ndarray, first: int, pieces: list[Piece]) -> bool:
        """Whether the teacher's tokenizer would put a space of its own before a text at this place."""
        if not pieces or tuple(ids_T[:first].tolist()) == self._teacher.leading:
            return True
        return self._teacher.has_inner_dummy_prefix and pieces[-1].equal_id != NO_ID

    def _text_piece(self, ids_T: np.ndarray, first: int, end: int, *, begins: bool, is_last: bool) -> Piece:
        parts = [self._teacher.bytes_by_id[token_id] for token_id in ids_T[first:end].tolist()]
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        raw = b"".join(parts)
        has_dummy = begins and self._teacher.has_dummy_prefix and raw.startswith(b" ")
        if has_dummy:
            raw = raw[1:]
            lengths[int(np.flatnonzero(lengths)[0])] -= 1
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            if not (is_last and error.reason == "unexpected end of data"):
                raise UnwritableTextError(
                    "not_utf8",
                    f"bytes {raw[error.start : error.start + 4]!r} of its text are no characters, and the "
                    "student's tokenizer takes characters only",
                ) from error
            text = raw[: error.start].decode()  # the last character is cut: so is its beginning
        return Piece(first, lengths, text, NO_ID, has_dummy, "beginning")

    def _join(self, sequence: LabeledSequence, pieces: list[Piece], tokens: list[list[int]]) -> Writing:
        lengths_T = np.zeros(len(sequence.token_ids_T), np.int64)
        lengths_S, usable_S, unusable_T = list[int](), list[bool](), set[int]()
        prompt_length = 0
        leading = list(self._student.leading)
        if leading and tokens and tokens[0][:1] == leading[:1]:
            leading = []
        for piece, token_ids in zip(pieces, tokens, strict=True):
            lengths_T[piece.first : piece.first + len(piece.lengths)] = piece.lengths
            if piece.first < sequence.prompt_length:
                prompt_length += len(token_ids)
            if piece.equal_id != NO_ID:
                lengths_S.append(1)
                usable_S.append(True)
                continue
            lengths, has_dummy = self._student_lengths(piece.text, token_ids)
            lengths_S += lengths
            usable_S += [True] * len(lengths)
            # Where one side alone has such a space, the entries there are not those of the other side.
            if piece.has_dummy_space and not has_dummy:
                unusable_T.add(piece.first)
            if has_dummy and not piece.has_dummy_space:
                usable_S[-len(lengths)] = False
        ids_S = np.array([*leading, *(token_id for ids in tokens for token_id in ids)], np.int32)
        offsets_T = np.concatenate([[0], np.cumsum(lengths_T)])
        before = [0] * len(leading)
        offsets_S = np.concatenate([[0], np.cumsum(np.array([*before, *lengths_S], np.int64))])
        shared_S = _shared(offsets_T, offsets_S)
        usable = np.array([*([False] * len(leading)), *usable_S, True])
        shared_S[~usable] = NOT_SHARED
        for position in unusable_T:
            shared_S[shared_S == position] = NOT_SHARED
        return Writing(ids_S, prompt_length + len(leading), shared_S, offsets_S, offsets_T)

    def _student_lengths(self, text: str, token_ids: list[int]) -> tuple[list[int], bool]:
        """Bytes of the student's tokens, and whether they begin with a space that the text does not have."""
        parts = [self._student.bytes_by_id[token_id] for token_id in token_ids]
        raw, found = text.encode(), b"".join(parts)
        lengths = list(map(len, parts))
        if found == raw:
            return lengths, False
        if self._student.has_dummy_prefix and found == b" " + raw:
            lengths[next(at for at, length in enumerate(lengths) if length)] -= 1
            return lengths, True
        at = next((at for at, (a, b) in enumerate(zip(raw, found, strict=False)) if a != b), len(raw))
        raise UnwritableTextError(
            "changed_text",
            f"the student's tokenizer writes {raw[at : at + 16]!r} as {found[at : at + 16]!r}: it changes "
            "the text, so its tokens do not stand for the teacher's bytes",
        )


def _shared(offsets_T: np.ndarray, offsets_S: np.ndarray) -> np.ndarray:
    """int32 [S + 1]. Of tokens of no bytes, the last position at an offset is meant, on both sides."""
    place_S = np.searchsorted(offsets_T, offsets_S, side="right") - 1
    is_last_S = np.append(offsets_S[1:] > offsets_S[:-1], True)
    return np.where((offsets_T[place_S] == offsets_S) & is_last_S, place_S, NOT_SHARED).astype(np.int32)
