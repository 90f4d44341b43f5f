"""`penumbra train` in one of several processes: `python -m tests.trainer.hf.large.command WAY ARGUMENTS`.

WAY is "ddp", "fsdp" or "deepspeed", of which each needs something else to run without a GPU.
"""

from __future__ import annotations

import os
import sys

from trainer.__main__ import main


def prepare(way: str) -> None:
    if way == "fsdp":
        from tests.trainer.hf.large.fsdp import shard_without_gpus

        shard_without_gpus()
    if way == "deepspeed":
        from tests.trainer.hf.large.zero import without_compiling

        without_compiling()


if __name__ == "__main__":
    prepare(sys.argv[1])
    status = main(sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # DeepSpeed's threads would otherwise wait for each other
