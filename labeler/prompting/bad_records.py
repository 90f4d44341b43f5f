"""Why a record cannot be labeled, and fields looked up with that reason."""

from __future__ import annotations

from typing import Any

from labeler.errors import BadRecordError


def field_value(record: dict[str, Any], name: str) -> Any:
    """The field of that name; dots reach into nested objects. Raises BadRecordError."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            present = ", ".join(sorted(str(key) for key in record)[:8]) or "nothing"
            raise BadRecordError(
                f"field {name!r} is missing, the record has {present}; correct the record or input.fields",
                "missing_field",
            )
        value = value[part]
    return value


def shown(value: object) -> str:
    """A value as an error shows it, cut to one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
