"""An option that a command would pass over is refused, with the option that it belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from logitstore.__main__ import main
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_sequence

UNUSED = {
    "view STORE --out OUT --jobs-file jobs.json": "--jobs-file is for a page that is served",
    "view STORE --out OUT --port 8401": "--port is for a page that is served",
    "view STORE --out OUT --port 0": "--port is for a page that is served",
    "view STORE --max-sequences 5": "--max-sequences is for the file that --out writes",
    "view STORE --top-k 5": "--top-k is for the file that --out writes",
    "view STORE --top-k 0": "--top-k is for the file that --out writes",
    "verify STORE --limit 5": "--limit is of the input that --against names",
    "verify STORE --remove-most": "--remove-most is for --repair",
    "verify STORE --cosine 0.9": "--cosine is for --decontaminate EVAL",
    "uncommit STORE --unit unit-0 --most": "--most is for --bad",
    "codebook STORE --copy-from STORE --max-codebooks 3": "--max-codebooks is for training a set",
    "export STORE --to jsonl OUT --file-bytes 1000": "--file-bytes is for several files",
    "export STORE --to npz OUT --out-storage-options O": "--out-storage-options is for several files",
    "import --from npz TABLE OUT --like STORE": "--like is for --from parquet and arrow and jsonl",
    "import --from jsonl TABLE OUT --vocab-size 9": "--vocab-size is for --from distillkit and megatron",
    "import --from jsonl TABLE OUT --top-k 2": "--top-k is for --from npz",
    "import --from jsonl TABLE OUT --teacher mine": "--teacher is for sources that do not say it",
}


@pytest.mark.parametrize("command", UNUSED)
def test_an_option_that_would_do_nothing(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    store.commit_unit("unit-0", 0, [make_sequence("a")], seconds=0, worker="w")
    table = tmp_path / "table.jsonl"
    assert main(["export", store.uri, "--to", "jsonl", str(table)]) == 0
    places = {"STORE": store.uri, "OUT": str(tmp_path / "out"), "TABLE": str(table)}
    assert main([places.get(word, word) for word in command.split()]) == 2
    assert UNUSED[command] in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert len(store.shards()) == 1
