"""What a person sees of a job: a live picture in a terminal, a plain line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from logitstore.common.console import Console
from logitstore.common.terminal import printable
from logitstore.job_objects import JobStatus, WorkerView

PLAIN_EVERY_SEC = 10.0
BAR_WIDTH = 40


class ProgressView:
    """Shows statuses as they come. `quiet` shows nothing but `note`s of trouble."""

    def __init__(self, *, quiet: bool, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._quiet = quiet
        self._live: Live | None = None
        self._next_plain_sec = 0.0
        self._last_plain = ""
        self._last_state = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, status: JobStatus) -> None:
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(render(status))
            return
        now = time.monotonic()
        line = one_line(status)
        is_due = now >= self._next_plain_sec and line != self._last_plain
        if is_due or status.state != self._last_state:
            self._next_plain_sec = now + PLAIN_EVERY_SEC
            self._last_plain, self._last_state = line, status.state
            self._console.print(line, soft_wrap=True, markup=False)

    def note(self, text: str, *, trouble: bool = False) -> None:
        """A line that stays."""
        if trouble or not self._quiet:
            self._console.print(
                printable(text), soft_wrap=True, markup=False, style="yellow" if trouble else None
            )


def render(status: JobStatus) -> Group:
    """The live picture: a bar, the figures, and what each worker does."""
    if status.state == "planning":
        return Group(Text(one_line(status)))
    head = Table.grid(padding=(0, 1))
    total = max(status.units_total, 1)
    head.add_row(
        Text(status.state, style="bold"),
        ProgressBar(total=total, completed=status.units_done, width=BAR_WIDTH),
        Text(f"{status.units_done}/{status.units_total} units"),
        Text(f"{duration(status.seconds_left)} left", style="cyan"),
    )
    parts = [head, Text(figures(status))]
    if status.workers:
        parts.append(Text("  ".join(_worker(worker) for worker in status.workers[:16]), style="dim"))
    if status.causes and status.failures:
        parts.append(Text(printable(f"last failure: {status.causes[-1]}"), style="yellow"))
    return Group(*parts)


def one_line(status: JobStatus) -> str:
    if status.state == "planning":
        return f"planning: {status.message}"
    left = f", {duration(status.seconds_left)} left" if status.is_active else ""
    why = f"; {status.message}" if status.is_active and status.message else ""
    return f"{status.state}: {status.units_done}/{status.units_total} units, {figures(status)}{left}{why}"


def figures(status: JobStatus) -> str:
    """The counts of a job in words."""
    words = [
        f"{status.sequences:,} sequences",
        f"{status.tokens:,} tokens",
        *([f"{status.tokens_per_second:,.0f} tokens/s"] if status.tokens_per_second >= 0.5 else []),
        f"{status.bytes_per_token:,.1f} B/token",
        f"{status.rejects:,} rejects",
        f"{status.failures:,} failures",
    ]
    return ", ".join(words)


def report(status: JobStatus) -> str:
    """Several lines for `status` and for the end of a job."""
    lines = [one_line(status)]
    for title, counts in (
        ("rejects", status.rejects_by_kind),
        ("filters found", status.filtered),
        ("failures", status.failures_by_kind),
    ):
        if counts:
            listed = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
            lines.append(f"  {title}: {listed}")
    if status.cost is not None and status.cost.has_bill:
        lines.append(f"  cost: {status.cost.bill_in_words}")
    lines += [f"  {cause}" for cause in status.causes]
    lines += [f"  {_worker(worker)}" for worker in status.workers]
    if status.message and not status.is_active:
        lines.append(f"  {status.message}")
    return printable("\n".join(lines))


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def watch(read: Callable[[], JobStatus], *, every_sec: float, stream: TextIO | None = None) -> JobStatus:
    """Show a store's status until its job is over; returns the last one."""
    with ProgressView(quiet=False, stream=stream) as view:
        while True:
            status = read()
            view.show(status)
            if not status.is_active:
                return status
            time.sleep(every_sec)


def _worker(worker: WorkerView) -> str:
    doing = f" {worker.unit}" if worker.unit else ""
    return f"{worker.name} {worker.state}{doing}"
