"""Units whose shards were lost or damaged are un-committed and labeled again by the same job."""

import os
from pathlib import Path

import pytest

from logitstore.__main__ import main as logitstore_main
from logitstore.store import LogitStore
from tests.labeler.jobs import assert_exactly_once, overrides_for, run_job, write_records

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_bad_units_are_labeled_again_and_a_lost_index_is_refused(tmp_path: Path, capsys) -> None:
    write_records(tmp_path / "in.jsonl", 40)
    overrides = overrides_for(tmp_path, "workers.replicas=1")
    assert run_job(overrides).returncode == 0
    store = LogitStore.open(tmp_path / "store")
    names = [entry.name for entry in store.shards()]
    (tmp_path / "store" / names[0]).unlink()
    os.truncate(tmp_path / "store" / names[2], 100)

    assert logitstore_main(["verify", store.uri]) == 1
    assert logitstore_main(["uncommit", store.uri, "--bad"]) == 0
    assert "2 units un-committed" in capsys.readouterr().out
    again = run_job(overrides)
    assert again.returncode == 0, again.stderr
    assert "3 done" in again.stderr
    assert_exactly_once(tmp_path, 40)
    after = [entry.name for entry in LogitStore.open(store.uri).shards()]
    assert [before == now for before, now in zip(names, after, strict=True)] == [
        False,
        True,
        False,
        True,
        True,
    ]

    (tmp_path / "store" / "index.json").unlink()
    for flags in ([], ["--dry-run"]):
        refused = run_job(overrides, *flags)
        assert refused.returncode == 2
        assert "labels lie here that are not seen" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert logitstore_main(["rebuild-index", store.uri]) == 0
    assert_exactly_once(tmp_path, 40)
