"""Reading and writing `manifest.json`: one error per way it can be bad, and no secrets in it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
from typing import Any

from logitstore.common.config_file import flatten
from logitstore.common.secrets import secret_places
from logitstore.errors import (
    CorruptManifestError,
    SecretInManifestError,
    UnsupportedFormatError,
)
from logitstore.manifest import strict_json
from logitstore.manifest.fields import (
    FORMAT_VERSION,
    GIVEN_ENTRIES,
    MAX_TEMPERATURES,
    MAX_VOCAB_SIZE,
    MIXED,
    OPTIONAL_COLUMNS,
    PART_NAMES,
    RECORD_PARTS,
    RETOKENIZED,
    TEXTS_ONLY,
    VALUE_KINDS,
    LabelSpec,
    Manifest,
)

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20
KNOWN_FEATURES: frozenset[str] = frozenset(
    {MIXED, RETOKENIZED, GIVEN_ENTRIES, TEXTS_ONLY, RECORD_PARTS, *OPTIONAL_COLUMNS}
)
MIN_VOCAB_SIZE = 2
MODES = ("score", "generate", MIXED)
POSITIONS = ("response", "all", MIXED)


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON of a valid manifest. Raises CorruptManifestError, SecretInManifestError."""
    check_manifest(manifest)
    refuse_secrets(manifest.config, where="config")
    if next(secret_places(manifest.input.uri), None) is not None:
        raise SecretInManifestError(
            "the input's URL holds a password or a signature, which would be stored in the manifest; "
            "give credentials through the environment or storage options instead"
        )
    try:
        data = strict_json.encode(manifest)
    except (TypeError, ValueError) as error:
        raise CorruptManifestError(f"the manifest's config is not plain JSON: {error}") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise CorruptManifestError(
            f"the manifest has {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are allowed; "
            "shorten its config"
        )
    return data


def decode_manifest(data: bytes, *, what: str = MANIFEST_NAME) -> Manifest:
    """The manifest in `data`, from an untrusted store.

    Raises UnsupportedFormatError for an unknown version or feature, else CorruptManifestError.
    """
    value = strict_json.parse_object(data, what=what, max_bytes=MAX_MANIFEST_BYTES)
    check_version(value, what=what)
    features = value.get("features", [])
    if isinstance(features, list):
        unknown = [name for name in features if isinstance(name, str) and name not in KNOWN_FEATURES]
        if unknown:
            raise UnsupportedFormatError(
                f"{what} needs the feature {unknown[0]!r:.80}, which this reader does not know; "
                "read the store with a newer version"
            )
    manifest = strict_json.decode(Manifest, value, what=what)
    check_manifest(manifest, what=what)
    return manifest


def check_version(value: dict[str, Any], *, what: str) -> None:
    """Refuse JSON of another format version before looking at any other field."""
    version = value.get("format_version")
    if type(version) is not int:
        raise CorruptManifestError(f"{what}: format_version is {version!r:.40}, but must be an integer")
    if version != FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{what} has format version {version}, this reader knows only {FORMAT_VERSION}; "
            "read the store with the version that wrote it or a newer one"
        )


def check_manifest(manifest: Manifest, *, what: str = MANIFEST_NAME) -> None:
    """Rules between and within fields. Raises CorruptManifestError."""
    check_labels(manifest.labels, what=what)
    _check_features(manifest, what)
    if not 0 <= manifest.tokenizer.vocab_size <= MAX_VOCAB_SIZE:
        raise CorruptManifestError(
            f"{what}: the tokenizer's vocab_size {manifest.tokenizer.vocab_size} "
            f"must lie in 0..{MAX_VOCAB_SIZE}"
        )
    if manifest.codebooks is not None and not re.fullmatch(r"blake2b-128:[0-9a-f]{32}", manifest.codebooks):
        raise CorruptManifestError(
            f"{what}: codebooks {manifest.codebooks!r:.80} must be 'blake2b-128:' and 32 hexadecimal digits"
        )
    if manifest.input.parts not in ("", *PART_NAMES):
        raise CorruptManifestError(
            f"{what}: the input's parts {manifest.input.parts!r:.40} must be {' or '.join(PART_NAMES)}"
        )
    if manifest.input.limit is not None and manifest.input.limit < 1:
        raise CorruptManifestError(f"{what}: the input's limit {manifest.input.limit} must be at least 1")


