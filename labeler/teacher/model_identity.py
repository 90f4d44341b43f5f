"""Which model a folder holds: where it lies, its fingerprint. Reads no weights as a whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SAMPLED_PIECES = 16
"""Pieces of each weight file that enter the fingerprint, so that a fine-tune of the same shape differs."""
PIECE_BYTES = 4096
VOLATILE_CONFIG_KEYS = ("_name_or_path", "transformers_version")
"""Keys of config.json that change without the model changing."""
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")
UNUSED_FILES = ("*/*", "consolidated*.safetensors")
"""The same weights once more for other programs (onnx/, original/, fp16/), which vLLM does not load."""


def find_model_folder(model: str, revision: str | None) -> Path:
    """The folder of `model`, which is a folder or a Hugging Face id (downloaded if it must be).

    Raises:
        FileNotFoundError: it is neither.
    """
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"teacher.model {model!r} is a folder without config.json; "
                "give the folder that holds the model's config and weights"
            )
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Several workers of a machine may ask at once: the hub's client locks each file while it is fetched.
        found = snapshot_download(
            model,
            revision=revision,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=list(UNUSED_FILES),
        )
        return Path(found)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"teacher.model {model!r} is neither a folder nor a model that can be fetched "
            f"({type(error).__name__}); check the name, the revision and the network"
        ) from error


def model_name(model: str) -> str:
    """A Hugging Face id as it is; of a folder its last name, which says nothing of the machine."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def own_dtype(folder: Path) -> str:
    """The dtype that config.json gives the weights; "auto" if it names none.

    vLLM's own "auto" would quietly run a float32 model in bfloat16.
    """
    config = read_model_config(folder)
    return str(config.get("dtype") or config.get("torch_dtype") or "auto").removeprefix("torch.")


def model_fingerprint(folder: Path) -> str:
    """ "sha256:<hex>" over config.json and, of every weight file, name, size, header and sampled pieces.

    Raises:
        FileNotFoundError: the folder holds no safetensors weights.
    """
    digest = hashlib.sha256()
    config = read_model_config(folder)
    for key in VOLATILE_CONFIG_KEYS:
        config.pop(key, None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{str(folder)!r} holds no *.safetensors file; convert the model's weights to safetensors"
        )
    for file in files:
        _add_weight_file(digest, file)
    return f"sha256:{digest.hexdigest()}"


def _add_weight_file(digest: Any, file: Path) -> None:
    num_bytes = file.stat().st_size
    digest.update(f"\n{file.name} {num_bytes}\n".encode())
    with file.open("rb") as stream:
        # A safetensors file begins with the header's length, then the header itself.
        header_bytes = int.from_bytes(stream.read(8), "little")
        digest.update(stream.read(min(header_bytes, num_bytes)))
        for index in range(SAMPLED_PIECES):
            stream.seek(8 + header_bytes + (num_bytes - 8 - header_bytes) * index // SAMPLED_PIECES)
            digest.update(stream.read(PIECE_BYTES))


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json of a model's folder."""
    with (folder / "config.json").open(encoding="utf-8") as stream:
        return json.load(stream)
