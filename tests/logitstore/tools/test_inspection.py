"""What `inspect` says of the teacher's distribution, against labels that hold all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from logitstore.store import LogitStore
from logitstore.tools.inspection import Inspection, inspect_store
from tests.logitstore.random_labels import VOCAB_SIZE, make_manifest, make_unit


def inspected(folder: Path, top_k: int) -> Inspection:
    store = LogitStore.create(folder, make_manifest(top_k))
    unit_id, sequences = make_unit(0, 20, top_k=top_k)
    store.commit_unit(unit_id, 0, sequences, seconds=1.0, worker="w")
    return inspect_store(store)


def test_the_entropy_is_that_of_the_whole_vocabulary(tmp_path: Path) -> None:
    """The tail has an entropy of its own: as one outcome it would be 0.5 nats at K=32 and 2.5 at K=8 too low."""
    whole = inspected(tmp_path / "whole", VOCAB_SIZE)
    assert whole.tail_mass["1"].mean == 0
    assert whole.entropy.mean > 1
    for top_k, error in ((8, 0.3), (32, 0.1)):
        cut = inspected(tmp_path / str(top_k), top_k)
        assert cut.tail_mass["1"].mean > 0.1
        assert cut.entropy.mean == pytest.approx(whole.entropy.mean, abs=error)