def _check_features(manifest: Manifest, what: str) -> None:
    """That the features are those of the other fields."""
    marks = (
        RETOKENIZED in manifest.features,
        manifest.retokenized is not None,
        manifest.labels.teacher_vocab_size is not None,
    )
    if len(set(marks)) != 1:
        raise CorruptManifestError(
            f"{what}: the feature {RETOKENIZED!r}, the field of that name and labels.teacher_vocab_size must "
            f"be there together, but of the three there are {sum(marks)}"
        )
    columns = tuple(name for name in OPTIONAL_COLUMNS if name in manifest.features)
    if manifest.labels.extra_columns != columns:
        raise CorruptManifestError(
            f"{what}: labels.extra_columns {manifest.labels.extra_columns!r:.80} must be the features that "
            f"are columns, in their order: {columns!r:.80}"
        )
    named = tuple(name for name in (GIVEN_ENTRIES, TEXTS_ONLY) if name in manifest.features)
    if named != manifest.labels.support_features:
        raise CorruptManifestError(
            f"{what}: labels.support {manifest.labels.support!r:.40} must go together with the feature "
            f'{manifest.labels.support_features}, but the features have {named}: "given" with '
            f'{GIVEN_ENTRIES!r}, "none" with {TEXTS_ONLY!r}, "top" with neither'
        )
    shape = (manifest.labels.top_k, manifest.labels.temperatures)
    if manifest.labels.support == "none" and shape != (1, (1.0,)):
        raise CorruptManifestError(
            f"{what}: top_k and temperatures {shape!r:.120} must be 1 and 1.0 where there are no rows"
        )
    if (MIXED in manifest.features) != (MIXED in (manifest.labels.mode, manifest.labels.positions)):
        raise CorruptManifestError(
            f"{what}: the feature {MIXED!r} must be there where mode {manifest.labels.mode!r} or positions "
            f"{manifest.labels.positions!r} is {MIXED!r}, and only there"
        )
    if manifest.input.parts and RECORD_PARTS not in manifest.features:
        raise CorruptManifestError(
            f"{what}: the input has parts, but the feature {RECORD_PARTS!r} is missing"
        )


def check_labels(labels: LabelSpec, *, what: str = MANIFEST_NAME) -> None:
    """Bounds that everything decoding a shard relies on. Raises CorruptManifestError."""
    if not MIN_VOCAB_SIZE <= labels.vocab_size <= MAX_VOCAB_SIZE:
        raise CorruptManifestError(
            f"{what}: vocab_size {labels.vocab_size} must lie in {MIN_VOCAB_SIZE}..{MAX_VOCAB_SIZE}"
        )
    if not MIN_VOCAB_SIZE <= labels.num_outcomes <= MAX_VOCAB_SIZE:
        raise CorruptManifestError(
            f"{what}: teacher_vocab_size {labels.teacher_vocab_size} must lie in "
            f"{MIN_VOCAB_SIZE}..{MAX_VOCAB_SIZE}"
        )
    if not 1 <= labels.top_k <= labels.vocab_size:
        raise CorruptManifestError(
            f"{what}: top_k {labels.top_k} must lie in 1..vocab_size ({labels.vocab_size})"
        )
    temperatures = labels.temperatures
    ascending = all(low < high for low, high in itertools.pairwise(temperatures))
    if (
        not 1 <= len(temperatures) <= MAX_TEMPERATURES
        or temperatures[0] != 1.0
        or not ascending
        or not math.isfinite(temperatures[-1])
    ):
        raise CorruptManifestError(
            f"{what}: temperatures {temperatures!r:.120} must ascend from 1.0 and "
            f"be finite, and they may be at most {MAX_TEMPERATURES}"
        )
    for name, value, allowed in (
        ("value_kind", labels.value_kind, VALUE_KINDS),
        ("mode", labels.mode, MODES),
        ("positions", labels.positions, POSITIONS),
        ("alignment", labels.alignment, ("label",)),
        ("support", labels.support, ("top", "given", "none")),
    ):
        if value not in allowed:
            raise CorruptManifestError(f"{what}: {name} {value!r:.60} must be one of {', '.join(allowed)}")


def identity(manifest: Manifest) -> bytes:
    """What makes two manifests the same job: everything but the time, the codebooks and the settings."""
    core = dataclasses.replace(manifest, created="", codebooks=None, config={})
    return strict_json.encode(core)


IDENTITY_FIELDS = ("fingerprint", "model", "revision", "dtype", "quantization")
"""Fields of `teacher` that make it another; an engine's version and the capture do not."""


def teacher_identity(manifest: Manifest) -> bytes:
    """What must agree for stores to be merged or share codebooks: teacher, tokenizer and label shape."""
    parts = {
        "teacher": [getattr(manifest.teacher, name) for name in IDENTITY_FIELDS],
        "tokenizer": dataclasses.asdict(manifest.tokenizer),
        "vocab_size": manifest.labels.vocab_size,
    }
    return strict_json.encode(parts)


def first_difference(left: Manifest, right: Manifest) -> str | None:
    """A sentence on the first field of `identity` in which two manifests differ; None if none does."""
    there, here = flatten(dataclasses.asdict(left)), flatten(dataclasses.asdict(right))
    for name in sorted(there | here):
        if name.split(".")[0] in ("created", "codebooks", "config"):
            continue
        if there.get(name) != here.get(name):
            return f"{name} is {there.get(name)!r:.80} there and {here.get(name)!r:.80} here"
    return None


def manifest_hash(manifest: Manifest) -> str:
    """32 hexadecimal digits of `identity`, by which commit records and indexes name their manifest."""
    return hashlib.blake2b(identity(manifest), digest_size=16).hexdigest()


def refuse_secrets(config: Any, *, where: str) -> None:
    """Raise SecretInManifestError for a setting that holds a credential and is not blanked."""
    place = next(secret_places(config, where), None)
    if place is not None:
        raise SecretInManifestError(
            f"{place} looks like a credential and a manifest is readable by anyone with "
            "the store; pass it through the environment or storage options instead"
        )
