"""Addresses of stores: a folder of this machine, or a URL."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from logitstore.common.secrets import redact_uri
from logitstore.errors import UnsupportedInputError

CLOUD_SCHEMES = ("s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "oci", "oss")
AZURE_SCHEMES = ("abfs", "abfss", "wasb", "wasbs")
ARCHIVE_SCHEMES = ("zip", "tar", "libarchive")
LOGIN_SCHEMES = ("sftp", "ssh", "ftp", "smb", "hdfs")
_FIRST_NAMES = {"s3a": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs", "ssh": "sftp"}
"""Schemes of one file system by the name that `one_spelling` gives all of them."""
_SERVER_OPTIONS = ("endpoint_url", "endpoint", "base_url", "host", "port", "account_name", "account_host")
"""Storage options that name a server: without them its address, or the environment, does."""
_SERVER_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_NEXT_LINK = re.compile(rf"::{_SCHEME.pattern}")
_ONE_SLASH = re.compile(
    rf"(file|https?|webdav|{'|'.join((*CLOUD_SCHEMES, *LOGIN_SCHEMES))}):/*(?!//)", re.IGNORECASE
)


def normalise_uri(uri: str | os.PathLike[str]) -> str:
    """An absolute local path, or the URL without a trailing slash. Raises UnsupportedInputError for what is
    neither, and for URLs with credentials."""
    text = os.fspath(uri)
    if found := _SCHEME.match(text):  # schemes are of either case
        text = found[0].lower() + text[found.end() :]
    text = path_of_file_url(text)
    if not text.strip():
        raise UnsupportedInputError(
            "the address of a store is empty, as an unset variable of the shell is; give a folder or a URL, "
            "the present folder as '.'"
        )
    if is_local_uri(text):
        _refuse_broken_url(text)
        return _absolute(text)
    _refuse_broken_host(text)
    if _is_chain(text):
        raise UnsupportedInputError(
            f"{redact_uri(text)} is a chain of addresses, and a store has one: unpack it, or copy it to a "
            "folder"
        )
    _check_parts(text)
    return text.rstrip("/")


def upload_command(repository: str, folder: str, place: str = ".", *, kind: str = "dataset") -> str:
    """Brings a published folder to a repository of the Hub, in place of what an earlier one left there."""
    names = shlex.join((repository, folder, place))
    return f"hf upload {names} --repo-type {kind} --delete 'shards/*' --delete 'index/*'"


def is_local_uri(uri: str) -> bool:
    return "://" not in uri


def one_spelling(uri: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> str:
    """The same text for all spellings of a place, with the storage options that go with each.

    It begins with the text of a place above, and a slash. Links of folders are followed; of a URL, schemes
    that mean the same are one, and the server that options or environment name is a part of it.
    """
    path = normalise_uri(uri)
    if is_local_uri(path):
        return os.path.realpath(path)
    parts = urlsplit(path)
    scheme = _FIRST_NAMES.get(parts.scheme, parts.scheme)
    if scheme in ("http", "https"):
        port = parts.port or {"http": 80, "https": 443}[scheme]
        return f"{scheme}://{parts.hostname}:{port}{unquote(parts.path)}"
    servers = sorted(_named_servers(options or {}))
    if not servers and scheme == "s3":
        servers = [os.environ[name].rstrip("/") for name in _SERVER_VARIABLES if os.environ.get(name)][:1]
    return " ".join((*servers, f"{scheme}://{parts.netloc}{parts.path}"))


def _named_servers(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _named_servers(value)
        elif name in _SERVER_OPTIONS and value:
            yield str(value).rstrip("/")


def path_of_file_url(text: str) -> str:
    """The path of a file:// URL; other texts as they are."""
    path = text.removeprefix("file://").removeprefix("local://")
    if path == text:
        return text
    path = path.removeprefix("localhost") if path.startswith("localhost/") else path
    if (escape := _ESCAPE.search(path)) and not os.path.exists(path):
        raise UnsupportedInputError(
            f"{text:.200} has {escape[0]}, which some programs read as {unquote(escape[0])!r} and others as "
            f"it stands; write the path itself, without file://, as in {unquote(path)!r:.200}"
        )
    return path


def _is_chain(url: str) -> bool:
    """As of fsspec, where an archive is one of another address; in the key of an object `::` may stand."""
    if urlsplit(url).scheme in ARCHIVE_SCHEMES:
        return True
    if urlsplit(url).scheme in CLOUD_SCHEMES:
        return _NEXT_LINK.search(url) is not None
    return "::" in url.partition("[")[0]


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(os.path.expanduser(path))
    except FileNotFoundError:
        raise UnsupportedInputError(
            f"the present folder was removed, so {path!r:.200} is nowhere; change to one that is there"
        ) from None


def _refuse_broken_url(text: str) -> None:
    """Refuse "s3:/bucket/x", which would make a folder "s3:"."""
    if (found := _ONE_SLASH.match(text)) and not os.path.exists(found[1] + ":"):
        scheme, rest = found[1].lower(), text[found.end() :]
        meant = f"/{rest}" if scheme == "file" else f"{scheme}://{rest}"
        raise UnsupportedInputError(
            f"an address that begins with {found[1]}: and without // is no URL, and would be a folder of "
            f"that name here; write {redact_uri(meant)}, or ./{found[1]}:/... for such a folder"
        )


def _refuse_broken_host(text: str) -> None:
    try:
        parts = urlsplit(text)
        if parts.scheme in ("http", "https"):
            _ = parts.port
    except ValueError as error:
        raise UnsupportedInputError(f"{redact_uri(text)} is no URL ({error}); correct it") from None


def _check_parts(text: str) -> None:
    parts = urlsplit(text)
    is_name = parts.username is not None and parts.password is None and not parts.query
    if is_name and parts.scheme in AZURE_SCHEMES:
        account = (parts.hostname or "").partition(".")[0]
        raise UnsupportedInputError(
            f"the URL names its container before an @, where others hold credentials; write "
            f"abfs://{parts.username}{parts.path} and give the account in the storage options: "
            f'{{"account_name": "{account}"}}'
        )
    if is_name and parts.scheme in LOGIN_SCHEMES:
        raise UnsupportedInputError(
            f"the URL {parts.scheme}://…{parts.path} holds a user name, which would be written into logs; "
            'give it in the storage options: {"username": "..."}'
        )
    if parts.username is not None or parts.password is not None or parts.query:
        raise UnsupportedInputError(
            f"the URL {parts.scheme}://…{parts.path} holds credentials or a query, which would be "
            "written into logs; give them through the environment or storage options"
        )
    if not parts.netloc and parts.scheme in (*CLOUD_SCHEMES, "http", "https"):
        missing = "server" if parts.scheme.startswith("http") else "bucket"
        raise UnsupportedInputError(f"the URL {text} names no {missing}; write it after {parts.scheme}://")
    if {".", ".."}.intersection(parts.path.split("/")):
        raise UnsupportedInputError(
            f"the URL {text:.200} has a part '.' or '..', which some servers resolve and others take for a "
            "name; write the address without it"
        )
    if parts.fragment and parts.scheme.startswith("http"):
        raise UnsupportedInputError(
            f"the URL {text} has a fragment, '#{parts.fragment:.80}', which no server is sent; leave it out, "
            "or write %23 where a name has a #"
        )
