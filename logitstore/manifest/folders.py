"""Folders that are label stores: whatever else is written stays outside of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from logitstore.common.secrets import redact_uri
from logitstore.errors import (
    AccessRefusedError,
    CorruptManifestError,
    ObjectNotFoundError,
    ObjectStoreError,
    StoreExistsError,
    UnsupportedFormatError,
    UnsupportedInputError,
)
from logitstore.manifest import strict_json
from logitstore.manifest.fields import Manifest
from logitstore.manifest.reading import MANIFEST_NAME, MAX_MANIFEST_BYTES, check_version, decode_manifest
from logitstore.objects.addresses import is_local_uri, normalise_uri
from logitstore.objects.opening import Objects

_HOLDS_NOTHING_ELSE = "a store of labels, whose folder holds nothing else; choose a place outside of it"


FILE_SUFFIXES = (
    ".parquet", ".pq", ".arrow", ".feather", ".ipc", ".jsonl", ".ndjson", ".json", ".npz", ".npy", ".csv",
    ".tsv", ".txt", ".h5", ".hdf5", ".pt", ".safetensors", ".zip", ".tar", ".gz", ".zst",
)  # fmt: skip
"""Names with these at their end are files, to people and to programs that read them."""


def refuse_file_name(uri: str | os.PathLike[str]) -> None:
    """Raise UnsupportedInputError for a place of a new store, which is a folder, that is named as a file."""
    path = normalise_uri(uri)
    name = path.rstrip("/").rpartition("/")[2]
    suffix = next((suffix for suffix in FILE_SUFFIXES if name.lower().endswith(suffix)), None)
    if suffix is not None:
        earlier = ""
        if not is_local_uri(path):  # what lies there is not looked for
            earlier = (
                "; a store of an earlier version that lies there goes on under another name: `penumbra store "
                f"copy {path} {path[: -len(suffix)]} --with-job`"
            )
        raise UnsupportedInputError(
            f"{redact_uri(os.fspath(uri))} ends as a file's name does, and a store is a folder: leave out "
            f"{name[-len(suffix) :]!r}. `penumbra store export` makes a file of a store, as does `penumbra "
            f"label run --out` with .parquet, .arrow, .jsonl or .npz at the end{earlier}"
        )


def refuse_in_store(
    place: str | os.PathLike[str],
    what: str,
    *,
    is_store: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Raise StoreExistsError where a place is a store's folder or lies within one.

    Readers would pass over what is written there, `verify` would call it foreign, and a store that is
    taken away would take it along. `what` names the output in the message. `is_store`: the output is a
    store, for which the place itself is looked at elsewhere. Of a URL the folders above it are looked at for
    a store alone, by a request each: other outputs are local, or files of an export.
    """
    path = normalise_uri(place)
    if not is_local_uri(path):
        above = _urls_above(path) if is_store else ()
        one = next((url for url in above if _is_store_at(url, storage_options)), None)
        if one is not None:
            raise StoreExistsError(f"{what} {path} lies in {one}, {_HOLDS_NOTHING_ELSE}")
        return
    folder = Path(path).resolve()
    for one in (*(() if is_store else (folder,)), *folder.parents):
        if _is_store(one):
            where = "is" if one == folder else f"lies in {one},"
            raise StoreExistsError(f"{what} {os.fspath(place)} {where} {_HOLDS_NOTHING_ELSE}")


def refuse_own_place(source: Objects, target: Objects, verb: str) -> None:
    """Raise StoreExistsError where a store would be written onto itself, or into a store's folder."""
    own, there = source.one_spelling, target.one_spelling
    if there == own or there.startswith(own.rstrip("/") + "/"):
        where = "is" if there == own else f"lies in {source.uri}, which is"
        raise StoreExistsError(f"{target.uri} {where} the store itself; {verb} to another place")
    refuse_in_store(target.uri, "the place", is_store=True, storage_options=target.storage_options)


def manifest_there(target: Objects) -> Manifest | None:
    """That of the store at a place to be written to; None if there is none.

    Raises AccessRefusedError where the server does not tell which.
    """
    try:
        return decode_manifest(target.get(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES))
    except ObjectNotFoundError:
        return None
    except AccessRefusedError as error:
        raise AccessRefusedError(
            f"{error}. Whether another store lies there is not known, so nothing was written: S3 answers so "
            "for what is not there where a key may put and not list; give the key s3:ListBucket on the prefix"
        ) from None


def _urls_above(url: str) -> Iterator[str]:
    """From the nearest to the bucket or share itself."""
    parts = urlsplit(url)
    path = parts.path.strip("/")
    while path:
        path = path.rpartition("/")[0]
        yield urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _is_store_at(url: str, storage_options: Mapping[str, Any] | None) -> bool:
    """False too where the key may not read what lies there: a prefix of one's own needs no more."""
    with contextlib.suppress(ObjectStoreError, ObjectNotFoundError):
        return _is_manifest(Objects(url, storage_options).get(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES))
    return False


def _is_store(folder: Path) -> bool:
    path = folder / MANIFEST_NAME
    with contextlib.suppress(OSError):
        return path.is_file() and _is_manifest(path.read_bytes())
    return False


def _is_manifest(data: bytes) -> bool:
    with contextlib.suppress(CorruptManifestError):
        value = strict_json.parse_object(data, what=MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
        with contextlib.suppress(UnsupportedFormatError):  # another version's is a store too
            check_version(value, what=MANIFEST_NAME)
        return "labels" in value and "tokenizer" in value
    return False
