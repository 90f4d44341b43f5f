"""What may stand in a teacher's config and tokenizer files is refused in words, whatever it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labeler.config.loading import TeacherConfig
from labeler.planning.preflight import context_limits
from labeler.prompting.tokenization import load_tokenizer
from logitstore.common.config_file import ConfigError
from tests.labeler.teacher.openai.chat_stand_in import write_student


def teacher_with(folder: Path, name: str, changes: dict[str, Any]) -> TeacherConfig:
    """A model without weights, as a server's teacher has one, with other values in one of its files."""
    write_student(folder)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **changes}))
    api = {"base_url": "http://h/v1"}
    return TeacherConfig.model_validate({"engine": "openai", "model": str(folder), "api": api})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": "many"}, "cannot be read .*'vocab_size'.*'many'"),
        ({"vocab_size": 0}, "vocab_size = 0, and a language model has a token at least"),
        ({"max_position_embeddings": None}, "cannot be read .*'max_position_embeddings'.*None"),
        ({"hidden_size": -1}, "cannot be read .*-1"),
        ({"model_type": ["llama"]}, "cannot be read"),
        ({"quantization_config": "gptq"}, "cannot be read"),
    ],
)
def test_a_config_that_the_library_refuses_is_told(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    teacher = teacher_with(tmp_path, "config.json", changes)
    with pytest.raises(ConfigError, match=f"its config.json (has )?{words}"):
        context_limits(teacher)


@pytest.mark.parametrize(
    "changes", [{"eos_token": 5}, {"model_max_length": "long"}, {"added_tokens_decoder": {"x": 1}}]
)
def test_a_tokenizer_that_the_library_refuses_is_told(tmp_path: Path, changes: dict[str, Any]) -> None:
    teacher = teacher_with(tmp_path, "tokenizer_config.json", changes)
    with pytest.raises(ConfigError, match=r"its tokenizer cannot be .*; (correct its files|give the folder)"):
        load_tokenizer(teacher)
