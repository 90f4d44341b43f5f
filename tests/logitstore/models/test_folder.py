"""Weights that no engine could load are refused before one starts, each with its remedy."""

import json
from pathlib import Path

import pytest

from labeler.config.loading import TeacherConfig
from labeler.planning.preflight import context_limits
from logitstore.common.config_file import ConfigError
from logitstore.models.folder import check_weights, refuse_other_forms

GOOD = (2).to_bytes(8, "little") + b"{}"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no *.safetensors file"),
        ({"pytorch_model.bin": b"x"}, "only *.bin weights"),
        ({"m.safetensors": b"version https://git-lfs.github.com/spec/v1\noid x\n"}, "git lfs pull"),
        ({"m.safetensors": (500).to_bytes(8, "little") + b"{}"}, "fetch the model again"),
        ({"m.safetensors": b"abc"}, "fetch the model again"),
        ({"adapter_config.json": b"{}"}, "merge_and_unload"),
        ({"m.gguf": b"GGUF"}, "GGUF"),
        (
            {
                "a.safetensors": GOOD,
                "model.safetensors.index.json": json.dumps(
                    {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
                ).encode(),
            },
            "lacks 'b.safetensors'",
        ),
    ],
)
def test_a_folder_without_loadable_weights_is_refused(
    tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        check_weights(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"model_type": "of-next-year"}', "upgrade transformers and vLLM"),
        ("{not json", "correct the file"),
    ],
)
def test_a_folder_whose_config_cannot_be_read_is_said_to_be_there(
    tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "m.safetensors").write_bytes(GOOD)
    with pytest.raises(ConfigError) as caught:
        context_limits(TeacherConfig(model=str(tmp_path)))
    assert str(caught.value).startswith(f"teacher.model = '{tmp_path}': its config.json cannot be read (")
    assert words in str(caught.value)


def test_a_gguf_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"m\.gguf' is a model in GGUF.*or convert it"):
        context_limits(TeacherConfig(model=str(tmp_path / "m.gguf")))


def test_whole_weights_pass(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(GOOD)
    check_weights(tmp_path)
    refuse_other_forms(tmp_path)
