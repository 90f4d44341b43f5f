"""What a killed process leaves behind is ended; that the guard is started is seen in `test_vllm_job.py`."""

from __future__ import annotations

import subprocess
import sys
import threading

import psutil
import pytest

from labeler.teacher.vllm import orphans
from labeler.teacher.vllm.orphans import descendants

PARENT = """
import subprocess, sys, time
code = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, start_new_session=True)
print(child.pid, child.stdout.readline().strip(), flush=True)
time.sleep(600)
"""


def test_children_and_their_children_do_not_outlive_a_killed_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    below = [psutil.Process(int(process_id)) for process_id in parent.stdout.readline().split()]
    has_looked = threading.Event()

    def look(process_id: int) -> list[psutil.Process]:
        found = descendants(process_id)
        if set(below) == set(found):
            has_looked.set()
        return found

    monkeypatch.setattr(orphans, "descendants", look)
    guard = threading.Thread(target=orphans.end_orphans, args=(psutil.Process(parent.pid),))
    guard.start()
    assert has_looked.wait(60)
    assert [process.is_running() for process in below] == [True, True]
    parent.kill()
    guard.join(60)
    assert not guard.is_alive()
    parent.wait(60)
    gone, alive = psutil.wait_procs(below, timeout=60)
    assert (len(gone), alive) == (2, [])
