"""Changes of vLLM's sources are found and shown; the installed one is the one that is known."""

from __future__ import annotations

import importlib
import inspect
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.labels import vllm_sources, vllm_tree
from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig
from labeler.records import TokenizedPrompt
from labeler.teacher import known_vllm

NAME = "vllm.v1.engine:FinishReason"
SMALL = {
    "vllm/_version.py": "version: str\n__version__ = version = '0.33.0'\n",
    "vllm/v1/engine/__init__.py": "class FinishReason:\n    STOP = 0\n",
    "vllm/engine/arg_utils.py": "class EngineArgs:\n    model: str = ''\n    def method(self): ...\n",
}
"""A vLLM of three files."""


def small_folder(folder: Path, **others: str) -> Path:
    for name, text in {**SMALL, **others}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.slow
def test_the_installed_vllm_is_as_known(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vllm")
    assert main(["sources"]) == 0
    output = capsys.readouterr().out
    assert output.count("as known") == len(vllm_sources.SOURCES)
    assert output.count("has every field that is used") == len(vllm_sources.ARGUMENTS)
    assert "CHANGED" not in output
    assert "labels with exact tails at every temperature: yes, on both model runners" in output
    assert "labels at given ids (labels.given): yes" in output
    assert "rows stay arrays in the front end: yes" in output


@pytest.mark.slow
def test_sources_read_without_an_import_are_those_that_python_gives() -> None:
    """So the hashes taken of a wheel are those that decide when an engine starts."""
    pytest.importorskip("vllm")
    tree = vllm_tree.installed_tree()
    for name in vllm_sources.SOURCES:
        module_name, _, qualified_name = name.partition(":")
        target: Any = importlib.import_module(module_name)
        for part in qualified_name.split(".") if qualified_name else ():
            target = getattr(target, part)
        assert tree.source(module_name, qualified_name) == inspect.getsource(target), name
    for place in (*known_vllm.REPLACED.values(), *known_vllm.WATCHED.values(), known_vllm.PROCESSOR):
        assert tree.source_hash(*place) == known_vllm.installed_hash(*place)
    assert known_vllm.installed_hash("vllm.exceptions", "Gone") is None
    assert known_vllm.installed_hash("vllm.gone", "Gone") is None


@pytest.mark.slow
def test_every_field_that_is_given_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = pytest.importorskip("vllm")
    from labeler.teacher.vllm.engine import engine_args
    from labeler.teacher.vllm.requests import EngineLimits, Requests

    labels, sampling = LabelsConfig(mode="generate"), SamplingConfig(temperature=1.0, stop=("x",))
    teacher = TeacherConfig(model="m", dtype="bfloat16")
    given = engine_args(teacher, labels, sampling, Path("m"), 8, in_engine=True, head="float32_sums")
    assert given.keys() <= set(vllm_sources.ARGUMENTS["vllm.engine.arg_utils:EngineArgs"])

    monkeypatch.setattr(vllm, "SamplingParams", lambda **parameters: parameters)
    limits = EngineLimits(vocab_size=9, max_tokens=9, step_tokens=9, max_requests=1, max_logprobs=8)
    requests = Requests(labels, sampling, None, limits, (), keeps_arrays=True)
    ids_T = np.arange(3, dtype=np.int32)
    prompts = [TokenizedPrompt("r", ids_T, response, 3) for response in (None, ids_T)]
    parameters = [requests.parameters(work) for prompt in prompts for work in requests.works_of(prompt)]
    assert parameters[0].keys() | parameters[1].keys() == set(
        vllm_sources.ARGUMENTS["vllm.sampling_params:SamplingParams"]
    )


def test_a_changed_source_is_shown_line_by_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = small_folder(tmp_path / "unpacked")
    known = vllm_sources.digests(vllm_tree.tree_at(folder), NAME)
    record = {"version": "0.32.0", "lines": {NAME: ["00", "11", *known[:-1]]}}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))  # as if the last line were new, and two had stood at the head
    monkeypatch.setattr(vllm_sources, "RECORD", path)
    monkeypatch.setattr(vllm_sources, "SOURCES", {NAME: "test", "vllm.exceptions:Gone": "test"})
    monkeypatch.setattr(vllm_sources, "ARGUMENTS", {"vllm.engine.arg_utils:EngineArgs": ("model", "seed")})
    assert main(["sources", "--of", str(folder)]) == 1
    output = capsys.readouterr().out
    assert output.startswith("vLLM 0.33.0, compared with 0.32.0:\n")
    assert f"{NAME} (test): CHANGED\n    - 2 lines from line 1 (blank ones not counted)\n" in output
    assert "\n    +     STOP = 0\n" in output
    assert output.count("\n    + ") == 1
    assert "vllm.exceptions:Gone (test): CHANGED\n    it is gone" in output
    assert "vllm.engine.arg_utils:EngineArgs: LACKS seed\n" in output
    assert 'NO, at T=1 only, capture = "public_api": vllm.v1.sample.sampler.Sampler.gather_lo' in output
    assert "labels at given ids (labels.given): NO: " in output
    assert "rows stay arrays in the front end: NO, the same labels at a lower rate" in output
    monkeypatch.setattr(vllm_sources, "SOURCES", {NAME: "test"})
    monkeypatch.setattr(vllm_sources, "ARGUMENTS", {"vllm.engine.arg_utils:EngineArgs": ("model",)})
    assert main(["sources", "--of", str(folder), "--write"]) == 0
    assert main(["sources", "--of", str(folder)]) == 0


def test_a_wheel_an_unpacked_one_and_its_package_are_read_alike(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "unpacked")
    wheel = tmp_path / "vllm-0.33.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in SMALL.items():
            archive.writestr(name, text)
    trees = [vllm_tree.tree_at(path) for path in (folder, folder / "vllm", wheel)]
    assert {tree.version for tree in trees} == {"0.33.0"}
    assert {tree.source("vllm.v1.engine", "FinishReason") for tree in trees} == {
        SMALL["vllm/v1/engine/__init__.py"]
    }
    assert [tree.source("vllm.v1.engine", "FinishReason.gone") for tree in trees] == [None] * 3
    assert [tree.fields("vllm.engine.arg_utils", "EngineArgs") for tree in trees] == [{"model"}] * 3


def test_what_holds_no_vllm_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.whl").write_text("no archive")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("gone", "no such file"),
        ("text.whl", "is no wheel"),
        ("empty", "pip download vllm=="),
    ):
        assert main(["sources", "--of", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
