"""What a model is known by in the book of answers, so that another one's are not taken for its own."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from logitstore.tokenizer_objects import TOKENIZER_FILES

WEIGHTS = ("*.safetensors", "*.index.json", "pytorch_model*.bin", "adapter_model*.bin")
FILES = (*TOKENIZER_FILES, "adapter_config.json")


def identity_of(name: str) -> str:
    """Changes when the model does: with the files of a folder that are loaded, or with the hub's commit.

    Of a name of the hub it is asked after the tokenizer was loaded, which leaves the commit in the cache.
    """
    folder = Path(name)
    return f"files {_files(folder)}" if folder.is_dir() else f"commit {_commit(name)}"


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
