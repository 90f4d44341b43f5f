"""Rates of engines on a GPU: the labeler's rows beside vLLM's own logprobs, of prompts and of responses.

Each engine is started in a process of its own (`engine_run.py`), so that its memory is free afterwards and
one that does not get ready can be stopped.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu.geometries import Geometry, write_model
from benchmarks.jobs.processes import end_session
from benchmarks.labels.labeling_sizes import WHOLE_PATH_TOP_K
from benchmarks.report.results import Cell, ResultTable

ENGINE_RUN = "benchmarks.gpu.engine_run"
BOUND = "engine, one logprob: the bound"


@dataclass(frozen=True, slots=True)
class Runs:
    """What an engine is given to do."""

    prompts: int
    prompt_tokens: int
    unit_prompts: int
    openings: int
    """Prompts that are answered."""
    new_tokens: int
    repetitions: int


FULL = Runs(prompts=200, prompt_tokens=512, unit_prompts=50, openings=256, new_tokens=64, repetitions=2)
REHEARSAL = Runs(prompts=4, prompt_tokens=40, unit_prompts=2, openings=2, new_tokens=3, repetitions=1)


def title_of(geometry: Geometry, runs: Runs) -> str:
    return (
        f"labeling, {geometry.name}'s geometry, {runs.prompts} sequences of {runs.prompt_tokens} tokens, bf16"
    )


def table(
    title: str, geometry: Geometry, runs: Runs, top_ks: Sequence[int], device: str, limit_sec: float
) -> ResultTable:
    """Tokens per second of every variant, and its rate over that of the bound, right before it.

    Raises RuntimeError where the engine fails, or takes longer than `limit_sec`.
    """
    if device == "cuda":  # what earlier sections have left is the engine's
        import torch  # late: an engine on a CPU sets the number of threads before

        gc.collect()
        torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        model, out = Path(folder) / "model", Path(folder) / "rates.json"
        write_model(model, geometry)
        settings = {"model": str(model), "top_ks": list(top_ks), "device": device, **asdict(runs)}
        run_within(limit_sec, [sys.executable, "-P", "-m", ENGINE_RUN, json.dumps(settings), str(out)])
        found = json.loads(out.read_text(encoding="utf-8"))
    return ResultTable.of(title, ("what", "tokens/s", "of the bound"), rows_of(found, runs))


def run_within(limit_sec: float, command: Sequence[str]) -> None:
    """Run a command, of which nothing is left afterwards. RuntimeError where it fails or takes longer."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        status = process.wait(timeout=limit_sec)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the engine was stopped, as it took more than {limit_sec:.0f} s") from None
    finally:
        end_session(process)
    if status:
        raise RuntimeError(f"the engine's process ended with status {status}; its own words are above")


def rows_of(found: Mapping[str, Mapping[str, float]], runs: Runs) -> list[tuple[Cell, ...]]:
    """Lines of the table from what a run found: rates and their ratios by variant."""
    rates, ratios = found["rates"], found["ratios"]
    names = {
        "one": BOUND,
        "none": "engine without logprobs",
        f"vllm_k{WHOLE_PATH_TOP_K}": f"vLLM's own top-{WHOLE_PATH_TOP_K} logprobs",
        "job": f"a whole job to disk, K={WHOLE_PATH_TOP_K}, units of {runs.unit_prompts}",
        "decode_one": f"{runs.openings} x {runs.new_tokens} tokens decoded, one logprob",
        "decode_rows": f"{runs.openings} x {runs.new_tokens} tokens decoded, our rows",
    }
    ours = sorted((name for name in rates if name not in names), key=lambda name: int(name[1:]))
    order = ["one", "none", f"vllm_k{WHOLE_PATH_TOP_K}", *ours, "job", "decode_one", "decode_rows"]
    return [
        (names.get(name, f"our rows, K={name[1:]}"), rates[name], ratios.get(name, 1.0)) for name in order
    ]
