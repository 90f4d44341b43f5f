"""JSON of anybody's data: what others wrote into a record may hold values that JSON has no form for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def finite(value: Any) -> Any:
    """The value with None for every number that is none (NaN) or has no end."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [finite(item) for item in value]
    return value


def json_text(value: Any, *, ascii_only: bool = False) -> str:
    """One line without its end. Numbers that JSON has no form for are null; dates and such are texts."""
    try:
        return json.dumps(value, ensure_ascii=ascii_only, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), ensure_ascii=ascii_only, default=str, allow_nan=False)
