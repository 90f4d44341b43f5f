"""What the first view of the page says of each store: totals, progress, and what stands in the way."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from logitstore.decoding.tokenizer_choice import choose_texts, tokenizer_folder
from logitstore.decoding.tokens import TokenTexts
from logitstore.errors import NOT_THERE, CorruptManifestError, StoreError
from logitstore.index.entries import ShardIndex
from logitstore.job_objects import STATUS_NAME, JobStatus
from logitstore.job_parsing import parse_status
from logitstore.records import Reject
from logitstore.rows.selection import Selection
from logitstore.store import LogitStore
from logitstore.viewer.conversation import Conversations
from logitstore.viewer.encoding import Json
from logitstore.viewer.finding import Finder
from logitstore.viewer.pages import SequencePages
from logitstore.viewer.payload import manifest_payload
from logitstore.viewer.student_view import StudentView

SHOWN_NUMBERS = ("units_done", "units_total", "failures", "rejects", "tokens_per_second", "seconds_left")
SILENT_AFTER_SEC = 60.0
REFRESH_AFTER_SEC = 1.5


@dataclass
class StoreView:
    """One store as the page sees it: opened when it exists, refreshed while its job runs."""

    uri: str
    tokenizer: str | None = None
    """Folder or `tokenizer.json` for the tokens' text; None for the job's own."""
    storage_options: dict[str, object] | None = None
    selection: Selection = field(default_factory=Selection)
    """Which sequences are shown."""
    student: StudentView | None = None
    """Whose predictions are shown beside the teacher's, where it was followed."""
    texts: TokenTexts = field(default_factory=TokenTexts)
    """Set when the store is opened, as the two that follow."""
    conversations: Conversations = field(init=False)
    finder: Finder = field(init=False)
    _note: str = ""
    _pages: SequencePages | None = None
    _store: LogitStore | None = None
    _totals: Json = field(default_factory=dict)
    _refreshed_sec: float = 0.0
    _followed: tuple[ShardIndex, dict[int, tuple[str, int]]] | None = None
    """With the shards that it was found in."""
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def open(self) -> tuple[LogitStore, SequencePages]:
        """The store and its sequences as of at most a moment ago.

        Raises:
            StoreError: no store at the URI yet, or one that cannot be read.
        """
        with self._lock:
            now = time.monotonic()
            if self._store is None or self._pages is None:
                store = LogitStore.open(self.uri, storage_options=self.storage_options)
                self.texts, reason = choose_texts(store, self.tokenizer)
                self._note = f"Token ids are shown: {reason}" if reason else ""
                folder = self.tokenizer or tokenizer_folder(store)
                self.conversations = Conversations(store, self.texts, Path(folder) if folder else None)
                self.finder = Finder(store, self.selection, self.texts)
                self._pages, self._store = SequencePages(store, self.selection), store
            elif now - self._refreshed_sec > REFRESH_AFTER_SEC:
                self._pages.refresh()
            else:
                return self._store, self._pages
            self._refreshed_sec = now
            self._totals = {**_totals(self._store), "num_sequences": self._pages.total}
            return self._store, self._pages

    def rejects(self) -> list[Reject]:
        store, _ = self.open()
        return store.rejects()

    def describe(self) -> Json:
        """The store's card: never raises for a store that is missing or broken, but says so."""
        card: Json = {"uri": self.uri, "problem": None, "status": None, "manifest": None, "totals": None}
        try:
            store, _ = self.open()
        except (StoreError, OSError) as error:
            card["problem"] = str(error)
            return card
        card["tokenizer_note"] = self._note
        card["student"] = self._student_card()
        card["manifest"] = manifest_payload(store.manifest)
        card["totals"] = self._totals
        card["status"] = read_status(store, datetime.now(UTC))
        return card

    def followed(self) -> dict[int, tuple[str, int]]:
        """Record id and sample of the sequences of this store that the student was followed on, by number.

        They are looked for once, and again after the store has changed.
        """
        if self.student is None:
            return {}
        store, pages = self.open()
        shards, _ = pages.shards()
        if self._followed is None or self._followed[0] is not shards:
            spec = store.manifest.labels
            numbers = {pages.find(*record): record for record in self.student.records}
            found: dict[int, tuple[str, int]] = {}
            for number in sorted(number for number in numbers if number is not None):
                (sequence,) = pages.read(number, 1)
                if self.student.follows(sequence, spec):
                    found[number] = numbers[number]
            self._followed = (shards, found)
        return self._followed[1]

    def _student_card(self) -> Json | None:
        if self.student is None:
            return None
        sequences = [
            {"index": number, "record_id": record_id, "sample_index": sample}
            for number, (record_id, sample) in self.followed().items()
        ]
        return {
            "folder": str(self.student.folder),
            "steps": list(self.student.snapshots.steps),
            "sequences": sequences,
        }


def read_status(store: LogitStore, now: datetime) -> Json | None:
    """The driver's last heartbeat, with "silent" as its state when it is too old; None without one."""
    try:
        status = parse_status(store.objects.get(STATUS_NAME))
    except NOT_THERE:
        return None
    except CorruptManifestError as error:
        nothing = {"causes": [], "workers": [], "cost": None}
        return {**dict.fromkeys(SHOWN_NUMBERS), **nothing, "state": "unreadable", "message": str(error)}
    age_sec = _age_sec(status.updated, now) if status.is_active else None
    if age_sec is not None and age_sec > SILENT_AFTER_SEC:
        message = f"no heartbeat of the job for {age_sec:.0f} s (it said {status.state!r})"
        return _payload(status, "silent", message)
    return _payload(status, status.state, status.message)


def _payload(status: JobStatus, state: str, message: str) -> Json:
    """What the page shows."""
    record = status.as_record()
    shown = {name: record[name] for name in (*SHOWN_NUMBERS, "causes", "workers", "cost")}
    return {**shown, "state": state, "message": message}


def _totals(store: LogitStore) -> Json:
    shards = store.shards()
    counted = ("num_sequences", "num_rows", "num_tokens", "num_bytes", "num_rejects")
    return {name: int(shards.column(name).sum()) for name in counted}


def _age_sec(updated: object, now: datetime) -> float | None:
    try:
        then = datetime.fromisoformat(str(updated))
    except ValueError:
        return None
    return (now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds()
