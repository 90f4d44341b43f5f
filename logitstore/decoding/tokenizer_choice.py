"""Which tokenizer gives a store's ids their text, and what to tell the reader where none does."""

from __future__ import annotations

import os
from pathlib import Path

from logitstore.decoding.tokens import TokenTexts, load_token_texts
from logitstore.errors import UnsupportedInputError
from logitstore.manifest.fields import Manifest
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import unpacked_tokenizer


def choose_texts(store: LogitStore, given: str | None) -> tuple[TokenTexts, str]:
    """Texts for a store's ids, and why there are none ("" when there are).

    The tokenizer is the given one, else the one that the store keeps, else the job's teacher: a folder, or a
    model in the local Hugging Face cache; nothing is downloaded. One with other ids than the store's is
    refused, since its texts would be false.

    Raises:
        FileNotFoundError: nothing at the given path.
        UnsupportedInputError: what is there is no tokenizer.
    """
    manifest = store.manifest
    path = given or tokenizer_folder(store)
    if path is None:
        whose = "the student" if manifest.retokenized else repr(manifest.teacher.model)
        return TokenTexts(), (
            f"no tokenizer of {whose} was found on this machine; name its folder with --tokenizer."
        )
    try:
        texts = load_token_texts(path)
    except ModuleNotFoundError as error:
        return TokenTexts(), f"{error}."
    except UnsupportedInputError as error:
        if given is not None:
            raise
        return TokenTexts(), f"{error}."  # as of a newer version of the package: ids can be shown
    expected = manifest.tokenizer.fingerprint
    if expected and tokenizer_fingerprint(texts.vocabulary()) != expected:
        return TokenTexts(), (
            f"the tokenizer at {path!r} gives ids other meanings than the store's; "
            f"name the {'student' if manifest.retokenized else 'teacher'}'s own with --tokenizer."
        )
    return texts, ""


def tokenizer_folder(store: LogitStore) -> str | None:
    """Folder or file of the store's tokenizer on this machine, its own first; None if it is not found."""
    own = unpacked_tokenizer(store.objects)
    if own is not None and (own / "tokenizer.json").is_file():
        return str(own)
    return _folder_of_model(store.manifest)


def _folder_of_model(manifest: Manifest) -> str | None:
    key, field = ("retokenize", "tokenizer") if manifest.retokenized else ("teacher", "model")
    settings = manifest.config.get(key)
    configured = settings.get(field) if isinstance(settings, dict) else None
    for name in (configured, *([] if manifest.retokenized else [manifest.teacher.model])):
        if not isinstance(name, str) or not name:
            continue
        if (Path(name) / "tokenizer.json").is_file() or (name.endswith(".json") and Path(name).is_file()):
            return name
        cached = _in_hub_cache(name, manifest.teacher.revision)
        if cached is not None:
            return cached
    return None


def _in_hub_cache(model: str, revision: str | None) -> str | None:
    """Path of a hub model's tokenizer.json that an earlier download left here."""
    hub = Path(
        os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    )
    snapshots = hub.expanduser() / f"models--{model.replace('/', '--')}" / "snapshots"
    if model.count("/") != 1 or ".." in model:
        return None
    files = sorted(snapshots.glob(f"{revision or '*'}/tokenizer.json"))
    return str(files[-1]) if files else None
