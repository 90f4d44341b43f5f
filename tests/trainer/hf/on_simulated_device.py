"""What `test_simulated_device.py` runs in a process of its own: a run of the command, on one device.

python -m tests.trainer.hf.on_simulated_device FOLDER cpu|simulated SETTING...
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import torch

from tests.trainer.run.conftest import settings, write_config
from trainer.__main__ import main


def run(folder: Path, device: str, overrides: list[str]) -> None:
    """Train in `folder`; the waits for the device, by the lines of ours that ask, are in its `waits.json`."""
    torch.set_num_threads(1)
    config = write_config(folder)
    with contextlib.ExitStack() as stack:
        if device == "simulated":
            from tests.trainer import simulated_device

            stack.enter_context(simulated_device.on_device())
        status = main(["train", str(config), "--quiet", *settings(*overrides)])
    if status != 0:
        raise SystemExit(status)
    if device == "simulated":
        (folder / "waits.json").write_text(json.dumps(simulated_device.waits))


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
