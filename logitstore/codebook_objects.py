"""The codebook set of a store as objects: `codebooks/current.json` names it, the set lies beside that.

A store has one set for good; the first that anyone gives it stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable

from logitstore.codec.codebooks import CodebookSet
from logitstore.errors import (
    NOT_THERE,
    CorruptManifestError,
    CorruptShardError,
)
from logitstore.manifest import strict_json
from logitstore.manifest.fields import FORMAT_VERSION
from logitstore.manifest.reading import MAX_MANIFEST_BYTES, check_version
from logitstore.objects.opening import Objects
from logitstore.shard.arrow_file import ArrowFile

CODEBOOKS_PREFIX = "codebooks/"
CURRENT_CODEBOOKS = "codebooks/current.json"
MAX_CODEBOOK_BYTES = 512 * 2**20
_CODEBOOK_HASH = re.compile(r"blake2b-128:[0-9a-f]{32}")


@dataclasses.dataclass(frozen=True, slots=True)
class CodebookPointer:
    """`codebooks/current.json`: the one set that the store's later shards use."""

    hash: str
    format_version: int = FORMAT_VERSION


class StoreCodebooks:
    """The store's set, read once; None until anyone gave the store one."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._current: CodebookSet | None = None
        self._was_looked_for = False

    def look_again(self) -> None:
        """Have the next `current` ask the store, if there was no set so far."""
        self._was_looked_for = False

    def newest(self) -> CodebookSet | None:
        """As `current`, asking the store once more where there was none so far."""
        self.look_again()
        return self.current()

    def current(self) -> CodebookSet | None:
        """Raises CorruptManifestError for a set that is not the one named."""
        if self._current is None and not self._was_looked_for:
            try:
                named = self._current_hash()
            except NOT_THERE:
                # A key that may not list gets a refusal for what is not there. Shards name their set, so
                # that one which is there and refused is missed when they are read.
                self._was_looked_for = True
                return None
            self._current = self._load(named)
        return self._current

    def give(self, codebooks: CodebookSet, newest_shards: Iterable[str]) -> CodebookSet:
        """Give the store its set, unless it has one; the set that the store has after it.

        Raises CorruptManifestError where `newest_shards` name another set and `codebooks/current.json` is
        gone.
        """
        if self.current() is None:
            named = self.named_by(newest_shards)
            if named and named != codebooks.hash:
                uri = self._objects.uri
                raise CorruptManifestError(
                    f"{uri} has shards that are coded with {named}, but no {CURRENT_CODEBOOKS}: restore it "
                    f"from a copy, or run `penumbra store rebuild-index {uri}`"
                )
        self._objects.put(codebook_name(codebooks.hash), codebooks.to_bytes())
        self._name(codebooks.hash)
        if self._current is None:
            self._current = self._load(self._current_hash())
        return self._current

    def restore(self, shard_names: Iterable[str]) -> None:
        """Write a lost `codebooks/current.json` anew, for the set that these shards name.

        Raises ObjectNotFoundError or CorruptManifestError where that set is lost as well.
        """
        if self.current() is None and (named := self.named_by(shard_names)):
            self._load(named)
            self._name(named)

    def named_by(self, shard_names: Iterable[str]) -> str:
        """The hash of the set of the first of these shards that uses one; "" if none does."""
        for name in shard_names:
            with contextlib.suppress(CorruptShardError), self._objects.open(name) as file:
                metadata = ArrowFile(file).schema().metadata or {}
                found = metadata.get(b"codebooks", b"").decode(errors="replace")
                if _CODEBOOK_HASH.fullmatch(found):
                    return found
        return ""

    def _name(self, codebook_hash: str) -> None:
        self._objects.put_if_absent(CURRENT_CODEBOOKS, strict_json.encode(CodebookPointer(codebook_hash)))
        self.look_again()

    def _current_hash(self) -> str:
        """The hash of the set that the store names. Raises ObjectNotFoundError, AccessRefusedError."""
        return _decode_pointer(self._objects.get(CURRENT_CODEBOOKS, max_bytes=MAX_MANIFEST_BYTES)).hash

    def _load(self, codebook_hash: str) -> CodebookSet:
        name = codebook_name(codebook_hash)
        codebooks = CodebookSet.from_bytes(self._objects.get(name, max_bytes=MAX_CODEBOOK_BYTES))
        if codebooks.hash != codebook_hash:
            raise CorruptManifestError(
                f"{name} holds a codebook set with the hash {codebooks.hash}; restore it from a copy of the "
                "store, since ids cannot be decoded with another set"
            )
        return codebooks


def codebook_name(codebook_hash: str) -> str:
    return f"{CODEBOOKS_PREFIX}{codebook_hash.removeprefix('blake2b-128:')}.bin"


def _decode_pointer(data: bytes) -> CodebookPointer:
    value = strict_json.parse_object(data, what=CURRENT_CODEBOOKS, max_bytes=MAX_MANIFEST_BYTES)
    check_version(value, what=CURRENT_CODEBOOKS)
    pointer = strict_json.decode(CodebookPointer, value, what=CURRENT_CODEBOOKS)
    if not _CODEBOOK_HASH.fullmatch(pointer.hash):
        raise CorruptManifestError(
            f"{CURRENT_CODEBOOKS}: hash {pointer.hash!r:.80} must be 'blake2b-128:' and 32 hexadecimal "
            "digits; restore the object from a copy of the store"
        )
    return pointer
