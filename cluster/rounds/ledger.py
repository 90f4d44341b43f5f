"""What is done of the rounds: one file, replaced whole after every step, and one writer at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import JobRefusedError
from logitstore.common.whole_file import write_whole
from logitstore.objects.system import lock_file

LEDGER_NAME = "rounds.json"
LOCK_NAME = "rounds.lock"


@dataclass
class Ledger:
    """Steps done, by their name, with what each found."""

    settings: dict[str, Any]
    """What the rounds were begun with; other settings are refused."""
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name, "1/answer", in the order in which they were done."""
    ended: str = ""
    """Why the rounds ended; "" while they go on."""


def read_ledger(folder: Path) -> Ledger | None:
    """Raises JobRefusedError for a file that is no ledger."""
    try:
        value = json.loads((folder / LEDGER_NAME).read_text(encoding="utf-8"))
        return Ledger(value["settings"], value["steps"], value["ended"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise JobRefusedError(
            f"{folder / LEDGER_NAME} is no ledger of rounds ({error}); restore it, or choose another "
            "rounds.folder"
        ) from None


def write_ledger(folder: Path, ledger: Ledger) -> None:
    write_whole(folder / LEDGER_NAME, json.dumps(asdict(ledger), indent=1))


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Raises JobRefusedError while another process works at these rounds."""
    with (folder / LOCK_NAME).open("w") as file:
        try:
            lock_file(file.fileno(), wait=False)
        except BlockingIOError:
            raise JobRefusedError(
                f"another process works at the rounds in {folder}; wait for it, or choose another "
                "rounds.folder"
            ) from None
        yield
