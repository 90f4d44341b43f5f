"""Weights that no engine could load are refused before one starts, each with its remedy."""

import json
from pathlib import Path

import pytest

from labeler.planning.model_folder import check_weights, refuse_other_forms
from logitstore.common.config_file import ConfigError

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


def test_whole_weights_pass(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(GOOD)
    check_weights(tmp_path)
    refuse_other_forms(tmp_path)
