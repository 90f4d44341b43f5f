"""Codebooks: orders of the vocabulary that give likely ids small positions.

A set holds one global order and C heads, the first H ids of orders fitted to kinds of label rows. A
row codes its ids with one head, named in a byte. The position of an id under head c is its place in
that head, or H plus its place in the global order; nothing else is needed to decode, and decoding is
one table look-up. Training is in codebook_training.py.

Shape legend: C codebooks, H head length, V vocabulary, N label rows, K stored entries, S slots.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from logitstore.codec.bytecodes import NUM_STREAMS, decode_integers, encode_integers
from logitstore.codec.streams import Unpacker, damaged, pack
from logitstore.codec.writing_loops import WritingLoops, excess_of
from logitstore.errors import CorruptShardError, InvalidLabelsError, UnsupportedFormatError
from logitstore.manifest.fields import MAX_VOCAB_SIZE

MAGIC = b"logitstore-codebooks-1\n"
MAX_CODEBOOKS = 256
MAX_HEAD_ENTRIES = 1 << 22
"""Limit of C * H, so that a hostile file cannot ask for more."""
FILE_THRESHOLD = 128
BAND = 256
"""Positions from FILE_THRESHOLD on share a class byte in bands of this many (bytecodes.py)."""
_SIZES = struct.Struct("<4I")


@dataclass(frozen=True, eq=False)
class CodebookSet:
    """An immutable set of codebooks of one vocabulary."""

    global_order_V: np.ndarray
    """int32, every id once, likely ones first."""
    heads_CH: np.ndarray
    """int32, distinct ids of each row; [1, 0] when the global order is the only codebook."""
    global_length: int
    """Ids of the global order that a file lists; the rest follow in ascending order."""

    @property
    def vocab_size(self) -> int:
        return self.global_order_V.shape[0]

    @property
    def num_codebooks(self) -> int:
        return self.heads_CH.shape[0]

    @property
    def head_length(self) -> int:
        return self.heads_CH.shape[1]

    @cached_property
    def table(self) -> np.ndarray:
        """int32 [C * H + V]: all heads, then the global order."""
        return np.concatenate([self.heads_CH.reshape(-1), self.global_order_V]).astype(np.int32)

    @cached_property
    def _global_positions(self) -> np.ndarray:
        positions = np.empty(self.vocab_size, np.int32)
        positions[self.global_order_V] = np.arange(self.vocab_size, dtype=np.int32) + self.head_length
        return positions

    @cached_property
    def _slots(self) -> tuple[np.ndarray, np.ndarray]:
        """Slot of each id (int32 [V]), and positions of each slot's id under each head (int32 [S, C]).

        Slot 0 is for the ids that no head holds; its positions are not used.
        """
        is_used_V = np.zeros(self.vocab_size, bool)
        is_used_V[self.heads_CH] = True
        used = np.flatnonzero(is_used_V)
        slot_V = np.zeros(self.vocab_size, np.int32)
        slot_V[used] = np.arange(1, used.size + 1, dtype=np.int32)
        positions_SC = np.zeros((used.size + 1, self.num_codebooks), np.int32)
        positions_SC[1:] = self._global_positions[used][:, None]
        for codebook, head in enumerate(self.heads_CH):
            positions_SC[slot_V[head], codebook] = np.arange(head.size, dtype=np.int32)
        return slot_V, positions_SC

    @cached_property
    def _bits(self) -> np.ndarray:
        bits = position_bits(self._slots[1])
        bits[0] = 0  # an id that no head holds costs the same under each
        return bits

    @cached_property
    def _excess(self) -> np.ndarray:
        return excess_of(self._bits)

    def positions(
        self, token_ids_NK: np.ndarray, count_N: np.ndarray, choice_N: np.ndarray, loops: WritingLoops
    ) -> np.ndarray:
        """int32 [N, K]: the position of each id under its row's codebook; meaningless beyond `count_N`."""
        slot_V, positions_SC = self._slots
        return loops.place(token_ids_NK, count_N, choice_N, slot_V, positions_SC, self._global_positions)

    def choose(self, token_ids_NK: np.ndarray, count_N: np.ndarray, loops: WritingLoops) -> np.ndarray:
        """uint8 [N]: the codebook that makes the first `count_N` ids of a row cheapest (loops.choose)."""
        if self.num_codebooks == 1:
            return np.zeros(len(token_ids_NK), np.uint8)
        return loops.choose(token_ids_NK, count_N, self._slots[0], self._bits, self._excess)

    @cached_property
    def hash(self) -> str:
        """ "blake2b-128:<hex>" of `to_bytes()`: the name by which shards and manifests refer to the set."""
        return "blake2b-128:" + hashlib.blake2b(self.to_bytes(), digest_size=16).hexdigest()

    def to_bytes(self) -> bytes:
        """The set's file: sizes, then the global order and the heads as steps inside bands (FORMAT.md)."""
        ranks_CH = self._global_positions[self.heads_CH] - self.head_length
        streams = encode_integers(
            _to_steps(self.global_order_V[None, : self.global_length], self.head_length), FILE_THRESHOLD
        ) + encode_integers(_to_steps(ranks_CH, 0), FILE_THRESHOLD)
        sizes = (self.vocab_size, self.global_length, self.num_codebooks, self.head_length)
        return MAGIC + _SIZES.pack(*sizes) + pack(streams)

    @classmethod
    def from_bytes(cls, data: bytes) -> CodebookSet:
        """The set of a file.

        Raises:
            UnsupportedFormatError: not a codebook file, or of another version.
            CorruptShardError: the bytes are not what the format allows.
        """
        if data[: len(MAGIC)] != MAGIC:
            raise UnsupportedFormatError(
                f"a codebook file starts with {MAGIC!r}, this one with {bytes(data[: len(MAGIC)])!r}; "
                "update logitstore or give another file"
            )
        body = memoryview(data)[len(MAGIC) :]
        if len(body) < _SIZES.size:
            raise damaged(f"a codebook file of {len(data)} bytes has no room for its sizes")
        vocab_size, global_length, num_codebooks, head_length = _SIZES.unpack_from(body)
        if not (
            0 < vocab_size <= MAX_VOCAB_SIZE
            and global_length <= vocab_size
            and head_length <= vocab_size
            and 0 < num_codebooks <= MAX_CODEBOOKS
            and num_codebooks * head_length <= MAX_HEAD_ENTRIES
        ):
            raise damaged(
                f"a codebook file has vocabulary {vocab_size}, {global_length} listed ids and "
                f"{num_codebooks} heads of {head_length}, outside the limits of the format"
            )
        unpacker = Unpacker(body[_SIZES.size :], 2 * NUM_STREAMS, "codebooks", verify_checksum=True)
        steps = decode_integers(unpacker, global_length, "codebooks")
        listed = _from_steps(steps.reshape(1, -1), head_length)[0]
        steps_CH = decode_integers(unpacker, num_codebooks * head_length, "codebooks")
        ranks_CH = _from_steps(steps_CH.reshape(num_codebooks, head_length), 0)
        _check_distinct(listed[None], vocab_size)
        _check_distinct(ranks_CH, vocab_size)
        order = complete_order(listed, vocab_size)
        return cls(order, order[ranks_CH], global_length)


