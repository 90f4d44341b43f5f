"""One driver per store: a lease object that the driver renews, and that another can take once it is dead.

No clocks are compared. A driver of this machine whose process is gone is replaced at once. Any other is
watched: it lives while it renews its lease, and counts as dead once it has not for the lease's own time.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from labeler.errors import LeaseLostError, StoreBusyError
from labeler.job.processes import machine_identity, process_start
from logitstore.errors import CorruptManifestError, ObjectNotFoundError
from logitstore.job_objects import LEASE_NAME
from logitstore.manifest import strict_json
from logitstore.objects.opening import Objects
from logitstore.objects.probing import require_conditional_writes

MAX_LEASE_BYTES = 65_536
RENEWALS_PER_TERM = 10
"""So often a driver renews within the time after which it counts as dead: a successor sees it alive soon."""
WATCHED_RENEWALS = 3
"""So many are watched for by who only asks whether a driver lives."""
PROOF_SEC = 5.0
"""Longer than a driver renews its lease while it hears nothing of its cluster."""
_SILENT: set[Holder] = set()
"""Those that this process has watched in vain; one that renews its lease is another, by `renewed`."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who drives a store."""

    owner: str
    """Random name of this one driver."""
    host: str
    machine: str
    """Boot and process-id space, so that a process id means something only where it counts."""
    process_id: int
    process_start: str
    """Start of the process in kernel ticks: process ids are used again."""
    renew_sec: float
    """The holder renews more often than this, or is dead."""
    renewed: str
    """UTC, ISO 8601, for people."""
    released: bool = False

    def __str__(self) -> str:
        return f"process {self.process_id} on {self.host} (last sign of life {self.renewed})"

    @classmethod
    def here(cls, renew_sec: float) -> Holder:
        return cls(
            owner=secrets.token_hex(8),
            host=socket.gethostname(),
            machine=machine_identity(),
            process_id=os.getpid(),
            process_start=process_start(os.getpid()) or "",
            renew_sec=renew_sec,
            renewed=_now(),
        )

    @property
    def is_on_this_machine(self) -> bool:
        """False where the system tells no machine from another: such a holder is watched."""
        return self.machine != "" and self.machine == machine_identity()

    @property
    def is_running(self) -> bool:
        """Whether the process is there; only for a holder on this machine."""
        start = process_start(self.process_id)
        return start is not None and start == self.process_start

    @property
    def has_left(self) -> bool:
        """Whether it is known to work on the store no more."""
        return self.released or (self.is_on_this_machine and not self.is_running)


class DriverLease:
    """Held from `acquire` to `release`; renewed by a thread of its own."""

    def __init__(self, objects: Objects, holder: Holder, etag: str) -> None:
        self._objects = objects
        self._holder = holder
        self._etag = etag
        self.is_working: Callable[[], bool] = lambda: True
        """Whether the driver gets on; it shows no sign of life while this says no. May be replaced."""
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._renew_forever, name="driver-lease", daemon=True)
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """Another driver has the store now: stop at once."""
        return self._lost.is_set()

    @property
    def owner(self) -> str:
        """The name of this driver, which no other has."""
        return self._holder.owner

    def is_held(self) -> bool:
        """Whether the store's lease names this driver, as read now; `is_lost` is true once it does not.

        A lease that was removed names nobody else. Raises OSError if storage fails.
        """
        with contextlib.suppress(ObjectNotFoundError):
            if not self._is_ours(self._objects.get(LEASE_NAME)):
                self._lost.set()
        return not self.is_lost

    def raise_if_lost(self) -> None:
        """Raises LeaseLostError once the loss is known."""
        if self.is_lost:
            raise LeaseLostError(
                f"another driver has taken over the store (its {LEASE_NAME} is not of this one any more); "
                "this one stops"
            )

    def release(self) -> None:
        """Let the next driver in without waiting."""
        self._stop.set()
        self._thread.join()
        if not self.is_lost:
            released = replace(self._holder, renewed=_now(), released=True)
            # If storage is away the next driver finds this process gone, or waits out the term.
            with contextlib.suppress(OSError):
                self._objects.put_if_match(LEASE_NAME, _encode(released), self._etag)

    def _renew_forever(self) -> None:
        while not self._stop.wait(self._holder.renew_sec / RENEWALS_PER_TERM):
            if not self.is_working():
                continue
            try:
                if not self._renew():
                    self._lost.set()
                    return
            except OSError:
                # Storage is away. Whether another took the store meanwhile shows when it is back; until
                # then nothing can go wrong, since commit records decide.
                continue

    def _renew(self) -> bool:
        holder = replace(self._holder, renewed=_now())
        self._objects.put_if_match(LEASE_NAME, _encode(holder), self._etag)
        content, etag = self._objects.get_with_etag(LEASE_NAME)
        if not self._is_ours(content):
            return False
        self._etag = etag
        return True

    def _is_ours(self, content: bytes) -> bool:
        """False also for a lease that cannot be read: this driver did not write it."""
        try:
            return _decode(content).owner == self._holder.owner
        except CorruptManifestError:
            return False


