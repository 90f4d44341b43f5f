"""What of a store's labels is left in another tokenizer, as the store itself keeps it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from logitstore.errors import NOT_THERE, UnsupportedInputError
from logitstore.job_objects import RETOKENIZED_NAME, RETOKENIZED_PREFIX
from logitstore.manifest import strict_json
from logitstore.store import LogitStore

MAX_REPORT_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Report:
    """What of a store's labels is left in another tokenizer; `retokenized.json` of the new store."""

    num_sequences: int = 0
    num_rejects: int = 0
    """Sequences that the student's tokenizer cannot write."""
    num_rows: int = 0
    """Rows of the source that count in a loss."""
    num_kept: int = 0
    """Those that are rows of the new store, and count."""
    num_known_labels: int = 0
    """Those of them whose actual token has a known log-probability."""
    mass_stored: float = 0.0
    """Sum over the kept rows of the mass that the source stores at T=1."""
    mass_kept: float = 0.0
    """Sum over the kept rows of the mass of entries that have an equal token."""
    num_equal_ids: int = 0
    """The teacher's ids that have an equal one."""
    unequal_tokens: dict[str, int] = field(default_factory=dict)
    """Special tokens that the student lacks, and how often their text stands in its place."""

    def plus(self, other: Report) -> Report:
        sums = {
            item.name: getattr(self, item.name) + getattr(other, item.name)
            for item in dataclasses.fields(self)
            if item.name not in ("unequal_tokens", "num_equal_ids")
        }
        tokens = dict(Counter(self.unequal_tokens) + Counter(other.unequal_tokens))
        return Report(
            **sums, num_equal_ids=max(self.num_equal_ids, other.num_equal_ids), unequal_tokens=tokens
        )


def read_report(store: LogitStore) -> Report | None:
    """What `retokenize_store` left in the store; None if it has not finished, or is no such store."""
    if store.manifest.retokenized is None:
        return None
    try:
        data = store.objects.get(RETOKENIZED_NAME, max_bytes=MAX_REPORT_BYTES)
    except NOT_THERE:
        return None
    return _decode(data, RETOKENIZED_NAME)


def report_name(unit_id: str) -> str:
    """The object that keeps the report of one unit."""
    return f"{RETOKENIZED_PREFIX}{unit_id}.json"


def sum_reports(target: LogitStore, unit_ids: Iterable[str]) -> Report:
    """The report of these units together. Raises UnsupportedInputError where one is gone."""
    names = [report_name(unit_id) for unit_id in sorted(unit_ids)]
    report = Report()
    for name, data in zip(names, target.objects.get_many(names), strict=True):
        if data is None:
            raise UnsupportedInputError(
                f"{target.uri} has a unit and not its {name}, which was deleted; retokenize into a new store"
            )
        report = report.plus(_decode(data, name))
    return report


def _decode(data: bytes, what: str) -> Report:
    value = strict_json.parse_object(data, what=what, max_bytes=MAX_REPORT_BYTES)
    return strict_json.decode(Report, value, what=what)
