"""Teacher labels on disk: top-K logits with an exact tail, in sharded Arrow files.

What users import stands here: `from logitstore import LogitStore`. The modules behind these names may move;
the names stay. Each is loaded when it is first asked for, and none of them loads torch, ray or vllm, so that
anything can read a store.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logitstore.errors import (
        CorruptManifestError,
        CorruptShardError,
        InputNotFoundError,
        InvalidLabelsError,
        ObjectNotFoundError,
        ObjectStoreError,
        SecretInManifestError,
        StoreChangedError,
        StoreError,
        StoreExistsError,
        StoreNotFoundError,
        TemperatureError,
        UnsafeNameError,
        UnsupportedFormatError,
        UnsupportedInputError,
    )
    from logitstore.records import LabeledSequence, LabelRows
    from logitstore.store import LogitStore

__version__ = "0.1.0"

__all__ = [
    "CorruptManifestError",
    "CorruptShardError",
    "InputNotFoundError",
    "InvalidLabelsError",
    "LabelRows",
    "LabeledSequence",
    "LogitStore",
    "ObjectNotFoundError",
    "ObjectStoreError",
    "SecretInManifestError",
    "StoreChangedError",
    "StoreError",
    "StoreExistsError",
    "StoreNotFoundError",
    "TemperatureError",
    "UnsafeNameError",
    "UnsupportedFormatError",
    "UnsupportedInputError",
    "__version__",
]

_MODULES = {
    "LabelRows": "logitstore.records",
    "LabeledSequence": "logitstore.records",
    "LogitStore": "logitstore.store",
}
"""Where a name is defined; the errors are all in one module."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "logitstore.errors")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
