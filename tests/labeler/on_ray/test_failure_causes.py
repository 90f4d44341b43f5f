"""Causes of failures as people read them; Ray's texts are its own, of version 2.60."""

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from labeler.on_ray.failure_causes import actor_death, first_cause

KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: Worker
\tactor_id: 6a1ffe7d0e8bd3b0a2c5d0b401000000
\tpid: 18320
\tnamespace: 4d0c
\tip: 10.0.0.7
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: ..."""
NODE_DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: Worker
\tpid: 18320
\tip: 10.0.0.7
The actor died because its node has died. Node Id: 0fd2"""

UNMADE = """The actor died because of an error raised in its creation task, \x1b[36mray::Worker.__init__()\x1b[39m (pid=9, ip=10.0.0.7)
  File "actor.py", line 3, in __init__
    import labeler
ModuleNotFoundError: No module named 'labeler'
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (UNMADE, "it could not be made: ModuleNotFoundError: No module named 'labeler'"),
        (
            KILLED,
            "its process 18320 on 10.0.0.7 was killed or crashed; dmesg there tells of lack of memory",
        ),
        (NODE_DIED, "its node has died or was cut off"),
        (
            "The actor is gone\n\tclass_name: Worker\nwhy: nobody knows",
            "The actor is gone; why: nobody knows",
        ),
    ],
)
def test_a_dead_actor_is_told_in_a_line(text, said):
    assert actor_death(text) == said


def test_a_dead_actor_is_no_traceback():
    assert "\n" not in first_cause(ActorDiedError())


def test_an_error_of_ours_comes_without_rays_layers():
    cause = FileNotFoundError("no such model; check the name\nand more")
    assert first_cause(RayTaskError("start", "a long traceback", cause)) == (
        "FileNotFoundError: no such model; check the name"
    )
