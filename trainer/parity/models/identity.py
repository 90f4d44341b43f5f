"""What a model is known by in the book of answers, so that another one's are not taken for its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers.utils.hub import cached_file

from logitstore.tokenizer_objects import TOKENIZER_FILES

WEIGHTS = ("*.safetensors", "*.index.json", "pytorch_model*.bin", "adapter_model*.bin")
ADAPTER = "adapter_config.json"
FILES = (*TOKENIZER_FILES, ADAPTER)


def identity_of(name: str) -> str:
    """Changes when the model does: with the files of a folder that are loaded, or with the hub's commit.

    Of a name of the hub it is asked after the tokenizer was loaded, which leaves the commit in the cache. A
    folder of adapters is known by the model below them too.
    """
    folder = Path(name)
    if not folder.is_dir():
        return f"commit {_commit(name)}"
    base = _below(folder / ADAPTER)
    return f"files {_files(folder)}" if base is None else f"files {_files(folder)} on {identity_of(base)}"


def _below(adapter: Path) -> str | None:
    """The model that adapters are for; of the hub, its commit is in the cache afterwards if it can be had."""
    try:
        base = json.loads(adapter.read_bytes()).get("base_model_name_or_path")
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if base and not Path(base).is_dir():
        with contextlib.suppress(OSError):  # told when the model is loaded
            cached_file(base, "config.json")
    return base or None


def _files(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    named = [path for file in FILES if (path := folder / file).is_file()]
    for path in sorted({*named, *(path for pattern in WEIGHTS for path in folder.glob(pattern))}):
        found = path.stat()
        digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _commit(name: str) -> str:
    for file in ("tokenizer_config.json", "tokenizer.json", "config.json"):
        path = try_to_load_from_cache(name, file)
        if isinstance(path, str):
            return Path(path).parent.name  # snapshots/COMMIT/FILE
    return ""
