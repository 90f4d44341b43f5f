"""Rich's console, with a closed pipe left to the front door of the commands."""

from __future__ import annotations

import rich.console


class Console(rich.console.Console):
    """Rich would end the process with status 1 when the reader of the output has gone."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
