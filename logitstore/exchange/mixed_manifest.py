"""The head of a mixture of two stores."""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import UTC, datetime

from logitstore import __version__
from logitstore.errors import StoreChangedError
from logitstore.manifest.fields import (
    GIVEN_ENTRIES,
    OPTIONAL_COLUMNS,
    RECORD_PARTS,
    SEGMENTS,
    Manifest,
    Retokenized,
    TeacherInfo,
)
from logitstore.manifest.turns import turns_settings
from logitstore.store import LogitStore


def mixed_manifest(stores: tuple[LogitStore, LogitStore], weights: tuple[float, float]) -> Manifest:
    """The head of the mixture. Raises StoreChangedError."""
    first, second = (store.manifest for store in stores)
    _refuse_unlike(stores)
    has_segments = SEGMENTS in second.labels.extra_columns
    known = {*first.labels.extra_columns, *([SEGMENTS] if has_segments else [])}
    columns = tuple(name for name in OPTIONAL_COLUMNS if name in known)
    origin = _origin(first, second)
    cut = [RECORD_PARTS] if RECORD_PARTS in first.features else []
    return dataclasses.replace(
        first,
        teacher=_mixed_teacher(first, second, weights),
        labels=dataclasses.replace(
            first.labels,
            top_k=min(first.labels.top_k, second.labels.top_k),
            temperatures=(1.0,),
            value_kind="gap_f16",
            support="given",
            extra_columns=columns,
            teacher_vocab_size=first.labels.teacher_vocab_size or second.labels.teacher_vocab_size,
        ),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        codebooks=None,
        features=(*(["retokenized"] if origin else []), *columns, GIVEN_ENTRIES, *cut),
        config={
            **turns_settings((first, second)),
            "mix": {"digests": [store.digest for store in stores], "weights": list(weights)},
        },
        retokenized=origin,
    )


def _refuse_unlike(stores: tuple[LogitStore, LogitStore]) -> None:
    """Raises StoreChangedError where an id would not be the same token."""
    first, second = (store.manifest for store in stores)
    for name, left, right in (
        ("tokenizer", first.tokenizer, second.tokenizer),
        ("vocab_size", first.labels.vocab_size, second.labels.vocab_size),
    ):
        if left != right:
            raise StoreChangedError(
                f"{stores[0].uri} and {stores[1].uri} differ in {name}: the same id may be another token; "
                "map one of them first, with `penumbra store retokenize`"
            )


def _mixed_teacher(first: Manifest, second: Manifest, weights: tuple[float, float]) -> TeacherInfo:
    parts = [(one.teacher.model, one.teacher.fingerprint) for one in (first, second)]
    identity = hashlib.sha256(repr((parts, weights)).encode()).hexdigest()
    captures = " ".join(one.teacher.capture for one in (first, second))
    return TeacherInfo(
        model=" + ".join(
            f"{weight:g} ({model})" if " + " in model else f"{weight:g} {model}"
            for weight, (model, _) in zip(weights, parts, strict=True)
        ),
        revision=None,
        fingerprint=f"sha256:{identity}",
        dtype="float32",
        quantization=None,
        engine="mix",
        engine_version=__version__,
        capture="mix of imports" if "import" in captures else "mix",
    )


def _origin(first: Manifest, second: Manifest) -> Retokenized | None:
    """Whence mapped labels come, of both."""
    origins = [one.retokenized for one in (first, second) if one.retokenized is not None]
    if not origins:
        return None
    digests = [digest for origin in origins for digest in origin.source_digests]
    return dataclasses.replace(origins[0], source_digests=tuple(dict.fromkeys(digests)))
