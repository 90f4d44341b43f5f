"""How much the labels cost on top of the teacher, by K, and how much of that is our own code.

One engine, one run, all variants in turn: ratios of rates are comparable across machines, rates are not.
The fair bound is the same engine's prefill with one prompt logprob of vLLM's own, since it too must push
every position through the lm_head. Every variant scores the same sequences.

- rates by K with temperatures 1, 2, 4, of vLLM's own 64, and of a whole job at K=64, from plan to disk;
- CPU time of our own code per token, step by step, on real rows, with an engine that costs nothing;
- labels taken while decoding against scoring the finished response;
- seconds to start.

Shape legend: T tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.labels.labeling_path import RunningWorker, measure_own_code
from benchmarks.labels.labeling_result import build_result
from benchmarks.labels.labeling_sizes import (
    DEFAULT_UNIT_PROMPTS,
    ON_CPU,
    ON_GPU,
    WHOLE_PATH_TOP_K,
    Sizes,
    read_prompts,
    sizes_for,
)
from benchmarks.report.devices import need_gpu
from benchmarks.report.results import publish
from labeler.config.loading import (
    InputConfig,
    JobConfig,
    LabelsConfig,
    OutputConfig,
    SamplingConfig,
    TeacherConfig,
    WorkersConfig,
)
from labeler.errors import PromptError
from labeler.records import TokenizedPrompt
from labeler.teacher.label_rows import CapturedColumns, ColumnLayout
from logitstore.common.options import positive
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence

TEMPERATURES = (1.0, 2.0, 4.0)
LAYOUT = ColumnLayout(WHOLE_PATH_TOP_K, TEMPERATURES)
RESCORE_SAMPLING = SamplingConfig(temperature=0.0, max_tokens=32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=positive, default=5, help="runs of every variant (default 5)")
    parser.add_argument(
        "--prompts",
        type=positive,
        help=f"sequences per run (default {ON_CPU.prompts} of {ON_CPU.prompt_tokens} tokens, with --gpus "
        f"{ON_GPU.prompts} of {ON_GPU.prompt_tokens})",
    )
    parser.add_argument("--cores", default="0", help="logical CPUs of the engine, where it has no GPU")
    parser.add_argument(
        "--engine-args",
        type=engine_table,
        default={},
        metavar="JSON",
        help='further arguments of the engine, such as {"load_format": "dummy"} where weights are missing',
    )


def engine_table(text: str) -> dict[str, Any]:
    """The object of `--engine-args`."""
    try:
        table = json.loads(text)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise argparse.ArgumentTypeError(f'{text!r} must be a JSON object such as {{"enforce_eager": true}}')
    return table


def run(args: argparse.Namespace) -> int:
    if args.gpus:
        need_gpu()
    if args.quick:
        args.repetitions = min(args.repetitions, 3)
    sizes = sizes_for(args)
    teacher, start_sec = start_teacher(args)
    try:
        prompts = read_prompts(args, sizes)
        with tempfile.TemporaryDirectory() as folder:
            worker = start_worker(teacher, prompts, args, sizes.unit_prompts, Path(folder))
            rates, ratios = measure_rates(teacher, prompts, args, worker)
        own_code = measure_units(teacher, args, sizes)
        rescore = [] if args.quick else measure_rescoring(teacher, prompts, args.repetitions)
    finally:
        teacher.close()
    result = build_result(args, sizes, own_code, start_sec, rates, ratios, rescore)
    publish(result, args.out, quiet=args.quiet)
    return 0


def start_teacher(args: argparse.Namespace) -> tuple[Any, dict[str, float]]:
    """A teacher for the largest K, and the seconds that importing vLLM and starting the engine took."""
    from labeler.teacher.vllm.engine import prepare_process
    from labeler.teacher.vllm.teacher import VllmTeacher

    labels = LabelsConfig(top_k=max(*args.top_k, WHOLE_PATH_TOP_K), temperatures=TEMPERATURES)
    config = TeacherConfig(
        model=args.teacher, max_model_len=1024, capture="in_engine", engine_args=args.engine_args
    )
    cores = None if args.gpus else args.cores
    prepare_process(config, cores)
    started = time.perf_counter()
    import vllm.v1.engine.llm_engine  # noqa: F401

    imported = time.perf_counter()
    teacher = VllmTeacher(config, labels, RESCORE_SAMPLING, cores=cores)
    ready = time.perf_counter()
    return teacher, {"import": imported - started, "engine": ready - imported}


def measure_rates(
    teacher: Any, prompts: list[TokenizedPrompt], args: argparse.Namespace, worker: RunningWorker
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Tokens per second of the bound and of every variant, and a variant's rate over that of the bound.

    Variants take turns, each right after the bound: what slows the machine for a while slows both.
    """
    variants: dict[str, Callable[[], object]] = {"none": lambda: prefill(teacher, prompts, None)}
    for top_k in sorted({1, WHOLE_PATH_TOP_K, *args.top_k}):
        variants[f"k{top_k}"] = lambda k=top_k: label(teacher, prompts, k)
    variants[f"vllm_k{WHOLE_PATH_TOP_K}"] = lambda: prefill(teacher, prompts, WHOLE_PATH_TOP_K)
    variants["job"] = lambda: run_job(teacher, worker)
    tokens = sum(prompt.num_tokens for prompt in prompts)

    def rate(call: Callable[[], object]) -> float:
        started = time.perf_counter()
        call()
        return tokens / (time.perf_counter() - started)

    rates: dict[str, list[float]] = {name: [] for name in ("one", *variants)}
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(args.repetitions + 1):
        for name, call in variants.items():
            bound, own = rate(lambda: prefill(teacher, prompts, 1)), rate(call)
            if repetition:  # the first round warms up
                rates["one"].append(bound)
                rates[name].append(own)
                ratios[name].append(own / bound)
    return rates, ratios


