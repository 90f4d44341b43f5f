"""Rounds whose labeling and training run in this process, and commands that die in the middle of them."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trainer.__main__
from cluster.rounds.ledger import Ledger
from labeler.config.loading import load_job
from labeler.planning.plan import Plan
from labeler.records import Lease
from logitstore.store import LogitStore
from tests.labeler.jobs import label_and_commit, planned

ROOT = Path(__file__).parents[3]
BYTES = ROOT / "configs" / "byte-tokenizer"
Command = Callable[[Sequence[str]], str]


def label(job_file: str) -> None:
    """A whole labeling job in this process: planned, labeled and committed by the labeler's own parts."""
    worker, units, setup = planned(load_job(job_file, [], {}))
    Plan(setup.prepared.objects).finish_pass(setup.prepared.fingerprint, setup.totals, b"")
    for number, unit in enumerate(units):
        label_and_commit(worker, Lease(number, unit, "worker-0.0"))
    worker.close()


def here(arguments: Sequence[str]) -> str:
    """The command in this process, as `run_command` has it in one of its own."""
    package, _, *rest = arguments
    if package == "labeler":
        label(rest[0])
        return ""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert trainer.__main__.main([arguments[1], *rest]) == 0
    return told.getvalue()


def rounds_file(begun: Path, folder: Path, *more: str, count: int = 2, stop: str = "") -> str:
    path = folder / "rounds.toml"
    lines = [
        f'folder = "{folder}/rounds"', f'job = "{begun}/job.toml"', f'train = "{begun}/train.toml"',
        f"count = {count}", *more,
    ]  # fmt: skip
    path.write_text("[rounds]\n" + "\n".join(lines) + f"\n[stop]\n{stop}\n")
    return str(path)


def outcome(folder: Path, ledger: Ledger) -> dict[str, Any]:
    """What must be the same however often it was interrupted."""
    stores = {
        f"{number}/{name}": [
            (entry.unit_id, entry.checksum)
            for entry in LogitStore.open(folder / "rounds" / f"round-{number}" / name).shards()
        ]
        for number in (1, 2)
        for name in ("answers", "scores")
    }
    found = {  # a digest holds the folder's name
        name: {key: value for key, value in step.items() if key != "digest"}
        for name, step in ledger.steps.items()
        if not name.endswith(("measure", "last", "train"))
    }
    return {"steps": list(ledger.steps), "stores": stores, "found": found, "ended": ledger.ended}


class DyingCommand:
    """Kills its process once before every command of the first round, and once after every command of both
    rounds that writes something, when it is done and nobody knows it yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, arguments: Sequence[str]) -> str:
        if "--dry-run" in arguments:
            return here(arguments)
        if "round-1/" in arguments[2]:
            self._die_once("before", *arguments)
        told = here(arguments)
        if arguments[1] == "run":
            self._die_once("after", *arguments)
        return told

    def deaths(self) -> int:
        return len(list(self.folder.iterdir()))

    def _die_once(self, *moment: str) -> None:
        mark = self.folder / "-".join(moment).replace("/", "_")[-200:]
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def killed(run: Callable[[], object]) -> bool:
    """Whether `run`, in a process of its own that has loaded all that this one has, was killed."""
    process = os.fork()
    if not process:
        import torch

        torch.set_num_threads(1)  # the others of a pool are not there after a fork
        status = 1
        try:
            run()
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
