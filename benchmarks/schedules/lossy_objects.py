"""Objects in memory that lose requests and replies on purpose, while other actors act in between."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal

from logitstore.errors import ObjectNotFoundError, ObjectStoreError
from logitstore.objects.opening import MAX_TAGGED_BYTES, ObjectInfo, Objects

Fault = Literal["none", "lost request", "lost reply", "lost reply, tried again"]
FAULTS: tuple[Fault, ...] = ("lost request", "lost reply", "lost reply, tried again")

SWAP_FAULTS = 3
"""So many times more often than other requests does the rare replacement of an object go wrong."""


class Memory:
    """What every actor of one test sees, whole objects at a time."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.changed_sec: dict[str, float] = {}


class LossyBackend:
    """A `Backend` over `Memory`. Before and after each change another actor may act, and faults strike.

    "lost reply, tried again" is what an S3 client does by itself: the change was made, the repeated
    request finds its condition broken, and the caller is told no.
    """

    def __init__(
        self,
        memory: Memory,
        rng: random.Random,
        fault_share: float,
        meanwhile: Callable[[Fault], None] = lambda _: None,
    ) -> None:
        self._memory, self._rng, self._fault_share, self._meanwhile = memory, rng, fault_share, meanwhile
        self.num_faults = 0

    def require_puts(self) -> None:
        """They are taken."""

    def require_conditions(self) -> None:
        """They are kept, if not always told."""

    def get_range(self, name: str, start: int, end: int | None) -> bytes:
        if name not in self._memory.data:
            raise ObjectNotFoundError(f"{name} does not exist; check the test")
        return self._memory.data[name][start:end]

    def get_with_etag(self, name: str) -> tuple[bytes, str]:
        data = self.get_range(name, 0, MAX_TAGGED_BYTES + 1)
        return data, _etag(data)

    def get_many(self, names: list[str], max_bytes: int) -> list[bytes | None]:
        return [self._memory.data.get(name) for name in names]

    def put(self, name: str, data: bytes) -> None:
        self._change(lambda: self._write(name, data))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        data = io.BytesIO()
        yield data
        self.put(name, data.getvalue())

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return self._change(lambda: name not in self._memory.data and self._write(name, data))

    def put_if_match(self, name: str, data: bytes, etag: str) -> bool:
        def swap() -> bool:
            found = self._memory.data.get(name)
            return found is not None and _etag(found) == etag and self._write(name, data)

        return self._change(swap, share=SWAP_FAULTS * self._fault_share)

    def stat(self, name: str) -> ObjectInfo:
        return ObjectInfo(name, len(self.get_range(name, 0, None)), self._memory.changed_sec[name])

    def list(self, prefix: str) -> list[ObjectInfo]:
        return [self.stat(name) for name in list(self._memory.data) if name.startswith(prefix)]

    def list_temporary(self) -> list[ObjectInfo]:
        return []

    def delete(self, names: list[str]) -> None:
        for name in names:
            self._change(lambda name=name: self._memory.data.pop(name, None) is not None)

    def open(self, name: str, num_bytes: int | None, buffer_bytes: int) -> BinaryIO:
        return io.BytesIO(self.get_range(name, 0, None))

    def _write(self, name: str, data: bytes) -> bool:
        self._memory.data[name] = data
        self._memory.changed_sec[name] = time.time()
        return True

    def _change(self, change: Callable[[], bool], share: float | None = None) -> bool:
        fault: Fault = "none"
        if self._rng.random() < (self._fault_share if share is None else share):
            fault = self._rng.choice(FAULTS)
            self.num_faults += 1
        self._meanwhile("none")
        if fault == "lost request":
            raise ObjectStoreError("the request was lost, on purpose")
        changed = change()
        self._meanwhile(fault)
        if fault == "lost reply":
            raise ObjectStoreError("the reply was lost, on purpose")
        return changed and fault != "lost reply, tried again"


def objects_over(backend: LossyBackend, uri: str = "memory://lossy") -> Objects:
    objects = Objects(uri)
    objects._backend = backend
    return objects


def _etag(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
