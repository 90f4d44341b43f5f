"""Weights that no engine could load are refused before one starts, each with its remedy."""

import json
from pathlib import Path

import pytest

from labeler.config.loading import TeacherConfig
from labeler.planning.preflight import context_limits
from labeler.prompting.tokenization import load_tokenizer, model_file
from logitstore.common.config_file import ConfigError
from logitstore.models.folder import check_loadable, check_weights, refuse_other_forms
from trainer.run.settings.student import StudentConfig, check_names

HEADER = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "__metadata__": {}}).encode()
WHOLE = len(HEADER).to_bytes(8, "little") + HEADER + b"1234"
INDEX = "model.safetensors.index.json"
GOOD = (2).to_bytes(8, "little") + b"{}"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no *.safetensors file"),
        ({"pytorch_model.bin": b"x"}, "only *.bin weights"),
        ({"m.safetensors": b"version https://git-lfs.github.com/spec/v1\noid x\n"}, "git lfs pull"),
        ({"m.safetensors": (500).to_bytes(8, "little") + b"{}"}, "fetch the model again"),
        ({"m.safetensors": b"abc"}, "fetch the model again"),
        ({"m.safetensors": WHOLE[:-1]}, f"{len(WHOLE) - 1} bytes of the {len(WHOLE)} that its header names"),
        ({"m.safetensors": (4).to_bytes(8, "little") + b"{not"}, "fetch the model again"),
        ({"m.safetensors": (32).to_bytes(8, "little") + b'{"w": {"data_offsets": [0,"x"]}}'}, "no whole"),
        ({"adapter_config.json": b"{}"}, "merge_and_unload"),
        ({"m.gguf": b"GGUF"}, "GGUF"),
        (
            {
                "a.safetensors": GOOD,
                INDEX: json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}).encode(),
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
        check_weights(tmp_path, "teacher.model")
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


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bert"}, "has an encoder (bert) and is no causal language model"),
        ({"model_type": "t5"}, "has an encoder (t5)"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "trust_remote_code = true"),
    ],
)
def test_a_teacher_that_no_engine_starts_with_is_refused(
    tmp_path: Path, config: dict[str, object], words: str
) -> None:
    """Each engine took a minute to say so, and two were started."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "m.safetensors").write_bytes(WHOLE)
    with pytest.raises(ConfigError) as caught:
        context_limits(TeacherConfig(model=str(tmp_path)))
    assert words in str(caught.value)


def test_a_decoder_of_an_encoders_kind_passes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "is_decoder": true, "vocab_size": 40}')
    (tmp_path / "m.safetensors").write_bytes(WHOLE)
    assert context_limits(TeacherConfig(model=str(tmp_path))).vocab_size == 40


def test_a_folder_without_a_tokenizer_is_not_taken_for_one_without_tokens(tmp_path: Path) -> None:
    """transformers makes an empty tokenizer of it, and every prompt was rejected as empty."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(
        ConfigError, match=r"teacher.model = .* holds no tokenizer.*copy the tokenizer's files"
    ):
        load_tokenizer(TeacherConfig(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"adapter_config.json": b'{"base_model_name_or_path": "/no/such"}'},
            "base_model_name_or_path of the",
        ),
        ({"m.gguf": b"GGUF"}, "GGUF"),
        ({"config.json": b"{}", "m.safetensors": WHOLE[:-1]}, "fetch the model again"),
        ({"config.json": b'{"model_type'}, "': its config.json is no whole JSON object (Unterminated"),
        ({"config.json": b"{}", INDEX: b'{"weight_map": {'}, f"its {INDEX} is no whole JSON object (Exp"),
        ({"config.json": b"{}", INDEX: b"[]"}, f"its {INDEX} is no whole JSON object (it holds '[]')"),
        ({"config.json": b"{}", INDEX: b'{"weight_map": [1]}'}, f"weight_map of its {INDEX} is '[1]'"),
        ({"config.json": b"{}", INDEX: b"\xff\xfe"}, f"its {INDEX} is no whole JSON object ("),
        ({"adapter_config.json": b'{"base_model'}, "its adapter_config.json is no whole JSON object (Unt"),
        ({"adapter_config.json": b'{"base_model_name_or_path": 5}'}, "is '5' and no name of a model"),
        ({"adapter_config.json": b""}, "its adapter_config.json is no whole JSON object (Expecting value"),
    ],
)
def test_a_student_that_cannot_be_loaded_is_refused_before_torch_is(
    tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        check_names(StudentConfig(model=str(tmp_path)))
    assert words in str(caught.value)


def test_a_cut_file_beside_the_teachers_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature"')
    with pytest.raises(ConfigError, match=r"teacher.model = .*: its generation_config.json is no whole JSON"):
        model_file(TeacherConfig(model=str(tmp_path)), "generation_config.json")


def test_a_header_that_is_too_deep_is_no_header(tmp_path: Path) -> None:
    header = b"[" * 100_000
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ConfigError, match="no whole safetensors header"):
        check_weights(tmp_path, "teacher.model")


def test_students_of_other_forms_pass(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    check_loadable(str(tmp_path), "student.model")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base")})
    )
    check_loadable(str(tmp_path), "student.model")
    check_loadable("org/name", "student.model")


def test_whole_weights_pass(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(GOOD)
    check_weights(tmp_path, "teacher.model")
    (tmp_path / "m.safetensors").write_bytes(WHOLE)
    check_weights(tmp_path, "teacher.model")
    refuse_other_forms(tmp_path, "teacher.model")
