"""What a job leaves of its teacher in the store: tokenizer, the template in use, licence; once."""

from __future__ import annotations

from pathlib import Path

from labeler.config.input_settings import InputConfig
from labeler.config.teacher_settings import TeacherConfig
from labeler.job.teacher_files import leave_tokenizer
from logitstore.objects.opening import Objects
from logitstore.tokenizer_objects import read_file, stored_tokenizer

INPUT = InputConfig(uri="in.jsonl", kind="prompt")


def kept(objects: Objects) -> dict[str, bytes]:
    found = stored_tokenizer(objects)
    return {} if found is None else {file.name: read_file(objects, file) for file in found.files}


def test_a_folder_leaves_its_tokenizer_and_licence(tmp_path: Path) -> None:
    model, objects = tmp_path / "model", Objects(tmp_path / "store")
    model.mkdir()
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "model.safetensors",
        "modeling.py",
    ):
        (model / name).write_text(name)
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    teacher = TeacherConfig(model=str(model))
    leave_tokenizer(objects, teacher, INPUT)
    files = {name: name.encode() for name in ("tokenizer.json", "tokenizer_config.json", "config.json")}
    assert kept(objects) == files
    found = stored_tokenizer(objects)
    assert found is not None
    assert found.licence == "apache-2.0"
    (model / "tokenizer.json").write_text("another")
    leave_tokenizer(objects, teacher, INPUT)
    assert kept(objects) == files


def test_the_template_in_use_is_the_one_that_is_kept(tmp_path: Path) -> None:
    model, objects = tmp_path / "model", Objects(tmp_path / "store")
    model.mkdir()
    (model / "chat_template.jinja").write_text("the model's")
    (tmp_path / "own.jinja").write_text("the job's")
    chat = INPUT.model_copy(update={"chat_template": str(tmp_path / "own.jinja")})
    leave_tokenizer(objects, TeacherConfig(model=str(model)), chat)
    assert kept(objects) == {"chat_template.jinja": b"the job's"}


def test_a_stand_in_leaves_nothing(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "store")
    leave_tokenizer(objects, TeacherConfig(engine="fake"), INPUT)
    assert kept(objects) == {}
