"""What of a store's own objects says where it was made, and what is published in its place."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from logitstore.manifest.fields import Manifest
from logitstore.objects.opening import Objects
from logitstore.tokenizer_objects import StoredTokenizer, read_file

_OWN_NAMES = ("_name_or_path", "name_or_path")
"""Fields by which transformers' files say whence they were loaded."""


def public_manifest(manifest: Manifest) -> Manifest:
    """The head without paths: of the input its name, of the settings how texts were sampled and written."""
    uris = [_last_name(uri) for uri in manifest.input.uri.split(" + ")]
    return dataclasses.replace(
        manifest,
        input=dataclasses.replace(manifest.input, uri=" + ".join(uris)),
        config=_public_settings(manifest.config),
    )


def public_tokenizer(objects: Objects, found: StoredTokenizer) -> dict[str, bytes]:
    """The tokenizer's files by name, without the folder that they were loaded from."""
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
    if not name.endswith(".json"):
        return data
    try:
        value = json.loads(data)
    except ValueError:
        return data
    if not isinstance(value, dict) or not any(_is_path(value.get(key)) for key in _OWN_NAMES):
        return data
    kept = {key: one for key, one in value.items() if key not in _OWN_NAMES}
    return json.dumps(kept, indent=2, ensure_ascii=False).encode()


def _is_path(value: object) -> bool:
    return isinstance(value, str) and (value.startswith((".", "/", "~", "\\")) or value[1:2] == ":")
