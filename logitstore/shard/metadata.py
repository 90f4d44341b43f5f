"""What a shard says of itself in its schema's metadata, and whether it fits the store that holds it."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import pyarrow as pa

from logitstore.codec.codebooks import CodebookSet, identity_codebook
from logitstore.codec.streams import damaged
from logitstore.errors import InvalidLabelsError, UnsupportedFormatError
from logitstore.manifest.fields import LabelSpec
from logitstore.shard.schema import KNOWN_FEATURES, SHARD_FORMAT, SHARD_VERSION, shard_schema

_DECIMAL = re.compile(r"[0-9]{1,18}")


@functools.lru_cache(maxsize=64)
def schema_to_write(labels: LabelSpec, codebook_hash: str, has_choice: bool) -> pa.Schema:
    """The schema of a shard, with the metadata that decoding needs beside the codebooks themselves.

    `codebook_hash` is "" for a shard without codebooks.
    """
    values = _values(labels, codebook_hash)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return shard_schema(labels, has_choice).with_metadata(
        {"format": SHARD_FORMAT, "version": str(SHARD_VERSION), **texts}
    )


def _values(labels: LabelSpec, codebook_hash: str) -> dict[str, Any]:
    return {
        "features": list(labels.shard_features),
        "vocab_size": labels.vocab_size,
        "top_k": labels.top_k,
        "temperatures": list(labels.temperatures),
        "value_kind": labels.value_kind,
        "codebooks": codebook_hash,
    }


def check_schema(schema: pa.Schema, labels: LabelSpec, codebooks: CodebookSet | None) -> CodebookSet:
    """The codebooks that the shard was written with, after checking that this reader and store fit it."""
    found = _parse_metadata(schema.metadata or {})
    if found["codebooks"] == "":
        codebooks = None
    for name, value in _values(labels, codebooks.hash if codebooks else "").items():
        if found[name] != value:
            raise damaged(
                f"the shard says {name} {found[name]!r:.120}, its store {value!r}: it is of another store, "
                "or damaged"
            )
    books = codebooks or identity_codebook(labels.vocab_size)
    check_codebooks(books, labels)
    if not schema.equals(shard_schema(labels, books.num_codebooks > 1)):
        raise damaged("the shard's columns are not those of its format")
    return books


def _parse_metadata(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Values of the metadata by name. Refuses versions and features that this reader does not know."""
    try:
        texts = {key.decode(): value.decode() for key, value in metadata.items()}
    except UnicodeDecodeError as error:
        raise damaged(f"the schema's metadata is not UTF-8 ({error})") from error
    if texts.get("format") != SHARD_FORMAT or texts.get("version") != str(SHARD_VERSION):
        raise UnsupportedFormatError(
            f"the file says format {texts.get('format')!r:.80} version {texts.get('version')!r:.80}; this "
            f"reader knows {SHARD_FORMAT!r} version {SHARD_VERSION}: update logitstore"
        )
    try:
        features = json.loads(texts["features"])
        found = {
            "vocab_size": _decimal(texts["vocab_size"]),
            "top_k": _decimal(texts["top_k"]),
            "temperatures": _numbers(json.loads(texts["temperatures"])),
            "value_kind": texts["value_kind"],
            "codebooks": texts["codebooks"],
            "features": features,
        }
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise damaged(f"the schema's metadata cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(features, list) or not all(isinstance(feature, str) for feature in features):
        raise damaged(f"the shard's features {features!r:.80} are not a list of strings")
    if unknown := [feature for feature in features if feature not in KNOWN_FEATURES]:
        raise UnsupportedFormatError(f"the shard needs features {unknown!r:.120}; update logitstore")
    return found


def _decimal(text: str) -> int:
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"{text!r:.40} is no decimal number")
    return int(text)


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{values!r:.80} is no list of numbers")
    return [float(value) for value in values]


def check_codebooks(codebooks: CodebookSet, labels: LabelSpec) -> None:
    if codebooks.vocab_size != labels.vocab_size:
        raise InvalidLabelsError(
            f"the codebooks are of a vocabulary of {codebooks.vocab_size}, the labels of "
            f"{labels.vocab_size}; train codebooks on this teacher"
        )
