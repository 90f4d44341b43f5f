"""What the first view of the page says of each store: totals, progress, and what stands in the way."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from logitstore.errors import ObjectNotFoundError, StoreError
from logitstore.records import Reject
from logitstore.store import LogitStore
from logitstore.viewer.pages import SequencePages
from logitstore.viewer.payload import Json, manifest_payload
from logitstore.viewer.tokenizer_choice import choose_texts
from logitstore.viewer.tokens import TokenTexts

STATUS_OBJECT = "status.json"
"""The labeling driver's heartbeat in the store."""
SILENT_AFTER_SEC = 60.0
REFRESH_AFTER_SEC = 1.5
ENDED_STATES = ("finished", "stopped", "failed", "interrupted")


@dataclass
class StoreView:
    """One store as the page sees it: opened when it exists, refreshed while its job runs."""

    uri: str
    tokenizer: str | None = None
    """Folder or `tokenizer.json` for the tokens' text; None for the job's own."""
    storage_options: dict[str, object] | None = None
    texts: TokenTexts = field(default_factory=TokenTexts)
    """Set when the store is opened."""
    _note: str = ""
    _pages: SequencePages | None = None
    _store: LogitStore | None = None
    _totals: Json = field(default_factory=dict)
    _refreshed_sec: float = 0.0
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
                self.texts, self._note = choose_texts(store.manifest, self.tokenizer)
                self._pages, self._store = SequencePages(store), store
            elif now - self._refreshed_sec > REFRESH_AFTER_SEC:
                self._pages.refresh()
            else:
                return self._store, self._pages
            self._refreshed_sec = now
            self._totals = _totals(self._store)
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
        card["manifest"] = manifest_payload(store.manifest)
        card["totals"] = self._totals
        card["status"] = read_status(store, datetime.now(UTC))
        return card


def read_status(store: LogitStore, now: datetime) -> Json | None:
    """The driver's last heartbeat, with "silent" as its state when it is too old; None without one."""
    try:
        raw = json.loads(store.objects.get(STATUS_OBJECT))
    except ObjectNotFoundError:
        return None
    except ValueError:
        return _status(
            {}, "unreadable", f"{STATUS_OBJECT} of the store is not JSON; the next heartbeat replaces it"
        )
    if not isinstance(raw, dict):
        return _status({}, "unreadable", f"{STATUS_OBJECT} of the store is not an object")
    state = str(raw.get("state", "unknown"))
    message = str(raw.get("message") or "")
    if state not in ENDED_STATES:
        age_sec = _age_sec(raw.get("updated"), now)
        if age_sec is not None and age_sec > SILENT_AFTER_SEC:
            state, message = "silent", f"no heartbeat of the job for {age_sec:.0f} s (it said {state!r})"
    return _status(raw, state, message)


def _status(raw: dict[str, Any], state: str, message: str) -> Json:
    """Only the fields that the page shows, each of the type that it expects."""
    numbers = ("units_done", "units_total", "failures", "rejects", "tokens_per_second", "seconds_left")
    status: Json = {"state": state, "message": message, "cost": None}
    for name in numbers:
        status[name] = _number(raw.get(name))
    causes = raw.get("causes")
    status["causes"] = [str(cause) for cause in causes] if isinstance(causes, list) else []
    workers = raw.get("workers")
    status["workers"] = [
        {name: str(worker.get(name, "")) for name in ("name", "node", "state", "unit", "restarts")}
        for worker in (workers if isinstance(workers, list) else [])
        if isinstance(worker, dict)
    ]
    cost = raw.get("cost")
    if isinstance(cost, dict):
        words = {name: str(cost.get(name, "")) for name in ("device", "currency")}
        amounts = {name: _number(cost.get(name)) for name in ("device_sec", "compute", "storage_per_month")}
        status["cost"] = words | amounts
    return status


def _number(value: object) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


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
