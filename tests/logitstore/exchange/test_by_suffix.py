"""A place for a store whose name ends like a file's: an export is asked for, or the name is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from labeler.config.loading import checked_job
from logitstore.common.config_file import ConfigError
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.by_suffix import exported_too
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
