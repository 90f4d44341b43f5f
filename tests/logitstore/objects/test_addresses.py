"""Addresses that are wrong, or need a package or a setting, are refused in words."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem
from fsspec.registry import _registry

from logitstore.__main__ import main
from logitstore.errors import StoreNotFoundError, UnsupportedInputError
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore


@pytest.mark.parametrize(
    ("url", "what"), [("s3://", "bucket"), ("s3:///x", "bucket"), ("http:///x", "server")]
)
def test_a_url_without_a_host_is_refused_in_words(url: str, what: str) -> None:
    with pytest.raises(UnsupportedInputError, match=f"names no {what}; write it after"):
        LogitStore.open(url)


def test_a_fragment_is_refused_in_words() -> None:
    with pytest.raises(UnsupportedInputError, match="has a fragment, '#part', which no server is sent"):
        LogitStore.open("https://example.org/labels#part")


@pytest.mark.parametrize(
    ("uri", "package", "says"),
    [
        ("gs://bucket/store", "gcsfs", "pip install gcsfs"),
        ("az://container/store", "adlfs", "pip install adlfs"),
        ("hf://datasets/a/b", "huggingface_hub", "pip install huggingface_hub"),
        ("s3://bucket/store", "s3fs", "pip install s3fs"),
    ],
)
def test_a_missing_package_is_named(uri: str, package: str, says: str, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(_registry, uri.partition(":")[0], raising=False)
    assert main(["inspect", uri]) == 2  # as any command that lacks a package: nothing was asked of a server
    said = capsys.readouterr().err
    assert says in said
    assert "retries" not in said


@pytest.mark.parametrize(
    ("uri", "says"), [("r2://b/store", "s3://b/store"), ("htps://h/store", "did you mean 'https'")]
)
def test_an_unknown_scheme_says_what_to_write(uri: str, says: str) -> None:
    with pytest.raises(UnsupportedInputError, match=says), contextlib.suppress(StoreNotFoundError):
        LogitStore.open(uri)


@pytest.mark.parametrize("uri", ["foo://x", "s3://key:word@bucket/store"])
@pytest.mark.parametrize("command", [("inspect",), ("verify",), ("cat",), ("copy", "OUT")])
def test_an_address_that_is_none_is_wrong_usage(
    uri: str, command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [str(tmp_path / "out") for _ in command[1:]]
    assert main([command[0], uri, *more]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


class _NeedsAServer(AbstractFileSystem):
    def __init__(self, base_url: str) -> None:
        super().__init__(base_url=base_url)


def test_options_that_a_file_system_needs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_registry, "webdav", _NeedsAServer)
    with pytest.raises(UnsupportedInputError, match=r"'base_url'.*--storage-options FILE with .\"base_url"):
        Objects("webdav://store")
    with pytest.raises(UnsupportedInputError, match="unexpected keyword argument 'base_uri'"):
        Objects("webdav://store", {"base_uri": "https://h"})
