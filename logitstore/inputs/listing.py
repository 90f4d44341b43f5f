"""The files of an input: a path, a glob, a folder, a folder of the `datasets` library, or a URL."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import fsspec

from logitstore.common.secrets import redact_about, redact_query, redact_uri
from logitstore.errors import (
    InputNotFoundError,
    ObjectStoreError,
    StoreError,
    UnsupportedInputError,
)
from logitstore.objects.addresses import is_local_uri

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")
ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")
CSV_SUFFIXES = (".csv",)
DATASET_NOTES = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
"""Files that the `datasets` library puts beside its data."""
_SPLIT_FILE = re.compile(r"^/(.*?)([A-Za-z_]+)-\d{5}-of-\d{5}\.[^/]+$")
"""A file of one split, as the hub names them: data/train-00000-of-00002.parquet."""
_SPLIT_NAME = re.compile(
    r"^/((?:.*?[/_-])?)(train|training|test|validation|valid|val|dev|eval|evaluation)(?:/|\.[^/]*$)",
    re.IGNORECASE,
)
"""A folder or file called after its split: train.jsonl, my_test.csv, train/0000.parquet."""
_NO_DATA = re.compile(
    r"^(readme|licen[cs]e|notice|citation|changelog)\b|\.(md|py|ipynb|sh|ya?ml|toml)$", re.IGNORECASE
)
"""Names of files that say something about data, beside it."""
_GLOB = re.compile(r"[*?\[]")


def list_files(uri: str, *, storage_options: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    """(path or URL, name relative to the input) of every file of the input, sorted.

    Raises InputNotFoundError if nothing matches, ObjectStoreError if the input is out of reach.
    """
    with _reached(uri):
        return _list_files(uri, storage_options)


def _list_files(uri: str, storage_options: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    file_system, root = _file_system(uri, storage_options)
    pattern = _GLOB.search(root)
    if pattern and not file_system.exists(root):
        base = root[: pattern.start()].rpartition("/")[0]
        found = sorted(str(path) for path in file_system.glob(root))
        found = [path for path in found if not file_system.isdir(path)]
    elif file_system.isfile(root):
        return [(file_system.unstrip_protocol(root), redact_query(root.rpartition("/")[2]))]
    else:
        _refuse_pipe(uri, root)
        base = root.rstrip("/")
        found = sorted(path for path in file_system.find(base) if _is_input_name(path))
        found = _of_saved_dataset(file_system, base, found)
    if not found:
        raise InputNotFoundError(
            f"the input {redact_uri(uri)} matches no file; give a path, a glob, a folder or a URL of JSONL "
            "(.gz, .zst), CSV, Parquet or Arrow files that exist"
        )
    return [
        (file_system.unstrip_protocol(path), redact_query(path[len(base) :].lstrip("/"))) for path in found
    ]


def _refuse_pipe(uri: str, root: str) -> None:
    """`-`, /dev/stdin and the shell's `<(...)` are there, and can be read once."""
    if uri == "-" or (is_local_uri(uri) and os.path.exists(root) and not os.path.isdir(root)):
        raise InputNotFoundError(
            f"the input {redact_uri(uri)} is a pipe or a device, and an input is read more than once, also "
            "when a job goes on; write it into a file, and give that"
        )


