"""A student whose files do not make it whole is refused in one line, whatever transformers does with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from logitstore.common.config_file import ConfigError
from tests.trainer.students import tiny_student
from trainer.run.settings.student import StudentConfig
from trainer.run.student import load_student


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    tiny_student().save_pretrained(folder)
    return folder


def changed_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def lacks_head(folder: Path) -> None:
    """As a classifier's folder does."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["lm_head.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def is_of_another_size(folder: Path) -> None:
    changed_config(folder, intermediate_size=24)


def has_a_null(folder: Path) -> None:
    changed_config(folder, max_position_embeddings=None)


def has_a_list_of_layers(folder: Path) -> None:
    changed_config(folder, num_hidden_layers=[2])


def is_cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def is_pickled_in_part(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def has_own_code(folder: Path) -> None:
    changed_config(
        folder, model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lacks_head, "lacks 1 of its weights, such as 'lm_head.weight', which would start at random"),
        (is_of_another_size, "weights of other sizes than its config.json says"),
        (is_cut, "no model there"),
        (has_a_null, "its files cannot be read (Validation error for field"),
        (has_a_list_of_layers, "its files cannot be read (Validation error for field"),
        (is_pickled_in_part, "no whole one of weights"),
        (has_own_code, "student.trust_remote_code = true"),
    ],
)
def test_a_student_that_is_not_whole_is_refused(whole: Path, tmp_path: Path, spoil, words: str) -> None:
    folder = tmp_path / "student"
    shutil.copytree(whole, folder)
    spoil(folder)
    with pytest.raises(ConfigError, match=r"student.model = ") as caught:
        load_student(StudentConfig(model=str(folder)), None, vocab_size=None, seed=0)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_whole_student_is_loaded_as_it_was_saved(whole: Path) -> None:
    config = StudentConfig(model=str(whole))
    model = load_student(config, None, vocab_size=None, seed=0)  # type: ignore[arg-type]
    assert torch.equal(model.lm_head.weight, tiny_student().lm_head.weight)