def prefill(teacher: Any, prompts: list[TokenizedPrompt], prompt_logprobs: int | None) -> list[Any]:
    """The engine alone; its outputs in the order of the prompts."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for index, prompt in enumerate(prompts):
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            detokenize=False,
            flat_logprobs=True,
            prompt_logprobs=prompt_logprobs,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        tokens = {"prompt_token_ids": prompt.token_ids.tolist()}
        teacher.engine.add_request(f"bare-{time.monotonic_ns()}-{index}", tokens, parameters)
    outputs: list[Any] = []
    while teacher.engine.has_unfinished_requests():
        outputs += teacher.engine.step()
    return sorted(outputs, key=lambda output: int(output.request_id.rpartition("-")[2]))


def label(teacher: Any, prompts: list[TokenizedPrompt], top_k: int, **labels: Any) -> list[LabeledSequence]:
    teacher.change_labels(LabelsConfig(top_k=top_k, temperatures=TEMPERATURES, **labels))
    sequences = []
    for item in teacher.label(prompts):
        if isinstance(item, PromptError):
            raise ValueError(f"the benchmark's own prompt was refused: {item}")
        sequences.append(item)
    return sequences


def start_worker(
    teacher: Any, prompts: list[TokenizedPrompt], args: argparse.Namespace, unit_prompts: int, folder: Path
) -> RunningWorker:
    teacher.change_labels(LabelsConfig(top_k=WHOLE_PATH_TOP_K, temperatures=TEMPERATURES))
    job = JobConfig(
        teacher=TeacherConfig(model=args.teacher),
        input=InputConfig(uri="memory", kind="token_ids"),
        labels=LabelsConfig(mode="score"),
        output=OutputConfig(uri=str(folder / "store")),
        workers=WorkersConfig(gpus=args.gpus),
    )
    num_rounds = args.repetitions + 1
    return RunningWorker(teacher, prompts, label_spec(teacher), job, num_rounds, unit_prompts)


def run_job(teacher: Any, worker: RunningWorker) -> None:
    teacher.change_labels(LabelsConfig(top_k=WHOLE_PATH_TOP_K, temperatures=TEMPERATURES))
    worker.label_round()


def measure_units(teacher: Any, args: argparse.Namespace, sizes: Sizes) -> dict[int, dict[str, list[float]]]:
    """What `measure_own_code` finds, by the sequences of a unit: the job's, and as many as units have unless
    they are set otherwise."""
    largest = sizes.prompts if args.quick else max(sizes.prompts, DEFAULT_UNIT_PROMPTS)
    prompts = read_prompts(args, replace(sizes, prompts=largest))
    rows, spec = captured_rows(teacher, prompts), label_spec(teacher)
    return {
        unit_prompts: measure_own_code(rows, prompts, LAYOUT, spec, unit_prompts, args.repetitions)
        for unit_prompts in sorted({sizes.unit_prompts, min(largest, DEFAULT_UNIT_PROMPTS)})
    }


def captured_rows(teacher: Any, prompts: list[TokenizedPrompt]) -> list[CapturedColumns]:
    """The rows of every prompt as they leave the engine."""
    from labeler.teacher.vllm.outputs import columns_of

    teacher.change_labels(LabelsConfig(top_k=WHOLE_PATH_TOP_K, temperatures=TEMPERATURES))
    outputs = prefill(teacher, prompts, LAYOUT.num_logprobs)
    return [columns_of(output.prompt_logprobs, LAYOUT.num_columns) for output in outputs]


def label_spec(teacher: Any) -> LabelSpec:
    description = teacher.describe()
    kind = description.value_kind
    return LabelSpec(description.vocab_size, WHOLE_PATH_TOP_K, TEMPERATURES, kind, "score", "all")


def measure_rescoring(teacher: Any, prompts: list[TokenizedPrompt], repetitions: int) -> list[float]:
    """Seconds of labels at decode time over seconds of generating and then scoring, greedy, 32 new tokens."""
    openings = [
        TokenizedPrompt(f"{prompt.record_id}-{part}", prompt.token_ids[part * 32 : part * 32 + 24], None, 24)
        for prompt in prompts
        for part in range(5)
    ]
    ratios = []
    for _ in range(repetitions + 1):
        seconds = {}
        for label_at in ("decode", "rescore"):
            started = time.perf_counter()
            label(
                teacher,
                openings,
                WHOLE_PATH_TOP_K,
                mode="generate",
                label_at=label_at,
            )
            seconds[label_at] = time.perf_counter() - started
        ratios.append(seconds["decode"] / seconds["rescore"])
    return ratios[1:]
