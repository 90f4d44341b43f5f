"""Which model a folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labeler.teacher.model_identity import (
    find_model_folder,
    model_fingerprint,
    model_name,
    own_dtype,
)


def _model(folder: Path, weights: bytes = bytes(200_000), **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 10, **config}))
    header = b'{"w":{"dtype":"F32","shape":[50000],"data_offsets":[0,200000]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weights)
    return folder


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one = model_fingerprint(_model(tmp_path / "one", transformers_version="5.1"))
    other = model_fingerprint(_model(tmp_path / "other", transformers_version="5.2"))
    assert one == other
    assert one.startswith("sha256:")


def test_a_fine_tune_of_the_same_shape_has_another_fingerprint(tmp_path: Path) -> None:
    tuned = bytearray(200_000)
    tuned[:] = b"\x01" * 200_000
    prints = {
        model_fingerprint(_model(tmp_path / "base")),
        model_fingerprint(_model(tmp_path / "tuned", bytes(tuned))),
        model_fingerprint(_model(tmp_path / "longer", rope_theta=5e5)),
    }
    assert len(prints) == 3


def test_a_folder_without_safetensors_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="convert the model's weights"):
        model_fingerprint(tmp_path)


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"without config\.json"):
        find_model_folder(str(tmp_path), None)


def test_what_is_neither_a_folder_nor_an_id_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"'/no/such/folder/here' is neither"):
        find_model_folder("/no/such/folder/here", None)


def test_a_folders_name_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    assert model_name(str(_model(tmp_path / "teacher"))) == "teacher"
    assert model_name("some/hub-id") == "some/hub-id"


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"dtype": "float32"}, "float32"), ({"torch_dtype": "torch.bfloat16"}, "bfloat16"), ({}, "auto")],
)
def test_the_models_own_dtype(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    assert own_dtype(_model(tmp_path / "m", **config)) == expected


def test_only_the_files_that_vllm_loads_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    wanted: dict[str, list[str]] = {}

    def fetch(model: str, *, revision: str | None, **patterns: list[str]) -> str:
        wanted.update(patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert find_model_folder("org/model", None) == tmp_path
    there = [
        "config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "chat_template.jinja", "modeling_own.py", "consolidated.00.safetensors", "original/consolidated.safetensors",
        "onnx/model.json", "fp16/model.safetensors", "pytorch_model.bin", "README.md",
    ]  # fmt: skip
    allow, ignore = wanted["allow_patterns"], wanted["ignore_patterns"]
    assert list(filter_repo_objects(there, allow_patterns=allow, ignore_patterns=ignore)) == there[:6]