def position_bits(positions: np.ndarray) -> np.ndarray:
    """float32 estimate of the bits that a position costs, for choosing among codebooks."""
    return np.log2(positions.astype(np.float32) + np.float32(12))


def complete_order(listed: np.ndarray, vocab_size: int) -> np.ndarray:
    """int32 [V]: the listed ids, then all others in ascending order."""
    missing = np.ones(vocab_size, bool)
    missing[listed] = False
    return np.concatenate([listed, np.flatnonzero(missing)]).astype(np.int32)


@functools.lru_cache(maxsize=2)
def identity_codebook(vocab_size: int) -> CodebookSet:
    """The set of a shard without codebooks: positions are ids."""
    if not 0 < vocab_size <= MAX_VOCAB_SIZE:
        raise InvalidLabelsError(f"vocab_size {vocab_size}; the format wants 1..{MAX_VOCAB_SIZE}")
    return CodebookSet(np.arange(vocab_size, dtype=np.int32), np.zeros((1, 0), np.int32), 0)


def band_starts(length: int, first_position: int) -> np.ndarray:
    """bool [length]: where a new band starts among the positions `first_position`, ..."""
    positions = np.arange(length) + first_position
    starts = (positions < FILE_THRESHOLD) | ((positions - FILE_THRESHOLD) % BAND == 0)
    starts[:1] = True
    return starts


def sort_in_bands(values_CH: np.ndarray, first_position: int) -> np.ndarray:
    """The values with every band in ascending order, which costs nothing: a band shares its class byte."""
    band_H = np.cumsum(band_starts(values_CH.shape[1], first_position)) << 32
    return (np.sort(values_CH + band_H, axis=1) - band_H).astype(values_CH.dtype)


def _to_steps(values_CH: np.ndarray, first_position: int) -> np.ndarray:
    """The first value of each band, then steps less one; values ascend inside bands."""
    values_CH = values_CH.astype(np.int32)
    steps_CH = np.diff(values_CH, axis=1, prepend=-1) - 1
    return np.where(band_starts(values_CH.shape[1], first_position), values_CH, steps_CH)


def _from_steps(steps_CH: np.ndarray, first_position: int) -> np.ndarray:
    """Inverse of `_to_steps`; int64, unchecked."""
    length = steps_CH.shape[1]
    starts = band_starts(length, first_position)
    summed_CH = np.cumsum(steps_CH.astype(np.int64) + ~starts, axis=1)
    if length == 0:
        return summed_CH
    first = np.flatnonzero(starts)
    before_CB = np.concatenate([np.zeros((len(steps_CH), 1), np.int64), summed_CH[:, first[1:] - 1]], axis=1)
    return summed_CH - np.repeat(before_CB, np.diff(np.append(first, length)), axis=1)


def _check_distinct(values_CH: np.ndarray, vocab_size: int) -> None:
    if values_CH.size == 0:
        return
    if int(values_CH.max()) >= vocab_size:
        raise CorruptShardError(
            f"a codebook holds {int(values_CH.max())}, beyond its vocabulary of {vocab_size}; "
            "fetch the codebook file again or train a new set"
        )
    ordered = np.sort(values_CH, axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise CorruptShardError(
            "a codebook holds an id twice; fetch the codebook file again or train a new set"
        )
