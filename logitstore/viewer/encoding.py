"""How values travel to the page: JSON, and arrays in it as base64 of their little-endian bytes."""

from __future__ import annotations

import base64

import numpy as np

Json = dict[str, object]


def encode(array: np.ndarray, dtype: str) -> str:
    """The array's bytes in this type, as base64."""
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode("ascii")
