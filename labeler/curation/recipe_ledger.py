"""The ledger of a recipe: what each step that is done was made from and what came out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from logitstore.common.config_file import ConfigError
from logitstore.common.whole_file import write_whole
from logitstore.errors import CorruptManifestError
from logitstore.manifest.reading import MANIFEST_NAME
from logitstore.manifest.strict_json import decode_known


@dataclass(frozen=True)
class StepRecord:
    """What the ledger holds of a step that is done."""

    made_from: str
    """Digest of its settings and of its input."""
    output: str
    output_digest: str
    report: dict[str, object]


def digest_of(out: Path) -> str:
    """Digest of a file's content; for a store, of its manifest, since its own commits prove the rest."""
    path = out / MANIFEST_NAME if out.is_dir() else out
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def read_ledger(path: Path) -> dict[str, StepRecord]:
    try:
        content: Any = json.loads(path.read_bytes())
        return {name: decode_known(StepRecord, record, what=name) for name, record in content.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, RecursionError, CorruptManifestError) as error:
        raise ConfigError(
            f"{path} is damaged ({error!s:.100}); remove it and every step is looked at again"
        ) from None


def write_ledger(path: Path, ledger: Mapping[str, StepRecord]) -> None:
    write_whole(path, json.dumps({name: asdict(record) for name, record in ledger.items()}, indent=1) + "\n")
