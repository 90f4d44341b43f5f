"""Whether a folder holds weights that an engine can load: looked at before any engine starts."""

from __future__ import annotations

import json
from pathlib import Path

from logitstore.common.config_file import ConfigError

_LFS_START = b"version https://git-lfs"


def refuse_other_forms(folder: Path) -> None:
    """Raises ConfigError for a GGUF file, or a folder without config.json with a model of another form."""
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"teacher.model = {str(folder)!r} is an adapter (LoRA) and no whole model; merge it into its "
            "base model first (peft: merge_and_unload, then save_pretrained) and give that folder"
        )
    if folder.suffix == ".gguf" or any(folder.glob("*.gguf")):
        raise ConfigError(
            f"teacher.model = {str(folder)!r} is a model in GGUF, which cannot be labeled with; give the "
            "folder or the Hugging Face id of the original model in safetensors, or convert it "
            "(transformers: from_pretrained with gguf_file, then save_pretrained)"
        )


def check_weights(folder: Path) -> None:
    """Raises ConfigError unless the folder's safetensors files are there, whole and no pointers."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        refuse_other_forms(folder)
        only = "only *.bin weights" if any(folder.glob("*.bin")) else "no *.safetensors file"
        raise ConfigError(
            f"teacher.model = {str(folder)!r} holds {only}; give a folder with the weights as safetensors "
            "(transformers: from_pretrained, then save_pretrained)"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = sorted(set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()))
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            raise ConfigError(
                f"teacher.model = {str(folder)!r} lacks {missing[0]!r} and so {len(missing)} of the "
                f"{len(named)} files that {index.name} names; fetch the model again"
            )
    for path in files:
        _check_file(path)


def _check_file(path: Path) -> None:
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS_START))
    if start.startswith(_LFS_START):
        raise ConfigError(f"{str(path)!r} is a pointer of Git LFS and not the weights; run: git lfs pull")
    if num_bytes < 8 or int.from_bytes(start[:8], "little") > num_bytes - 8:
        raise ConfigError(
            f"{str(path)!r} has {num_bytes:,} bytes and no whole safetensors header; fetch the model again"
        )