def unread_files(uri: str, *, storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """Names of files in an input's folder that look like data and are not read, for their name or their form.

    Empty for a file, a glob (which takes what it names or refuses it) and a folder of the `datasets` library.
    """
    with _reached(uri):
        file_system, root = _file_system(uri, storage_options)
        base = root.rstrip("/")
        if not file_system.isdir(root) or file_system.isfile(f"{base}/state.json"):
            return []
        found = sorted(str(path)[len(base) :].lstrip("/") for path in file_system.find(base))
    return [name for name in found if not _is_input_name(name) and _may_be_data(name.rpartition("/")[2])]


def _may_be_data(name: str) -> bool:
    if name.startswith((".", "_")):
        return form_of(name) is not None
    return name not in DATASET_NOTES and not _NO_DATA.search(name)


def _of_saved_dataset(file_system: Any, base: str, found: list[str]) -> list[str]:
    """The files that a folder of `datasets.save_to_disk` names as its data; else all that were found."""
    splits = f"{base}/dataset_dict.json"
    if file_system.isfile(splits):
        names = json.loads(file_system.cat_file(splits)).get("splits", [])
        raise InputNotFoundError(
            f"the input {redact_uri(base)} holds the splits {', '.join(names)} of a dataset; give the folder "
            f"of one of them, such as {redact_uri(base)}/{names[0] if names else 'train'}"
        )
    state = f"{base}/state.json"
    if not file_system.isfile(state):
        _refuse_several_splits(base, found)
        return found
    named = json.loads(file_system.cat_file(state)).get("_data_files") or []
    paths = {f"{base}/{entry['filename']}" for entry in named}
    return [path for path in found if path in paths] if paths else found


def _refuse_several_splits(base: str, found: list[str]) -> None:
    """As a snapshot of the hub holds them: training and test files would be read as one."""
    splits: dict[str, str] = {}
    for path in found:
        below = path[len(base) :]
        if named := _SPLIT_FILE.search(below):
            splits.setdefault(named[2], f"{named[1]}{named[2]}-*")
        elif named := _SPLIT_NAME.search(below):
            is_folder = named[0].endswith("/")
            splits.setdefault(named[2].lower(), f"{named[1]}{named[2]}" if is_folder else below[1:])
    if len(splits) > 1:
        raise InputNotFoundError(
            f"the input {redact_uri(base)} holds the splits {', '.join(splits)} of a dataset; give the files "
            f"of one of them, such as {redact_uri(base)}/{next(iter(splits.values()))}, or a glob that takes "
            "several"
        )


def input_fingerprint(uri: str, *, storage_options: Mapping[str, Any] | None = None) -> str:
    """32 hexadecimal digits over names, sizes and times or ETags of the files; nothing is read.

    Raises InputNotFoundError if nothing matches, ObjectStoreError if the input is out of reach.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for path, relative in list_files(uri, storage_options=storage_options):
        file_system, plain = _file_system(path, storage_options)
        with _reached(path):
            info = file_system.info(plain)
        version = info.get("ETag") or info.get("mtime") or info.get("LastModified") or ""
        hasher.update(f"{relative}\n{info.get('size')}\n{version}\n".encode())
    return hasher.hexdigest()


def _file_system(uri: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    if is_local_uri(uri):
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(uri))
    options = dict(storage_options or {})
    if uri.startswith(("s3://", "s3a://")):
        options.setdefault("use_listings_cache", False)
    try:
        return fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise UnsupportedInputError(
            f"the input URL {redact_uri(uri)} cannot be opened: {redact_about(uri, str(error))}; use a path, "
            "s3:// or another scheme that fsspec knows"
        ) from error


@contextmanager
def _reached(uri: str) -> Iterator[None]:
    """Errors of a cloud's library, which have no class in common, as ours; they hold no credentials."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        raise ObjectStoreError(
            f"{redact_uri(uri)} is out of reach ({type(error).__name__}: "
            f"{redact_about(uri, str(error)):.300}); check the endpoint, the network and the credentials"
        ) from error


def open_file(path: str, storage_options: dict[str, Any]) -> BinaryIO:
    file_system, plain = _file_system(path, storage_options)
    return file_system.open(plain, "rb")


def _is_input_name(path: str) -> bool:
    name = path.rpartition("/")[2]
    return not name.startswith((".", "_")) and name not in DATASET_NOTES and form_of(path) is not None


def form_of(path: str) -> str | None:
    name = path.lower()
    for compression in (".gz", ".zst"):
        if name.endswith(compression):
            return compression if name.removesuffix(compression).endswith(JSONL_SUFFIXES) else None
    for form, suffixes in (
        ("jsonl", JSONL_SUFFIXES),
        ("parquet", PARQUET_SUFFIXES),
        ("arrow", ARROW_SUFFIXES),
        ("csv", CSV_SUFFIXES),
    ):
        if name.endswith(suffixes):
            return form
    return None
