"""The manifest round-trips, and every way it can be bad has its error."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.errors import (
    CorruptManifestError,
    SecretInManifestError,
    StoreError,
    UnsupportedFormatError,
)
from logitstore.manifest import reading as manifest_io
from logitstore.manifest.reading import decode_manifest, encode_manifest
from tests.logitstore.random_labels import make_manifest

GOOD = json.loads(encode_manifest(make_manifest(note="x")))


def changed(path: str, value: Any) -> bytes:
    manifest = copy.deepcopy(GOOD)
    place = manifest
    *parents, last = path.split(".")
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(manifest).encode()


def test_round_trip_and_bytes() -> None:
    manifest = make_manifest(note={"deep": [1, 2.5, None, "ü"]})
    data = encode_manifest(manifest)
    assert decode_manifest(data) == manifest
    assert data.startswith(b'{"codebooks":null,"config":{"note":{"deep":[1,2.5,null,"\xc3\xbc"]}},"created":')


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        ("format_version", 2, UnsupportedFormatError, "has format version 2, this reader knows only 1"),
        ("format_version", "1", CorruptManifestError, "format_version is '1', but must be an integer"),
        ("format_version", True, CorruptManifestError, "format_version is True"),
        ("format_version", ..., CorruptManifestError, "format_version is None"),
        ("features", ["sampled"], UnsupportedFormatError, "needs the feature 'sampled'"),
        ("features", "sampled", CorruptManifestError, "features is str 'sampled', but must be a list"),
        ("features", [1], CorruptManifestError, r"features\[0\] is int 1, but must be a string"),
        ("extra", 1, CorruptManifestError, "unknown field 'extra'"),
        ("teacher", ..., CorruptManifestError, "lacks the field 'teacher'"),
        ("config", ..., CorruptManifestError, "lacks the field 'config'"),
        ("input.limit", ..., CorruptManifestError, "input lacks the field 'limit'"),
        ("teacher.model", "\ud800", CorruptManifestError, "surrogates not allowed"),
        ("teacher.model", None, CorruptManifestError, "teacher.model is NoneType None"),
        ("teacher.quantization", 3, CorruptManifestError, "teacher.quantization is int 3"),
        ("teacher", [], CorruptManifestError, r"teacher is list \[\], but must be an object"),
        ("tokenizer.vocab_size", 2**21, CorruptManifestError, "vocab_size 2097152 must lie in"),
        ("tokenizer.vocab_size", 10**30, CorruptManifestError, "does not fit 63 bits"),
        ("labels.vocab_size", 1, CorruptManifestError, "vocab_size 1 must lie in 2..1048576"),
        ("labels.vocab_size", 2**40, CorruptManifestError, "vocab_size 1099511627776 must lie in"),
        ("labels.vocab_size", 101.0, CorruptManifestError, "vocab_size is float 101.0, but must be an integer"),
        ("labels.top_k", 0, CorruptManifestError, "top_k 0 must lie in 1..vocab_size"),
        ("labels.top_k", 102, CorruptManifestError, r"top_k 102 must lie in 1..vocab_size \(101\)"),
        ("labels.temperatures", [], CorruptManifestError, "must ascend from 1.0"),
        ("labels.temperatures", [2.0], CorruptManifestError, "must ascend from 1.0"),
        ("labels.temperatures", [1.0, 4.0, 2.0], CorruptManifestError, "must ascend from 1.0"),
        ("labels.temperatures", [1.0, 1.0], CorruptManifestError, "must ascend from 1.0"),
        ("labels.temperatures", [float(t) for t in range(1, 40)], CorruptManifestError, "at most 16"),
        ("labels.temperatures", ["1"], CorruptManifestError, "must be a number"),
        ("labels.temperatures", [1, 10**400], CorruptManifestError, "is not finite"),
        ("labels.value_kind", "int4", CorruptManifestError, "value_kind 'int4' must be one of"),
        ("labels.alignment", "logit", CorruptManifestError, "alignment 'logit' must be one of label"),
        ("labels.mode", "", CorruptManifestError, "mode '' must be one of score, generate"),
        ("labels.positions", "none", CorruptManifestError, "positions 'none'"),
        ("input.fields", {"id": 3}, CorruptManifestError, "fields.id is int 3"),
        ("input.limit", 0, CorruptManifestError, "limit 0 must be at least 1"),
        ("codebooks", "../../etc", CorruptManifestError, "codebooks '../../etc' must be 'blake2b-128:'"),
        ("created", 5, CorruptManifestError, "created is int 5"),
        ("config", [], CorruptManifestError, "config is list"),
    ],
)  # fmt: skip
def test_each_bad_field_has_its_message(path: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        decode_manifest(changed(path, value))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "is a JSON list, but must be an object"),
        (b"null", "is a JSON NoneType"),
        (b'{"format_version": 1, "format_version": 1}', "repeats the key 'format_version'"),
        (b'{"format_version": NaN}', "NaN is not a JSON number"),
        (b'{"a": Infinity}', "Infinity is not a JSON number"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b" " * (manifest_io.MAX_MANIFEST_BYTES + 1), "more than 16777216 bytes"),
    ],
    ids=range(11),
)
def test_what_is_not_json(data: bytes, message: str) -> None:
    with pytest.raises(CorruptManifestError, match=message):
        decode_manifest(data)


def test_what_cannot_be_written() -> None:
    with pytest.raises(CorruptManifestError, match="not plain JSON"):
        encode_manifest(make_manifest(value=object()))
    with pytest.raises(CorruptManifestError, match="not plain JSON"):
        encode_manifest(make_manifest(value=float("nan")))
    with pytest.raises(CorruptManifestError, match="shorten its config"):
        encode_manifest(make_manifest(value="x" * manifest_io.MAX_MANIFEST_BYTES))
    import dataclasses

    manifest = make_manifest()
    with_password = dataclasses.replace(manifest.input, uri="https://me:hunter2@host/x.jsonl")
    with pytest.raises(SecretInManifestError) as caught:
        encode_manifest(dataclasses.replace(manifest, input=with_password))
    assert "hunter2" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
PATHS = [
    *GOOD,
    *(f"{group}.{name}" for group in ("teacher", "tokenizer", "labels", "input") for name in GOOD[group]),
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PATHS), JSON)
def test_any_value_in_any_field_is_taken_or_refused(path: str, value: Any) -> None:
    try:
        manifest = decode_manifest(changed(path, value))
    except StoreError:
        return
    assert decode_manifest(json.dumps(json.loads(changed(path, value))).encode()) == manifest


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 20))
def test_damaged_bytes_are_taken_or_refused(noise: bytes, start: int, cut: int) -> None:
    data = encode_manifest(make_manifest())
    with contextlib.suppress(StoreError):
        decode_manifest(data[:start] + noise + data[start + cut :])
