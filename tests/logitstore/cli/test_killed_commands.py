"""Commands that make or change a store, killed at every change of the file system and then repeated."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from logitstore.__main__ import main
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.killing import run_killed
from tests.logitstore.random_labels import commit_units, make_manifest, make_unit

NUM_UNITS = 4
MOST_KILLS = 20
DELETED = b"record-4"


def make_source(uri: Path, model: str = "teacher") -> None:
    store = LogitStore.create(str(uri), make_manifest(model=model))
    commit_units(store, range(NUM_UNITS))


def contents(uri: Path) -> list[tuple[str, int, bytes, bytes]]:
    """What readers get, in its order."""
    return [
        (
            one.record_id, one.sample_index, one.token_ids_T.tobytes(),
            b"".join(getattr(one.rows, name).tobytes() for name in ("logits_NK", "token_ids_NK", "logsumexp_NM")),
        )
        for one in LogitStore.open(str(uri)).iter_sequences()
    ]  # fmt: skip


COMMANDS: dict[str, tuple[list[str], str]] = {
    "merge": (["merge", "{deleted}", "--out", "{out}", "--where", "hash < 0.7"], "out"),
    "mix": (["mix", "{deleted}", "{b}", "--out", "{out}"], "out"),
    "copy": (["copy", "{a}", "{out}"], "out"),
    "publish": (["publish", "{a}", "{out}", "--licence", "mit"], "out"),
    "import": (["import", "--from", "jsonl", "{table}", "{out}"], "out"),
    "import npz": (["import", "--from", "npz", "{npz}", "{out}"], "out"),
    "delete": (["delete", "{a}", "--ids", "{ids}", "--reason", "asked for"], "a"),
    "compact": (["compact", "{a}"], "a"),
    "purge": (["compact", "--purge", "{deleted}"], "deleted"),
    "rebuild": (["rebuild-index", "{a}"], "a"),
    "codebook": (["codebook", "{a}"], "a"),
    "uncommit": (["uncommit", "{a}", "--unit", "unit-0001"], "a"),
    "repair": (["verify", "--repair", "{untidy}"], "untidy"),
}


def world(folder: Path) -> dict[str, Path]:
    """Two stores of the same tokens, one with a deleted record, and files."""
    place = {name: folder / name for name in ("a", "b", "deleted", "untidy", "out", "ids", "table", "npz")}
    make_source(place["a"])
    make_source(place["b"], "other")
    make_source(place["deleted"])
    place["ids"].write_text(f"{DELETED.decode()}\n")
    assert (
        main(["delete", str(place["deleted"]), "--ids", str(place["ids"]), "--reason", "r", "--quiet"]) == 0
    )
    make_source(place["untidy"])
    untidy = LogitStore.open(str(place["untidy"]))
    for unit_index in (0, 2):  # what writers leave that lost their units to others
        unit_id, sequences = make_unit(unit_index)
        untidy.write_attempt(unit_id, unit_index, sequences, [], 0.0, "late")
    place["table"] = folder / "table.jsonl"
    assert main(["export", str(place["a"]), "--to", "jsonl", str(place["table"]), "--quiet"]) == 0
    place["npz"] = folder / "capture.npz"
    assert main(["export", str(place["a"]), "--to", "npz", str(place["npz"]), "--quiet"]) == 0
    return place


def test_the_number_of_changes_does_not_depend_on_which_thread_is_first(tmp_path: Path) -> None:
    """Threads that find a folder missing at the same time all ask for it, as those of `copy` do."""
    root = tmp_path / "root"
    root.mkdir()

    def make_in_threads(_: Sequence[str]) -> int:
        meeting = threading.Barrier(4)

        def make(number: int) -> None:
            meeting.wait()
            (root / "shards").mkdir(exist_ok=True)
            (root / "shards" / f"{number}").write_text("")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(make, range(4)))
        return 0

    status, num_changes, printed = run_killed(make_in_threads, [], root, None)
    assert (status, num_changes) == (0, 5), printed


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_anywhere_ends_as_the_unbroken_one_when_it_is_repeated(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words, made = COMMANDS[name]
    root = tmp_path / "now"
    places = world(tmp_path / "first")
    first = tmp_path / "first"

    def attempt(kill_at: int | None) -> tuple[int | None, int, str]:
        arguments = [
            word.format(**{key: root / path.relative_to(first) for key, path in places.items()})
            for word in words
        ]
        return run_killed(main, arguments, root, kill_at)

    def begin() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(first, root)

    target = root / places[made].relative_to(first)
    begin()
    status, num_changes, printed = attempt(None)
    assert status == 0, printed
    expected = contents(target)
    assert num_changes > 1
    faults = []
    for kill_at in sorted(set(np.linspace(0, num_changes - 1, MOST_KILLS).astype(int).tolist())):
        begin()
        status, _, _ = attempt(kill_at)
        assert status is None
        for source in ("a", "b", "deleted"):
            if source != made and (
                problems := [str(p) for p in verify_store(LogitStore.open(str(root / source))).problems]
            ):
                faults.append(f"{kill_at}: {source}: {problems}")
        status, _, printed = attempt(None)
        if status != 0:
            faults.append(f"{kill_at}: repeated: status {status}: {printed[-300:]}")
            continue
        if contents(target) != expected:
            faults.append(f"{kill_at}: other contents")
        report = verify_store(LogitStore.open(str(target)))
        serious = [str(p) for p in report.problems if p.severity != "garbage"]
        if name == "purge":
            holders = [
                path.name for path in target.rglob("*") if path.is_file() and DELETED in path.read_bytes()
            ]
            serious += [f"deleted records in {holders}"] if holders else []
        if serious:
            faults.append(f"{kill_at}: {serious}")
    assert faults == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl", "npz"])
def test_an_export_killed_anywhere_leaves_no_file_or_a_whole_one(form: str, tmp_path: Path) -> None:
    make_source(tmp_path / "store")
    root = tmp_path / "out"
    root.mkdir()
    file = root / "labels"
    words = ["export", str(tmp_path / "store"), "--to", form, str(file), "--quiet"]
    status, num_changes, printed = run_killed(main, words, root, None)
    assert status == 0, printed
    whole = file.read_bytes()
    assert num_changes > 1
    for kill_at in range(num_changes):
        file.unlink(missing_ok=True)
        assert run_killed(main, words, root, kill_at)[0] is None
        assert not file.exists() or file.read_bytes() == whole
        status, _, printed = run_killed(main, words, root, None)
        assert status == 0, printed
        assert file.read_bytes() == whole
