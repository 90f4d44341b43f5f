"""What a person sees of a job."""

import io

import pytest
from rich.console import Console

from labeler.driver.progress import ProgressView, duration, one_line, render, report, watch
from labeler.job.status import Tally, snapshot
from logitstore.job_objects import WorkerView


def status(state="running", done=3, **changes):
    tally = Tally(units_total=8, units_done=done, sequences=24, tokens=12_345, rows=4000, bytes=520_000)
    tally.rejects_by_kind.update({"too_long": 2})
    tally.count_failure("engine_died", "worker-0.0: SIGKILL")
    fields = {
        "state": state,
        "started": "",
        "workers": [WorkerView("worker-1.0", "n", "ready", "abc")],
        "queue_depth": 2,
        "cost": None,
        "message": "",
    }
    return snapshot(tally, **{**fields, **changes})


def test_one_line_has_every_figure():
    line = one_line(status())
    for word in (
        "running",
        "3/8 units",
        "24 sequences",
        "12,345 tokens",
        "130.0 B/token",
        "2 rejects",
        "1 failures",
    ):
        assert word in line


def test_the_live_picture_shows_workers_and_the_last_failure():
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    console.print(render(status()))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("3/8 units", "worker-1.0 ready abc", "SIGKILL"):
        assert word in shown


def test_the_report_names_causes():
    text = report(status("failed", message="correct the cause"))
    assert "failures: 1 engine_died" in text
    assert "rejects: 2 too_long" in text
    assert "engine_died: worker-0.0: SIGKILL" in text
    assert text.endswith("correct the cause")


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "?"), (0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_a_log_file_gets_a_line_now_and_then_and_quiet_gets_trouble_only():
    plain, silent = io.StringIO(), io.StringIO()
    for stream, quiet in ((plain, False), (silent, True)):
        with ProgressView(quiet=quiet, stream=stream) as view:
            for done in range(50):
                view.show(status(done=done % 8))
            view.note("by the way")
            view.note("look here", trouble=True)
    assert plain.getvalue().count("running:") == 1
    assert "by the way" in plain.getvalue()
    assert silent.getvalue() == "look here\n"


def test_a_log_file_gets_every_state_at_once():
    plain = io.StringIO()
    with ProgressView(quiet=False, stream=plain) as view:
        view.show(status("planning", message="40 records read"))
        view.show(status("starting"))
        view.show(status("running"))
    lines = plain.getvalue().splitlines()
    assert lines[0] == "planning: 40 records read"
    assert [line.split(":")[0] for line in lines[1:]] == ["starting", "running"]


def test_watching_ends_with_the_job():
    states = iter([status("starting"), status("running"), status("finished", done=8)])
    last = watch(lambda: next(states), every_sec=0.01, stream=io.StringIO())
    assert (last.state, last.units_done) == ("finished", 8)
