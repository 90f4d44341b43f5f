"""A store keeps its tokenizer: its text needs no model's folder, and what is damaged is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from logitstore.decoding.tokenizer_choice import choose_texts
from logitstore.errors import CorruptManifestError, UnsupportedInputError
from logitstore.exchange.merge import merge_stores
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import (
    FILES_NAME,
    files_in,
    licence_in,
    put_tokenizer,
    read_file,
    stored_tokenizer,
    unpacked_tokenizer,
)
from logitstore.tools.verify import verify_store
from tests.trainer.stores import make_store

VOCABULARY = {f"t{index}": index for index in range(64)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    Tokenizer(WordLevel(VOCABULARY, unk_token="t0")).save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogitStore:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_store(tmp_path / "store", (4, 4), fingerprint=tokenizer_fingerprint(VOCABULARY), tokenizer_size=64)
    return LogitStore.open(tmp_path / "store")


def test_text_comes_from_the_store_alone(store: LogitStore, model: Path) -> None:
    texts, note = choose_texts(store, None)
    assert (texts.piece(5), "no tokenizer" in note) == ("⟨5⟩", True)
    put_tokenizer(store.objects, files_in(model))
    shutil.rmtree(model)
    texts, note = choose_texts(LogitStore.open(store.uri), None)
    assert (texts.piece(5).strip(), note) == ("t5", "")
    folder = unpacked_tokenizer(store.objects)
    assert folder is not None
    assert sorted(path.name for path in folder.iterdir()) == ["chat_template.jinja", "tokenizer.json"]
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"


def test_the_first_tokenizer_stays_and_nothing_else_of_the_store_changes(
    store: LogitStore, model: Path
) -> None:
    digest = store.digest
    first = put_tokenizer(store.objects, files_in(model), "apache-2.0")
    (model / "chat_template.jinja").write_text("another")
    assert put_tokenizer(store.objects, files_in(model)) == first
    assert first.licence == "apache-2.0"
    assert LogitStore.open(store.uri).digest == digest
    assert [p.kind for p in verify_store(store).problems if p.severity == "error"] == []


def test_merged_stores_keep_it(store: LogitStore, model: Path, tmp_path: Path) -> None:
    put_tokenizer(store.objects, files_in(model), "mit")
    merged = merge_stores([store], str(tmp_path / "merged"))
    assert stored_tokenizer(merged.objects) == stored_tokenizer(store.objects)


def test_a_damaged_file_is_refused_and_verify_says_so(store: LogitStore, model: Path) -> None:
    found = put_tokenizer(store.objects, files_in(model))
    name = "tokenizer/" + found.files[0].checksum.removeprefix("blake2b-128:")
    for damage in (b"", store.objects.get(name)[:-1], b"x" * 100):
        store.objects.put(name, damage)
        with pytest.raises(CorruptManifestError, match=r"which is chat_template.jinja of the store's"):
            read_file(store.objects, found.files[0])
        assert "bad_tokenizer" in [problem.kind for problem in verify_store(store).problems]


@pytest.mark.parametrize("name", ["../../evil", "model.safetensors", "/etc/passwd", "modeling.py"])
def test_a_name_that_is_no_file_of_a_tokenizer_is_refused(store: LogitStore, model: Path, name: str) -> None:
    put_tokenizer(store.objects, files_in(model))
    value = json.loads(store.objects.get(FILES_NAME))
    value["files"][0]["name"] = name
    store.objects.put(FILES_NAME, json.dumps(value).encode())
    with pytest.raises(CorruptManifestError, match="is no file of a tokenizer"):
        unpacked_tokenizer(store.objects)


def test_the_licence_of_a_folder(tmp_path: Path) -> None:
    assert licence_in(tmp_path) == ""
    (tmp_path / "LICENSE.txt").write_text("\n  Apache License\nVersion 2.0\n")
    assert licence_in(tmp_path) == "Apache License"
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: 'gemma'\n---\n# license: none\n")
    assert licence_in(tmp_path) == "gemma"


def test_a_kept_tokenizer_that_cannot_be_read_here_leaves_ids(store: LogitStore, tmp_path: Path) -> None:
    """As one of a newer version of the package: the store's page could not be opened at all."""
    put_tokenizer(store.objects, {"tokenizer.json": b'{"version": "9.0"}'})
    texts, note = choose_texts(store, None)
    assert (texts.known, texts.piece(5)) == (False, "⟨5⟩")
    assert "is no tokenizer that this machine reads" in note
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(UnsupportedInputError, match="is no tokenizer"):
        choose_texts(store, str(tmp_path))
