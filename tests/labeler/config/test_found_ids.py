"""Ids of the records' own that nobody named: taken where they name each record, and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labeler.__main__ import main
from labeler.config.found import load_found_job
from labeler.config.loading import JobConfig, identity
from labeler.planning.plan import Plan
from labeler.planning.preflight import prepare
from labeler.planning.provenance import provenance_of

ALPACA = {"instruction": "a", "input": "", "output": "b"}
CHAT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}


def found(folder: Path, records: list[dict[str, Any]], *settings: str) -> tuple[JobConfig, str]:
    (folder / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    given = ["teacher.engine=fake", f"input.uri='{folder}/in.jsonl'", f"output.uri='{folder}/store'"]
    job, lines = load_found_job(None, [*given, "input.kind=auto", *settings], {})
    return job, lines[0]


@pytest.mark.parametrize(
    "record", [{"prompt": "a"}, {"text": "a"}, {"input_ids": [1]}, ALPACA, CHAT], ids=str
)
@pytest.mark.parametrize("ids", [["a", "b"], [7, 8]], ids=["texts", "numbers"])
def test_a_field_of_ids_is_taken_and_said(record: dict[str, Any], ids: list[Any], tmp_path: Path) -> None:
    job, line = found(tmp_path, [{"id": name, **record} for name in ids])
    assert job.input.id == "id"
    assert ', input.id = "id" (' in line


def test_the_dry_run_shows_the_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found(tmp_path, [{"id": None, **CHAT}, *({"id": name, **CHAT} for name in ("chat-7", "chat-8"))])
    flags = ["--set", "teacher.engine=fake", "--set", "input.id=id", "--set", "input.kind=auto"]
    flags += ["--set", "labels.turns=each", "--out", f"{tmp_path}/store"]
    assert main(["run", "--input", f"{tmp_path}/in.jsonl", *flags, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "in.jsonl:2 part 1 (chat-7#turn-1): " in out
    assert "in.jsonl:1 part" not in out, "a record without an id is none that is labeled"


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([*range(30), 29], "1 of 31 records repeat one, such as '29'"),
        (["1", 1], "1 of 2 records repeat one, such as '1'"),
        ([1, 2, None], "1 of 3 records have no id there"),
        ([1.5, True, "", ["a"]], "4 of 4 records have no id there"),
        ([1, 1, ""], "1 of 3 records have no id there and 1 of 3 records repeat one, such as '1'"),
    ],
)
def test_ids_that_do_not_name_each_record_leave_it_to_the_content(
    ids: list[Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"id": name, "prompt": f"text {number}"} for number, name in enumerate(ids)]
    job, line = found(tmp_path, records)
    assert job.input.id is None
    assert f"'id' is not taken for an id: {words}; so ids are made of the content" in line
    flags = ["--set", "teacher.engine=fake", "--set", "input.kind=auto", "--out", f"{tmp_path}/store"]
    assert main(["run", "--input", f"{tmp_path}/in.jsonl", *flags, "--dry-run"]) == 0
    assert f"{len(ids)} records read: {len(ids)} in 1 units" in capsys.readouterr().out


def test_the_ids_are_those_of_the_records_that_are_taken(tmp_path: Path) -> None:
    records = [{"id": name, "prompt": "a"} for name in (1, 2, 2)]
    assert found(tmp_path, records, "input.limit=2")[0].input.id == "id"
    assert found(tmp_path, records, "input.limit=3")[0].input.id is None
    batch = [{**record, "custom_id": f"c{number}"} for number, record in enumerate(records)]
    assert found(tmp_path, batch)[0].input.id == "custom_id"
    assert found(tmp_path, [{**record, "custom_id": "c"} for record in records[:2]])[0].input.id == "id"


@pytest.mark.parametrize("told", ["input.id=''", "input.id=null", "input.id="])
def test_none_can_be_told(told: str, tmp_path: Path) -> None:
    job, line = found(tmp_path, [{"id": 1, "prompt": "a"}], told)
    assert job.input.id is None
    assert "input.id" not in line
    assert identity(job)["input.id"] is None


@pytest.mark.parametrize("begun", [None, "id", "number"])
def test_a_store_that_was_begun_keeps_its_ids(begun: str | None, tmp_path: Path) -> None:
    records = [{"id": name, "number": name, "prompt": f"text {name}"} for name in range(3)]
    earlier, _ = found(tmp_path, records, f"input.id={begun or 'null'}")
    prepared = prepare(earlier)
    made_from = provenance_of(earlier, prepared.tokenizer)
    Plan(prepared.objects).claim(identity(earlier), made_from, has_manifest=False, num_labeled=0)
    again, line = found(tmp_path, records)
    assert again.input.id == begun
    assert "as in the store" in line
    changes = Plan(prepared.objects).claim(identity(again), made_from, has_manifest=True, num_labeled=1)
    assert changes == ""


@pytest.mark.parametrize("written", ["~/in.jsonl", "in.jsonl", "known"])
def test_a_store_keeps_its_ids_however_the_place_of_its_input_is_written(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings = (f"input.uri='{written}'",)
    if written == "known":
        settings = ("input.known_as='/elsewhere/in.jsonl'",)
    records = [{"id": name, "number": name, "prompt": f"text {name}"} for name in range(3)]
    earlier, _ = found(tmp_path, records, "input.id=number", *settings)
    prepared = prepare(earlier)
    made_from = provenance_of(earlier, prepared.tokenizer)
    Plan(prepared.objects).claim(identity(earlier), made_from, has_manifest=False, num_labeled=0)
    again, _ = found(tmp_path, records, *settings)
    assert again.input.id == "number"


def test_an_id_given_by_a_store_of_another_input_is_not_kept(tmp_path: Path) -> None:
    earlier, _ = found(tmp_path, [{"id": 1, "number": 1, "prompt": "a"}], "input.id=number")
    prepared = prepare(earlier)
    made_from = provenance_of(earlier, prepared.tokenizer)
    Plan(prepared.objects).claim(identity(earlier), made_from, has_manifest=False, num_labeled=0)
    (tmp_path / "other").mkdir()
    job, _ = found(tmp_path / "other", [{"id": 1, "prompt": "a"}], f"output.uri='{tmp_path}/store'")
    assert job.input.id == "id"
