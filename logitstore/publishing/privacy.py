"""What of a store's own objects says where it was made, and what is published in its place."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from logitstore.manifest.fields import Manifest
from logitstore.manifest.turns import turns_settings
from logitstore.objects.opening import Objects
from logitstore.tokenizer_objects import StoredTokenizer, read_file

_ORIGIN = re.compile(r"_?name_or_path|\w+_file")
"""Fields by which transformers' files say whence they were loaded: `_name_or_path`, `tokenizer_file`,
`special_tokens_map_file`, `vocab_file` and so on. Nothing reads them."""


def public_manifest(manifest: Manifest) -> Manifest:
    """The head without paths: of the input its name, of the settings how texts were sampled and written,
    and whether all turns are labeled."""
    uris = [_last_name(uri) for uri in manifest.input.uri.split(" + ")]
    return dataclasses.replace(
        manifest,
        input=dataclasses.replace(manifest.input, uri=" + ".join(uris)),
        config={**turns_settings([manifest]), **_public_settings(manifest.config)},
    )


def public_tokenizer(objects: Objects, found: StoredTokenizer) -> dict[str, bytes]:
    """The tokenizer's files by name, without the folders that they, or parts of them, were loaded from."""
    return {file.name: _without_origin(file.name, read_file(objects, file)) for file in found.files}


def _public_settings(config: dict[str, Any]) -> dict[str, object]:
    """Sampling, whether prompts were made by a chat template and with which variables, digests of prompts."""
    settings = {name: config[name] for name in ("sampling", "prompts_made_from") if config.get(name)}
    written = config.get("input")
    if isinstance(written, dict):
        kept = {}
        if isinstance(written.get("chat_template"), bool):
            kept["chat_template"] = written["chat_template"]
        if written.get("chat_template_kwargs"):
            kept["chat_template_kwargs"] = written["chat_template_kwargs"]
        settings |= {"input": kept} if kept else {}
    return settings


def _last_name(uri: str) -> str:
    return re.split(r"[\\/]", uri.rstrip("\\/"))[-1]


def _without_origin(name: str, data: bytes) -> bytes:
    """A JSON file of settings without its fields of origin; one that has none as it is, to the byte."""
    if not name.endswith("config.json") and name != "special_tokens_map.json":
        return data
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    kept = _kept(value)
    return data if kept == value else json.dumps(kept, indent=2, ensure_ascii=False).encode()


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _kept(one) for key, one in value.items() if not _is_origin(key, one)}
    return [_kept(one) for one in value] if isinstance(value, list) else value


def _is_origin(key: str, value: object) -> bool:
    """A relative path cannot be told from a model's name on the Hub, so both go; "" says nothing."""
    return _ORIGIN.fullmatch(key) is not None and isinstance(value, str) and value != ""
