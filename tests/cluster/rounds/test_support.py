"""The mass outside K, of stores of several widths and of ledgers of several versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.rounds.ledger import Ledger
from cluster.rounds.running import ReportRow, report_rows, support_rows
from cluster.rounds.support import outside_by_k
from tests.trainer.stores import label_spec, make_store


def test_a_k_is_averaged_over_the_rows_that_have_so_many_entries(tmp_path: Path) -> None:
    wide = make_store(tmp_path / "wide", (3,), spec=replace(label_spec(), top_k=8))
    narrow = make_store(tmp_path / "narrow", (9,), spec=replace(label_spec(), top_k=2), seed=1)
    both = outside_by_k([wide.uri, narrow.uri])
    of_wide, of_narrow = outside_by_k([wide.uri]), outside_by_k([narrow.uri])
    assert (list(both), list(of_narrow)) == (["1", "2", "4", "8"], ["1", "2"])
    assert {k: both[k] for k in ("4", "8")} == {k: of_wide[k] for k in ("4", "8")}
    rows = [int(store.shards().column("num_rows").sum()) for store in (wide, narrow)]
    for k in of_narrow:
        mean = (rows[0] * of_wide[k] + rows[1] * of_narrow[k]) / sum(rows)
        assert both[k] == pytest.approx(mean)
    assert list(both.values()) == sorted(both.values(), reverse=True), "more entries never leave more out"


def test_a_ledger_from_before_the_mass_was_measured_is_reported_without_it() -> None:
    measured = {"own": {"kl": 1.0, "teacher_mass": 0.75}, "teacher": {"kl": 2.0}}
    ledger = Ledger({}, {"1/measure": measured})
    assert support_rows(ledger) == []
    assert report_rows(ledger) == [ReportRow("round 1", 1.0, 2.0, None, None, 0.25)]
    ledger.steps["2/measure"] = {**measured, "outside": {"own": {"1": 0.5}, "teacher": {"1": 0.25}}}
    assert support_rows(ledger) == [(1, 0.5, 0.25)]
