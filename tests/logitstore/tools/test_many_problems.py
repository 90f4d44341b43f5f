"""What `verify` prints stays short, however many records are wrong; the counts are true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from logitstore.__main__ import main
from logitstore.cli.looking import MAX_SHOWN
from logitstore.store import LogitStore
from logitstore.tools.findings import MAX_LISTED
from tests.logitstore.random_labels import make_manifest, make_sequence


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    sequences = [make_sequence(f"mine-{number}", length=3) for number in range(3)]
    store.commit_unit("unit-0", 0, sequences, seconds=0, worker="w")
    return store


def test_another_input_is_a_few_lines_and_the_count(
    store: LogitStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    num_records = MAX_LISTED + 234
    lines = [json.dumps({"id": f"other-{number}", "text": "x"}) for number in range(num_records)]
    other.write_text("\n".join(lines))
    assert main(["verify", store.uri, "--against", str(other)]) == 1
    said = capfd.readouterr().out.splitlines()
    assert sum("[not_labeled]" in line for line in said) == MAX_SHOWN + 1
    more = f"error: {num_records - MAX_SHOWN:,} more of the kind [not_labeled]; --json lists the first 1,000"
    assert more in said
    assert any("3 labeled records are not in the input; none is: the store was made from" in x for x in said)
    assert said[-1].startswith(f"{num_records + 1:,} errors: ")
    assert main(["verify", store.uri, "--against", str(other), "--json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert found["num_errors"] == num_records + 1
    assert len(found["problems"]) == MAX_LISTED + 1
    assert found["num_unlisted"] == {"not_labeled": 234}


def test_few_problems_are_all_shown(
    store: LogitStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(json.dumps({"id": f"other-{n}", "text": "x"}) for n in range(MAX_SHOWN)))
    assert main(["verify", store.uri, "--against", str(other)]) == 1
    said = capfd.readouterr().out
    assert said.count("[not_labeled]") == MAX_SHOWN
    assert "more of the kind" not in said
