"""Addresses of stores: a folder of this machine, or a URL."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from logitstore.errors import UnsupportedInputError


def normalise_uri(uri: str | os.PathLike[str]) -> str:
    """An absolute local path, or the URL without a trailing slash. Refuses URLs with credentials."""
    text = os.fspath(uri)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if not text.strip():
        raise UnsupportedInputError(
            "the address of a store is empty, as an unset variable of the shell is; give a folder or a URL, "
            "the present folder as '.'"
        )
    if is_local_uri(text):
        return os.path.abspath(os.path.expanduser(text))
    parts = urlsplit(text)
    if parts.username is not None or parts.password is not None or parts.query:
        raise UnsupportedInputError(
            f"the URL {parts.scheme}://…{parts.path} holds credentials or a query, which would be "
            "written into logs; give them through the environment or storage options"
        )
    if not parts.netloc and parts.scheme in ("s3", "s3a", "http", "https"):
        missing = "bucket" if parts.scheme.startswith("s3") else "server"
        raise UnsupportedInputError(f"the URL {text} names no {missing}; write it after {parts.scheme}://")
    if parts.fragment and parts.scheme.startswith("http"):
        raise UnsupportedInputError(
            f"the URL {text} has a fragment, '#{parts.fragment:.80}', which no server is sent; leave it out, "
            "or write %23 where a name has a #"
        )
    return text.rstrip("/")


def is_local_uri(uri: str) -> bool:
    return "://" not in uri
