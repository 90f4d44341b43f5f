"""Whether a folder holds a model whose weights are whole: looked at before an engine or a training starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from logitstore.common.config_file import ConfigError
from logitstore.models.hub import check_model_name

_LFS_START = b"version https://git-lfs"
_MOST_HEADER_BYTES = 100_000_000
"""The library of the format refuses a longer header."""


def refuse_other_forms(folder: Path, setting: str) -> None:
    """Raises ConfigError for a GGUF file, or a folder without config.json with a model of another form."""
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{setting} = {str(folder)!r} is an adapter (LoRA) and no whole model; merge it into its "
            "base model first (peft: merge_and_unload, then save_pretrained) and give that folder"
        )
    if folder.suffix == ".gguf" or any(folder.glob("*.gguf")):
        raise ConfigError(
            f"{setting} = {str(folder)!r} is a model in GGUF, which is not read here; give the "
            "folder or the Hugging Face id of the original model in safetensors, or convert it "
            "(transformers: from_pretrained with gguf_file, then save_pretrained)"
        )


def check_weights(folder: Path, setting: str) -> None:
    """Raises ConfigError unless the folder has weights as safetensors files, whole and no pointers."""
    if not any(folder.glob("*.safetensors")):
        refuse_other_forms(folder, setting)
        only = "only *.bin weights" if any(folder.glob("*.bin")) else "no *.safetensors file"
        raise ConfigError(
            f"{setting} = {str(folder)!r} holds {only}; give a folder with the weights as safetensors "
            "(transformers: from_pretrained, then save_pretrained)"
        )
    check_whole(folder, setting)


def check_whole(folder: Path, setting: str) -> None:
    """Raises ConfigError where a safetensors file is missing that the index names, is cut or is a pointer.

    So it does for an index that is damaged itself.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = json_object(index, setting, str(folder)).get("weight_map", {})
        if not isinstance(weight_map, dict):
            raise ConfigError(
                f"{setting} = {str(folder)!r}: the weight_map of its {index.name} is {str(weight_map)!r:.40} "
                "and names no files; fetch the model again"
            )
        named = sorted(set(map(str, weight_map.values())))
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            raise ConfigError(
                f"{setting} = {str(folder)!r} lacks {missing[0]!r} and so {len(missing)} of the "
                f"{len(named)} files that {index.name} names; fetch the model again"
            )
    for path in sorted(folder.glob("*.safetensors")):
        _check_file(path)


def check_loadable(name: str, setting: str) -> None:
    """Raises ConfigError for a folder that transformers cannot load: it takes adapters and *.bin files too.

    Says nothing of a model that is no folder here.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    if (base := _adapter_base(folder, setting)) is not None:
        check_model_name(base, revision=None, setting=f"base_model_name_or_path of the adapter {name!r}")
    elif (config := folder / "config.json").is_file():
        json_object(config, setting, name)
    else:
        refuse_other_forms(folder, setting)
    check_whole(folder, setting)


def json_object(path: Path, setting: str, model: str) -> dict[str, Any]:
    """What a file of a model holds. Raises ConfigError for one that is cut or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        problem = str(error)
    else:
        if isinstance(value, dict):
            return value
        problem = f"it holds {str(value)!r:.40}"
    raise ConfigError(
        f"{setting} = {model!r}: its {path.name} is no whole JSON object ({problem}); fetch the model again"
    )


def _adapter_base(folder: Path, setting: str) -> str | None:
    """The model that the folder's adapter belongs to; None for a folder without an adapter, or a base."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    base = json_object(path, setting, str(folder)).get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise ConfigError(
            f"{setting} = {str(folder)!r}: base_model_name_or_path of its {path.name} is {str(base)!r:.40} "
            "and no name of a model; correct it, or fetch the adapter again"
        )
    return base


def refuse_no_tokens(tokenizer: Any, name: str, setting: str) -> None:
    """Raises ConfigError for a tokenizer of transformers that knows special tokens alone.

    So it makes one, without a word, for a folder that holds none.
    """
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise ConfigError(
            f"{setting} = {name!r} holds no tokenizer: there is no tokenizer.json, or no token in it; "
            "copy the tokenizer's files to it (transformers: AutoTokenizer.from_pretrained of the original "
            "model, then save_pretrained)"
        )


def _check_file(path: Path) -> None:
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS_START))
        if start.startswith(_LFS_START):
            raise ConfigError(f"{str(path)!r} is a pointer of Git LFS and not the weights; run: git lfs pull")
        header_bytes = int.from_bytes(start[:8], "little")
        file.seek(8)
        data_bytes = _data_bytes(file.read(min(header_bytes, _MOST_HEADER_BYTES)))
    if data_bytes is None:
        raise ConfigError(
            f"{str(path)!r} has {num_bytes:,} bytes and no whole safetensors header; fetch the model again"
        )
    expected = 8 + header_bytes + data_bytes
    if num_bytes != expected:
        raise ConfigError(
            f"{str(path)!r} has {num_bytes:,} bytes of the {expected:,} that its header names; fetch the "
            "model again"
        )


def _data_bytes(header: bytes) -> int | None:
    """Bytes behind the header of a safetensors file; None for a header that is cut or damaged."""
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        return max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError, OverflowError):
        return None
