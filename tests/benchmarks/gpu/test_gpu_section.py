"""The results page has a section of what was measured on a GPU, or says that nothing was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import engines, kernels, losses
from benchmarks.gpu.earlier import EARLIER, EARLIER_CARD, beside_earlier
from benchmarks.gpu.engines import rows_of
from benchmarks.gpu.geometries import TINY
from benchmarks.gpu.kept import Measured, build_result
from benchmarks.gpu.kernels import Timing, table_of
from benchmarks.gpu.sections import FULL, sections
from benchmarks.report import environment
from benchmarks.report.results import ResultTable, load_all, publish
from benchmarks.report.results_page import write_page
from labeler.teacher.model_identity import model_fingerprint

PAGE = Path(__file__).parents[3] / "benchmarks" / "RESULTS.md"


def test_the_section_names_the_card_and_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_gpu_model", lambda: "NVIDIA H100, driver 580.65.06")
    tables = (
        table_of("2,048 rows", [Timing("one read (amax)", 0.3), Timing("log_softmax", 1.25)]),
        ResultTable.of("loss", ("what", "ms", "GiB"), [("dense", 57.5, 13.9), ("big", None, None)]),
        ResultTable.of("labeling", ("what", "tokens/s", "of the bound"), [("our rows, K=64", 4e4, 0.97)]),
    )
    measured = {table.title: Measured(table, "", "2026-01-01T00:00:00+00:00", 3.0) for table in tables}
    here = {"card": "NVIDIA H100, CUDA 13.0"}
    result = build_result(measured, here, ["Liger is not installed."])
    assert {figure.name: figure.value for figure in result.figures} == {
        "2_048_rows_one_read_amax": 0.3,
        "2_048_rows_log_softmax": 1.25,
        "loss_dense": 57.5,
        "labeling_our_rows_k_64": 4e4,
    }
    assert [figure.unit for figure in result.figures] == ["ms", "ms", "ms", "tokens/s"]
    publish(result, tmp_path, quiet=True)
    write_page(load_all(tmp_path), (), tmp_path, tmp_path / "RESULTS.md")
    page = (tmp_path / "RESULTS.md").read_text()
    assert "one NVIDIA H100, CUDA 13.0" in page
    assert "gpu NVIDIA H100, driver 580.65.06" in page
    assert "| dense | 57.5 | 13.9 |" in page
    assert "Liger is not installed." in page
    assert "Nothing was measured on a GPU" not in page


def test_earlier_figures_stand_beside_the_lines_that_are_measured() -> None:
    titles = {section.title for section in sections(FULL, [64], "cuda")}
    assert titles >= set(EARLIER)
    head: Any = SimpleNamespace(
        hidden_1TH=torch.empty(1, 2, 1), labels_1T=torch.empty(1, 2), dense=None, dense_cross_entropy=None
    )
    measured = {name for name, _ in losses.losses(head)} | {
        "Liger, fused cross-entropy",  # where they are installed
        "Apple, cut cross-entropy",
    }
    title, other = "loss, 8,192 tokens, vocabulary 151,936, hidden 4,096, bf16", "2,048 rows of other logits"
    assert measured >= set(EARLIER[title])
    names = ("one", "none", "vllm_k64", "k16", "k64", "k128", "job", "decode_one", "decode_rows")
    rates: dict[str, float] = dict.fromkeys(names, 1.0)
    lines = [name for name, *_ in rows_of({"rates": rates, "ratios": rates}, FULL.runs)]
    for labeled in (title for title in EARLIER if title.startswith("labeling")):
        assert lines == list(EARLIER[labeled])
    now = ResultTable.of(title, ("what", "ms", "GiB"), [("distillation, T=1", 60.0, 2.5), ("new", 1.0, 1.0)])
    beside = beside_earlier(now)
    assert beside.columns == ("what", "ms", "GiB", f"ms, {EARLIER_CARD}", f"GiB, {EARLIER_CARD}")
    assert beside.rows == (("distillation, T=1", 60.0, 2.5, 180.0, 3.86), ("new", 1.0, 1.0, None, None))
    assert beside_earlier(table_of(other, [Timing("bf16", 1.0)])).rows == (("bf16", 1.0),)


def test_a_line_that_fails_says_why_and_has_no_figure() -> None:
    def fails() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    timing = kernels.timed(("big", fails), "cpu")
    assert (timing.name, timing.millis) == ("big (out of memory)", None)
    (row,) = table_of("t", [timing]).rows
    assert row == ("big (out of memory)", None)


@pytest.mark.slow
def test_every_section_runs_in_a_rehearsal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """So that the first try on a GPU is no first try of the code; here the kernels are interpreted."""
    parts = ["--parts", "capture,loss,head"]
    assert main(["gpu", "--rehearse", "--top-k", "4", *parts, "--out", str(tmp_path)]) == 0
    output = capfd.readouterr().out
    assert "label columns, K=4, T=1,2,4: Triton" in output
    assert "label columns at 4 given ids, T=1,2,4: Triton" in output
    assert "distillation, T=2" in output
    assert "3 of 3 sections on" in output
    assert "0 left for lack of time, 0 failed" in output
    assert not list(tmp_path.iterdir())


def test_an_engine_is_given_a_model_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine's process makes of it is seen in a rehearsal: `bench gpu --rehearse --parts labeling`."""
    from transformers import AutoConfig

    given = []

    def run_within(limit_sec: float, command: list[str]) -> None:
        settings, out = json.loads(command[-2]), Path(command[-1])
        assert model_fingerprint(Path(settings["model"])).startswith("sha256:")
        given.append((AutoConfig.from_pretrained(settings.pop("model")), settings, limit_sec))
        rates = dict.fromkeys(("one", "none", "vllm_k64", "k4", "job", "decode_one", "decode_rows"), 2.0)
        out.write_text(json.dumps({"rates": rates, "ratios": {}}))

    monkeypatch.setattr(engines, "run_within", run_within)
    made = engines.table("title", TINY, engines.REHEARSAL, [4], "cpu", 9.0)
    assert made.rows[0] == ("engine, one logprob: the bound", 2.0, 1.0)
    ((config, settings, limit_sec),) = given
    assert (config.model_type, config.vocab_size, config.head_dim, limit_sec) == ("qwen3", 640, 32, 9.0)
    assert settings == {"top_ks": [4], "device": "cpu", **dataclasses.asdict(engines.REHEARSAL)}


def test_a_page_without_it_says_so(tmp_path: Path) -> None:
    write_page({}, (), tmp_path, tmp_path / "RESULTS.md")
    assert "Nothing was measured on a GPU for this page" in (tmp_path / "RESULTS.md").read_text()
    has_result = (PAGE.parent / "results" / "gpu.json").exists()
    assert ("Nothing was measured on a GPU" in PAGE.read_text()) is not has_result


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize(
    "command",
    [
        ["gpu"],
        ["labeling", "--gpus", "1"],
        ["all", "--gpus", "1"],
        ["all", "--gpus", "1", "--parts", "storage"],
        ["all", "--parts", "gpu"],
    ],
)
def test_without_a_gpu_nothing_is_measured_for_one(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine would run on the CPU, and its figures stand for a GPU's."""
    assert main([*command, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "no GPU here" in said
    assert "nvidia-smi" in said
    assert not list(tmp_path.iterdir())
