"""A place for a store whose name ends like a file's: an export is asked for, or the name is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from labeler.__main__ import main
from labeler.config.loading import checked_job
from logitstore.common.config_file import ConfigError
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.by_suffix import exported_too, refuse_taken
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest


@pytest.mark.parametrize(
    ("out", "store", "file"),
    [
        ("a/labels.parquet", "a/labels", "a/labels.parquet"),
        ("labels.v1.NPZ", "labels.v1", "labels.v1.NPZ"),
        ("labels.v1", "labels.v1", None),
        (None, None, None),
    ],
)
def test_a_suffix_asks_for_an_export(out: str | None, store: str | None, file: str | None) -> None:
    assert exported_too(out) == (store, None if file is None else Path(file))


def test_an_export_takes_the_place_of_an_export_alone(tmp_path: Path) -> None:
    """`--input p.jsonl --out p.jsonl` replaced the prompts by their labels."""
    store, file, prompts = tmp_path / "labels", tmp_path / "labels.jsonl", tmp_path / "prompts.jsonl"
    refuse_taken(file, str(store), [str(prompts)])
    file.write_text("mine")
    with pytest.raises(UnsupportedInputError, match=r"exists already.* no store lies beside it"):
        refuse_taken(file, str(store), [str(prompts)])
    LogitStore.create(store, make_manifest())
    refuse_taken(file, str(store), [str(prompts)])
    prompts.symlink_to(file)
    with pytest.raises(UnsupportedInputError, match="is a file of the input"):
        refuse_taken(file, str(store), ["s3://bucket/a.jsonl", str(prompts)])


def test_a_link_is_refused_before_anything_is_labeled(tmp_path: Path) -> None:
    (tmp_path / "labels.npz").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsupportedInputError, match="is a link"):
        exported_too(str(tmp_path / "labels.npz"))


@pytest.mark.parametrize("prompts", ["p.jsonl", "./p.jsonl", "*.jsonl"])
def test_the_prompts_are_kept_whatever_the_store_is_called(
    tmp_path: Path, prompts: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"prompt": "Why?"}\n')
    LogitStore.create(tmp_path / "p", make_manifest())
    assert main(["run", "--set", "teacher.engine=fake", "--input", prompts, "--out", "p.jsonl"]) == 2
    assert "p.jsonl is a file of the input, which would be replaced" in capsys.readouterr().err
    assert Path("p.jsonl").read_text() == '{"prompt": "Why?"}\n'


@pytest.mark.parametrize("name", ["a.csv", "labels.parquet", "labels.v1.JSONL"])
def test_a_store_is_no_file(tmp_path: Path, name: str) -> None:
    """It became a folder of that name, which no program reads as what it is called."""
    with pytest.raises(UnsupportedInputError, match="a store is a folder: leave out"):
        LogitStore.create(tmp_path / name, make_manifest())
    job = {"teacher": {"model": "t"}, "input": {"uri": "i", "kind": "prompt"}, "labels": {"mode": "generate"}}
    with pytest.raises(ConfigError, match=r"output.uri.*a store is a folder: leave out"):
        checked_job({**job, "output": {"uri": f"s3://bucket/{name}"}}, None)
    (tmp_path / name).mkdir()  # as an earlier version made it: its job goes on
    checked_job({**job, "output": {"uri": str(tmp_path / name)}}, None)