def acquire(objects: Objects, renew_sec: float, on_wait: Callable[[str], None]) -> DriverLease:
    """Become the store's driver. Waits for a sign of life of a present driver that is not known to be dead.

    Raises StoreBusyError as soon as there is one, ObjectStoreError for a place that does not keep conditional
    writes. `on_wait` is told why it takes time.
    """
    require_conditional_writes(objects)
    holder = Holder.here(renew_sec)
    content = _encode(holder)
    while True:
        if objects.put_if_absent(LEASE_NAME, content):
            break
        try:
            found, etag = objects.get_with_etag(LEASE_NAME)
        except ObjectNotFoundError:
            continue
        present = _decode(found)
        if present.owner == holder.owner:
            break  # The put had succeeded, only its answer was lost.
        etag = _refuse_or_outwait(objects, present, etag, on_wait)
        if objects.put_if_match(LEASE_NAME, content, etag):
            break
    content, etag = objects.get_with_etag(LEASE_NAME)
    if _decode(content).owner != holder.owner:
        raise _busy(objects, _decode(content))
    return DriverLease(objects, holder, etag)


def present_holder(objects: Objects) -> Holder | None:
    """Who holds the store's lease, alive or not; None if nobody does."""
    try:
        holder = _decode(objects.get(LEASE_NAME))
    except ObjectNotFoundError:
        return None
    return None if holder.released else holder


def shows_life(objects: Objects, holder: Holder, on_wait: Callable[[str], None]) -> bool:
    """Whether the holder renews its lease while it is watched, for as long as three renewals take.

    At once, and without `on_wait`, for a lease that this process has watched and that is the same still.
    """
    if holder in _SILENT:
        return False
    watched_sec = WATCHED_RENEWALS * holder.renew_sec / RENEWALS_PER_TERM
    on_wait(
        f"the store's driver was {holder}; whether it renews its lease is watched for {watched_sec:.0f} s"
    )
    deadline = time.monotonic() + watched_sec
    while time.monotonic() < deadline:
        newest = present_holder(objects)
        if newest is None or newest != holder:
            return newest is not None
        time.sleep(holder.renew_sec / RENEWALS_PER_TERM / 4)
    _SILENT.add(holder)
    return False


def _refuse_or_outwait(objects: Objects, present: Holder, etag: str, on_wait: Callable[[str], None]) -> str:
    """The tag to replace, once the present holder has left or was silent for its term.

    Raises StoreBusyError if it lives. What it says within the first seconds is no proof: a driver whose
    cluster has just gone may not know it yet.
    """
    if present.has_left:
        return etag
    on_wait(
        f"the store's driver was {present}; unless it renews its lease within {present.renew_sec:.0f} s "
        "this job takes over"
    )
    began = heard = time.monotonic()
    while time.monotonic() - heard < present.renew_sec and not present.has_left:
        time.sleep(min(present.renew_sec / RENEWALS_PER_TERM, 1.0))
        found, now_etag = objects.get_with_etag(LEASE_NAME)
        newest = _decode(found)
        if newest.released:
            return now_etag
        if now_etag != etag:
            etag, heard = now_etag, time.monotonic()
            if newest.owner != present.owner or heard - began >= min(PROOF_SEC, present.renew_sec / 2):
                raise _busy(objects, newest)
    return etag


def _busy(objects: Objects, holder: Holder) -> StoreBusyError:
    return StoreBusyError(
        f"the store at {objects.uri} is being labeled by {holder}; a store has one driver at a time: wait "
        "for it, stop it, or choose another output.uri"
    )


def _encode(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _decode(content: bytes) -> Holder:
    try:
        value = strict_json.parse_object(content, what=LEASE_NAME, max_bytes=MAX_LEASE_BYTES)
        return strict_json.decode_known(Holder, value, what=LEASE_NAME)
    except CorruptManifestError as error:
        raise CorruptManifestError(
            f"{error}. It says who drives the job: make sure that no job runs on the store, then delete it"
        ) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
