"""Which record is which: ids of their own, or hashes of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from logitstore.manifest.fields import InputInfo

OWN_ROLES = ("tools", "documents")
"""Fields of records of messages that are read without being named in the settings."""


def record_id(record: Mapping[str, Any], info: InputInfo) -> str:
    """The record's stable id: its id field, or 32 hexadecimal digits over its raw content fields,
    with those that change its prompt without being named.

    Raises ValueError if an id field is configured and the record has none, or one that is not a string
    or integer.
    """
    if "id" in info.fields:
        value = lookup_field(record, info.fields["id"])
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise ValueError(
                f"the id field {info.fields['id']!r} holds {value!r:.60}, but must be a non-empty string or "
                "an integer; repair the record, or leave the id field out to use a hash of the content"
            )
        return str(value)
    text = content_text(record, info)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def content_text(record: Mapping[str, Any], info: InputInfo) -> str:
    """The record's raw content fields, without its id, as JSON in one form."""
    content = {role: lookup_field(record, name) for role, name in info.fields.items() if role != "id"}
    if info.kind == "messages":
        content |= {role: record[role] for role in OWN_ROLES if record.get(role) and role not in content}
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


def lookup_field(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field, which may be a dotted path into nested objects; None if it is not there."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def repeated_id(name: str, number: int) -> str:
    """Id of the `number`-th (from 2) record of the input whose content, and so `record_id`, is the same."""
    return f"{name}-{number}"


def digest_of(name: str) -> bytes:
    """Blake2b-128 of a record's id, by which sets of many records are kept."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
