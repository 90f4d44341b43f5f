"""Configuration files as editors save them, and files that are none."""

import pytest

from logitstore.common.config_file import ConfigError, apply_override, read_document


@pytest.mark.parametrize(("name", "text"), [("run.toml", 'a = "é"\r\n'), ("run.json", '{"a": "é"}')])
def test_the_mark_that_editors_of_windows_put_first_is_no_syntax_error(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8-sig"))
    assert read_document(str(path), what="training") == {"a": "é"}


def test_other_encodings_and_folders_are_named_with_the_remedy(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes('a = "é"'.encode("utf-16"))
    with pytest.raises(
        ConfigError, match=r"byte 0 is 0xff, which is not UTF-8; correct the file, or save it as UTF-8 text"
    ):
        read_document(str(path), what="training")
    with pytest.raises(ConfigError, match=r"it is a folder; give the TOML file"):
        read_document(str(tmp_path), what="training")


def test_a_file_that_is_not_there_gets_a_remedy_that_every_command_has(tmp_path):
    """Not `--set`, which `cluster rounds` lacks and which stands in for no file of a recipe or a cluster."""
    with pytest.raises(ConfigError, match=r"no cluster file at '.*none\.toml': correct the path") as refused:
        read_document(str(tmp_path / "none.toml"), what="cluster")
    assert "--set" not in str(refused.value)


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 5000])
def test_what_no_toml_can_hold_is_a_text_in_an_override(value):
    """Thousands of digits, or of brackets, ended the command in words of Python's, or as a defect."""
    document = {}
    apply_override(document, f"labels.top_k={value}")
    assert document == {"labels": {"top_k": value}}
