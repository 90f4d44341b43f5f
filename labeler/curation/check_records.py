"""What a check's program sees of a problem besides the response: its record, found by id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from logitstore.common.config_file import ConfigError
from logitstore.inputs.identity import lookup_field
from logitstore.inputs.parts import parent_id
from logitstore.inputs.reading import iter_records
from logitstore.store import LogitStore

Records = Mapping[str, Mapping[str, Any]]
"""What else the program shall see of a problem, by its id: the right answer, say."""


def read_records(
    uri: str, id_field: str | None, store: LogitStore, storage_options: Mapping[str, Any] | None = None
) -> Records:
    """The records by their id, whose field is by default that of the store's job.

    Raises ConfigError for two of one id, and where none has one.
    """
    told = store.manifest.input.fields.get("id")
    field = id_field or told or "id"
    found: dict[str, Mapping[str, Any]] = {}
    unreadable = ""
    for raw in iter_records(uri, storage_options=storage_options):
        if raw.record is None:
            unreadable = unreadable or f"; its first record that cannot be read: {raw.error}"
            continue
        value = lookup_field(raw.record, field)
        if value is None:
            continue
        if found.setdefault(str(value), raw.record) != raw.record:
            raise ConfigError(f"{uri} has two records of the id {str(value)!r} that differ; remove one")
    if not found:
        raise ConfigError(f"{uri} has no record with the field {field!r}; give --id FIELD{unreadable}")
    return found


def refuse_missing(store: LogitStore, records: Records) -> None:
    """Raise ConfigError where a problem of the store has no record."""
    names = set[str]()
    for entry in store.shards():
        if entry.name:
            with store.open_shard(entry) as reader:
                blocks = range(reader.num_blocks)
                names.update(name for block in blocks for name in reader.plain_columns(block).record_id)
    missing = sorted(name for name in names if record_of(name, records) is None)
    if missing:
        raise ConfigError(
            f"{len(missing):,} of {len(names):,} problems of {store.uri} have no record, for example "
            f"{missing[0]!r}, and the records have ids such as {next(iter(records))!r}; name the field of "
            "their ids, give the records of all problems, or check a store of those that have one "
            "(penumbra store merge --where)"
        )


def record_of(name: str, records: Records) -> Mapping[str, Any] | None:
    return records.get(name, records.get(parent_id(name)))
