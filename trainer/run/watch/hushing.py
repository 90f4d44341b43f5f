"""What libraries print that says nothing about a run; called before they are imported."""

from __future__ import annotations

import logging
import sys


def hush_libraries(*, bars: bool) -> None:
    """Leave out bitsandbytes' line about a kernel for CPUs and, without `bars` or where no terminal draws
    them in place, transformers' own bars."""
    # Importing peft loads bitsandbytes, held in 4 bits or not; it then does without the kernel.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    enable_progress_bar() if bars and sys.stderr.isatty() else disable_progress_bar()
