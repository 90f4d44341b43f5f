"""The tokenizer of a store's ids as objects of the store, so that their text needs no model's folder.

`tokenizer/files.json` names the files and their hashes; each file is an object below `tokenizer/`, a zstd
frame with the hash of what is in it as the name. Labels read the same with or without them, so no feature of
the manifest asks for them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import zstandard

from logitstore.errors import NOT_THERE, CorruptManifestError
from logitstore.manifest import strict_json
from logitstore.manifest.fields import FORMAT_VERSION
from logitstore.manifest.reading import MAX_MANIFEST_BYTES, check_version
from logitstore.objects.opening import Objects

TOKENIZER_PREFIX = "tokenizer/"
FILES_NAME = "tokenizer/files.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "config.json",
    "generation_config.json",
)
"""What transformers may read of a tokenizer; the two last say its class and where responses end."""
MAX_FILE_BYTES = 256 * 2**20
FRAME_BYTES = 2**20
"""What zstd may add to bytes that it cannot make smaller."""
_CHECKSUM = re.compile(r"blake2b-128:[0-9a-f]{32}")
_LICENCE = re.compile(r"^license(?:_name)?:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of the tokenizer."""

    name: str
    """One of TOKENIZER_FILES."""
    num_bytes: int
    checksum: str
    """"blake2b-128:<hex>" of its bytes, which name its object too."""


@dataclass(frozen=True, slots=True)
class StoredTokenizer:
    """`tokenizer/files.json`."""

    files: tuple[StoredFile, ...]
    licence: str
    """What the model's own page says of its licence; "" where it says nothing or there is no page."""
    format_version: int = FORMAT_VERSION


def files_in(folder: Path) -> dict[str, bytes]:
    """The tokenizer's files that a model's folder holds, by name."""
    return {name: path.read_bytes() for name in TOKENIZER_FILES if (path := folder / name).is_file()}


def licence_in(folder: Path) -> str:
    """The licence that README.md or LICENSE of a model's folder names; "" if neither does."""
    page = folder / "README.md"
    if page.is_file():
        front = page.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
        if front.startswith("---") and (found := _LICENCE.search(front)):
            return found.group(1).strip("'\"")
    for path in sorted(folder.glob("LICEN[CS]E*")):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in lines if line.strip()), "")[:200]
    return ""


def put_tokenizer(objects: Objects, files: Mapping[str, bytes], licence: str = "") -> StoredTokenizer:
    """Give the store its tokenizer, unless it has one; the one that it has after it."""
    objects.put_if_absent(FILES_NAME, _put_files(objects, files, licence))
    return _read_stored(objects)


def replace_tokenizer(objects: Objects, files: Mapping[str, bytes], licence: str) -> None:
    """Give the store this tokenizer in place of any, also where nothing can be put under a condition."""
    objects.put(FILES_NAME, _put_files(objects, files, licence))


def _put_files(objects: Objects, files: Mapping[str, bytes], licence: str) -> bytes:
    """Put the files; what `tokenizer/files.json` says of them."""
    stored = []
    for name, data in sorted(files.items()):
        _check_name(name)
        checksum = "blake2b-128:" + hashlib.blake2b(data, digest_size=16).hexdigest()
        stored.append(StoredFile(name, len(data), checksum))
        objects.put(_object_name(checksum), zstandard.ZstdCompressor(level=9).compress(data))
    return strict_json.encode(StoredTokenizer(tuple(stored), licence))


def copy_tokenizer(source: Objects, target: Objects) -> None:
    """Give `target` the tokenizer of a store with the same ids, if that has one."""
    found = stored_tokenizer(source)
    if found is not None:
        put_tokenizer(target, {file.name: read_file(source, file) for file in found.files}, found.licence)


def stored_tokenizer(objects: Objects) -> StoredTokenizer | None:
    """What the store keeps of its tokenizer; None where it keeps nothing. Raises CorruptManifestError."""
    try:
        return _read_stored(objects)
    except NOT_THERE:
        # A key that may not list gets a refusal for what is not there, as most stores of earlier versions.
        return None


def _read_stored(objects: Objects) -> StoredTokenizer:
    data = objects.get(FILES_NAME, max_bytes=MAX_MANIFEST_BYTES)
    value = strict_json.parse_object(data, what=FILES_NAME, max_bytes=MAX_MANIFEST_BYTES)
    check_version(value, what=FILES_NAME)
    found = strict_json.decode(StoredTokenizer, value, what=FILES_NAME)
    for file in found.files:
        _check_name(file.name)
        if not _CHECKSUM.fullmatch(file.checksum) or not 0 <= file.num_bytes <= MAX_FILE_BYTES:
            raise CorruptManifestError(
                f"{FILES_NAME}: {file.name} has the checksum {file.checksum!r:.80} and {file.num_bytes} "
                "bytes; it must have 'blake2b-128:' and 32 hexadecimal digits, and at most "
                f"{MAX_FILE_BYTES} bytes"
            )
    return found


def tokenizer_objects(objects: Objects) -> list[str]:
    """Names of the objects that keep the tokenizer, the list of its files as the last; none without one."""
    found = stored_tokenizer(objects)
    return [] if found is None else [*(_object_name(file.checksum) for file in found.files), FILES_NAME]


def read_file(objects: Objects, file: StoredFile) -> bytes:
    """The bytes of one of its files. Raises CorruptManifestError where they are others than those named."""
    name = _object_name(file.checksum)
    frame = objects.get(name, max_bytes=file.num_bytes + FRAME_BYTES)
    try:
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=file.num_bytes)
    except zstandard.ZstdError:
        data = b""
    if (
        len(data) != file.num_bytes
        or "blake2b-128:" + hashlib.blake2b(data, digest_size=16).hexdigest() != file.checksum
    ):
        raise CorruptManifestError(
            f"{objects.uri}: {name}, which is {file.name} of the store's tokenizer, is damaged; restore it "
            f"from a copy, or remove {FILES_NAME} and name a tokenizer's folder instead"
        )
    return data


def unpacked_tokenizer(objects: Objects) -> Path | None:
    """A folder on this machine with the files of the store's tokenizer; None if it keeps none.

    It lies in the user's cache, below a name made from the files' hashes, so it is written once.
    """
    found = stored_tokenizer(objects)
    if found is None or not found.files:
        return None
    key = hashlib.blake2b(strict_json.encode(found.files), digest_size=16).hexdigest()
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "penumbra" / "tokenizers"
    folder = root / key
    if not folder.is_dir():
        try:
            root.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=root))
        except OSError:  # no home, or one that cannot be written
            folder = _folder_of_process(key)
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
        _unpack(objects, found, part, folder)
    return folder


def _unpack(objects: Objects, found: StoredTokenizer, part: Path, folder: Path) -> None:
    try:
        for file in found.files:
            (part / file.name).write_bytes(read_file(objects, file))
        part.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


@functools.cache
def _folder_of_process(key: str) -> Path:
    return Path(tempfile.mkdtemp(prefix="penumbra-")) / key


def _object_name(checksum: str) -> str:
    return TOKENIZER_PREFIX + checksum.removeprefix("blake2b-128:")


def _check_name(name: str) -> None:
    if name not in TOKENIZER_FILES:
        raise CorruptManifestError(
            f"{FILES_NAME}: {name!r:.80} is no file of a tokenizer; it must be one of "
            f"{json.dumps(TOKENIZER_FILES)}"
        )
