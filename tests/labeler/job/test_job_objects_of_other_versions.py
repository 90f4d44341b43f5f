"""Job objects of other versions are read; malformed ones are told in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import labeler.__main__ as labeler_command
from labeler.job.driver_lease import Holder, acquire, present_holder
from labeler.planning.plan import Plan
from labeler.planning.plan_objects import load_object
from logitstore.errors import CorruptManifestError
from logitstore.job_objects import LEASE_NAME, PLAN_INPUT_NAME
from logitstore.objects.opening import Objects
from tests.golden.test_fb88290 import GOLDEN

ODD = [b"{}", b"null", b"[]", b"[" * 100_000, b"\xff", b'{"owner": 1}', b""]


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
def test_a_malformed_lease_names_the_remedy(tmp_path: Path, content: bytes) -> None:
    objects = Objects(str(tmp_path))
    objects.put(LEASE_NAME, content)
    with pytest.raises(CorruptManifestError, match="delete it"):
        present_holder(objects)


def test_a_lease_of_a_newer_version_is_understood(tmp_path: Path) -> None:
    objects = Objects(str(tmp_path))
    lease = json.loads((GOLDEN / "store/driver.json").read_text()) | {"of_a_newer_version": [1]}
    objects.put(LEASE_NAME, json.dumps(lease).encode())
    assert present_holder(objects) is None
    acquire(objects, 30.0, lambda _: None).release()
    del lease["released"]
    objects.put(LEASE_NAME, json.dumps(lease).encode())
    assert isinstance(present_holder(objects), Holder)


@pytest.mark.parametrize("name", [PLAN_INPUT_NAME, "plan/segments/000000.json"])
@pytest.mark.parametrize("content", ODD[1:], ids=range(1, len(ODD)))
def test_a_malformed_plan_names_the_object(tmp_path: Path, name: str, content: bytes) -> None:
    objects = Objects(str(tmp_path))
    objects.put(name, content)
    with pytest.raises(CorruptManifestError, match=rf"{name}.* start again"):
        load_object(objects, name)


def test_totals_of_other_versions_are_read(tmp_path: Path) -> None:
    objects = Objects(str(tmp_path))
    record = json.loads((GOLDEN / "store/plan/input.json").read_text())
    record["totals"]["of_a_newer_version"] = {}
    objects.put(PLAN_INPUT_NAME, json.dumps(record).encode())
    totals = Plan(objects).totals()
    assert totals is not None
    assert (totals.num_planned, totals.num_changed) == (24, 0)


@pytest.mark.parametrize("lines", ['{"text": 3}\n', ""])
def test_a_run_that_labels_nothing_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str
) -> None:
    (tmp_path / "in.jsonl").write_text(lines)
    settings = ["teacher.engine=fake", "input.kind=text", f"input.uri='{tmp_path}/in.jsonl'"]
    settings.append(f"output.uri='{tmp_path}/store'")
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert labeler_command.main(["run", *arguments]) == 2
    told = capsys.readouterr()
    assert "error: nothing to label" in told.err
    assert "labeled before" not in told.out + told.err
    assert "0 tokens/s" not in told.out + told.err
