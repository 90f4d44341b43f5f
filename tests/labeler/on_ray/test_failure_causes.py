"""Causes of failures as people read them; Ray's texts are its own, of version 2.60."""

import sys

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from labeler.__main__ import main
from labeler.config.loading import JobConfig
from labeler.on_ray.failure_causes import actor_death, first_cause
from labeler.on_ray.lacking import RAY_JOB_VARIABLE, check_engine_here, remedy_of

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
        (UNMADE, "it could not be made on 10.0.0.7: ModuleNotFoundError: No module named 'labeler'"),
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


def test_a_package_that_is_missing_comes_with_its_remedy():
    cause = ModuleNotFoundError("No module named 'vllm'")
    said = first_cause(RayTaskError("start", "a long traceback", cause))
    assert said.startswith(
        "ModuleNotFoundError: No module named 'vllm'; the interpreter that ran it has no vllm"
    )
    assert "pip install '.[label]'" in said


@pytest.mark.parametrize(
    ("ended", "remedy"),
    [
        ("failed with exit code 1, last logs:\n/usr/bin/python: No module named labeler\n", "--ship-code"),
        ("ModuleNotFoundError: No module named 'logitstore.common'", "--ship-code"),
        ("ModuleNotFoundError: No module named 'zstandard'", "--runtime-env FILE"),
        ("failed with exit code 127, last logs:\nsh: 1: /opt/none/python: not found\n", "--python PATH"),
        ("failed with exit code 1, last logs:\nerror: 20 records are no JSON", ""),
    ],
)
def test_what_an_interpreter_of_the_cluster_lacks_is_told_with_the_remedy(ended, remedy):
    assert remedy in remedy_of(ended)
    assert bool(remedy_of(ended)) == bool(remedy)


def test_an_engine_that_is_not_installed_is_told_before_anything_is_planned(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vllm", None)
    words = ["run", "--set", "teacher.engine=vllm", "--set", "teacher.model=org/none", "--set"]
    words += [f"input.uri='{tmp_path}/in.jsonl'", "--set", f"output.uri='{tmp_path}/store'"]
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n')
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "needs the package 'vllm', which is not installed" in said
    assert "pip install '.[label]'" in said
    assert not (tmp_path / "store").exists()
    job = JobConfig.model_validate(
        {"teacher": {"model": "org/none"}, "input": {"uri": "in", "kind": "text"}, "output": {"uri": "out"}}
    )
    monkeypatch.setenv(RAY_JOB_VARIABLE, "{}")
    assert "Other nodes may have it" in check_engine_here(job)
    monkeypatch.delenv(RAY_JOB_VARIABLE)
    workers = job.workers.model_copy(update={"address": "10.0.0.1:6379"})
    assert check_engine_here(job.model_copy(update={"workers": workers})) == ""


def test_an_error_of_ours_comes_without_rays_layers():
    cause = FileNotFoundError("no such model; check the name\nand more")
    assert first_cause(RayTaskError("start", "a long traceback", cause)) == (
        "FileNotFoundError: no such model; check the name"
    )
