"""One engine's rates, in a process of its own: `python -m benchmarks.gpu.engine_run SETTINGS OUT`.

SETTINGS is a JSON object, as `engines.py` gives it; OUT becomes a JSON file of rates and ratios by variant.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.engines import Runs
from benchmarks.labels.labeling import TEMPERATURES, label, measure_rates, start_worker
from benchmarks.labels.labeling_sizes import WHOLE_PATH_TOP_K
from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig
from labeler.records import TokenizedPrompt
from labeler.teacher.response_ends import ResponseEnds
from logitstore.common.whole_file import write_whole

OPENING_TOKENS = 24
ENGINE_ARGS = {"load_format": "dummy", "enforce_eager": True}
"""Without compilation and CUDA graphs, as the earlier figures: an engine is ready a minute earlier."""


def main(settings: dict[str, Any], out: Path) -> None:
    model, top_ks, device = (settings.pop(name) for name in ("model", "top_ks", "device"))
    runs = Runs(**settings)
    started = time.monotonic()
    teacher = start_teacher(model, top_ks, runs, device)
    print(f"engine ready after {time.monotonic() - started:.0f} s", file=sys.stderr)
    try:
        found = measured(teacher, model, top_ks, runs, device)
    finally:
        teacher.close()
    write_whole(out, json.dumps(found))


def start_teacher(model: str, top_ks: list[int], runs: Runs, device: str) -> Any:
    from labeler.teacher.vllm.engine import prepare_process
    from labeler.teacher.vllm.teacher import VllmTeacher

    config = TeacherConfig(model=model, max_model_len=1024, capture="in_engine", engine_args=ENGINE_ARGS)
    cores = None if device == "cuda" else "0"
    prepare_process(config, cores)
    labels = LabelsConfig(top_k=max(*top_ks, WHOLE_PATH_TOP_K), temperatures=TEMPERATURES)
    sampling = SamplingConfig(temperature=0.0, max_tokens=runs.new_tokens)
    return VllmTeacher(config, labels, sampling, cores=cores, ends=ResponseEnds())


def measured(
    teacher: Any, model: str, top_ks: list[int], runs: Runs, device: str
) -> dict[str, dict[str, float]]:
    """Medians of every variant's tokens per second, and of its rate over that of its bound."""
    prompts = random_prompts(teacher.describe().vocab_size, runs)
    gpus = 1 if device == "cuda" else 0
    args = argparse.Namespace(teacher=model, top_k=top_ks, repetitions=runs.repetitions, gpus=gpus)
    with tempfile.TemporaryDirectory() as folder:
        worker = start_worker(teacher, prompts, args, runs.unit_prompts, Path(folder))
        rates, ratios = measure_rates(teacher, prompts, args, worker)
    for name, values in decoding_rates(teacher, prompts, runs).items():
        rates[name] = values
    ratios["decode_rows"] = [
        ours / one for ours, one in zip(rates["decode_rows"], rates["decode_one"], strict=True)
    ]
    return {
        "rates": {name: statistics.median(values) for name, values in rates.items()},
        "ratios": {name: statistics.median(values) for name, values in ratios.items()},
    }


def random_prompts(vocab_size: int, runs: Runs) -> list[TokenizedPrompt]:
    rng, nothing = np.random.default_rng(0), np.empty(0, np.int32)
    return [
        TokenizedPrompt(
            f"p{index}", nothing, rng.integers(0, vocab_size - 1, runs.prompt_tokens).astype(np.int32), 1
        )
        for index in range(runs.prompts)
    ]


def decoding_rates(teacher: Any, prompts: list[TokenizedPrompt], runs: Runs) -> dict[str, list[float]]:
    """New tokens per second of the engine with one logprob, and of rows taken while it decodes."""
    openings = [
        TokenizedPrompt(
            f"o{index}", prompts[index % len(prompts)].token_ids[:OPENING_TOKENS], None, OPENING_TOKENS
        )
        for index in range(runs.openings)
    ]
    rates: dict[str, list[float]] = {"decode_one": [], "decode_rows": []}
    for _ in range(runs.repetitions + 1):  # the first round warms up
        started = time.perf_counter()
        num_tokens = decode(teacher, openings, runs.new_tokens)
        rates["decode_one"].append(num_tokens / (time.perf_counter() - started))
        started = time.perf_counter()
        sequences = label(teacher, openings, WHOLE_PATH_TOP_K, mode="generate", label_at="decode")
        num_tokens = sum(sequence.rows.num_rows for sequence in sequences)
        rates["decode_rows"].append(num_tokens / (time.perf_counter() - started))
    return {name: values[1:] for name, values in rates.items()}


def decode(teacher: Any, openings: list[TokenizedPrompt], new_tokens: int) -> int:
    """The engine alone, greedy; how many tokens it wrote."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for prompt in openings:
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=new_tokens,
            detokenize=False,
            flat_logprobs=True,
            logprobs=1,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        tokens = {"prompt_token_ids": prompt.token_ids.tolist()}
        teacher.engine.add_request(f"{prompt.record_id}-{time.monotonic_ns()}", tokens, parameters)
    num_tokens = 0
    while teacher.engine.has_unfinished_requests():
        num_tokens += sum(len(output.outputs[0].token_ids) for output in teacher.engine.step())
    return num_tokens


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # noqa: BLE001  whatever it is, the parent has other sections
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # threads of a worker whose engine is gone may wait for good
