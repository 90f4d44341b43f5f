"""Command line of the measurements and the demo: `penumbra bench PART`.

Exit status: 0 done, 1 a check failed (bench-check lost more than 15%, the demo missed its mark, a part of
`all` failed), 2 wrong usage or configuration, or a measurement that could not be made, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from logitstore.common.command import Program, new_parser, run_program
from logitstore.common.options import amount, positive

MEASUREMENTS = {
    "recommend": "K, disk, cost and workers for your teacher, prompts, tokens and deadline",
    "storage": "bytes per token and fidelity by K and layout",
    "decode": "tokens decoded per second by K",
    "labeling": "labeling rate by K against the fair bound, start-up time",
    "loading": "tokens streamed per second into a training loop",
    "training": "time and memory of the losses",
    "fidelity": "what top-K with an exact tail loses against the full distribution",
    "faults": "seconds lost to a killed actor, driver or worker",
    "schedules": "random schedules of lost requests and replies, tried and survived",
    "curation": "planted repeats among prompts that are found, by threshold",
    "scale": "cost against the number of units, shards, rows and workers",
    "store": "a store of 100,000 sequences: looked up, deleted from, copied, published, out and back",
}
COMMANDS = {
    "all": "every measurement above, then RESULTS.md",
    "plan": "bytes, hours and money of a job from measured rates",
    "check": "compare fresh ratios with the committed results",
    "agreement": "a store's labels against transformers in float32",
    "storm": "a real job while its workers are killed at random, against the same job left alone",
    "leases": "what the labeler's driver costs per unit with a thousand replicas that do nothing",
    "gpu": "kernels, losses and engines on a GPU, beside what they took before; goes on where it stopped",
    "sources": "what an installed vLLM changed of the sources that the labeler replaces or relies on",
    "demo": "label, store, verify, train and report with the demo teacher",
    "prompted": "a student that behaves as if it had its teacher's system prompt: KL before and after",
    "retokenized": "a student of another tokenizer, on mapped labels and on the text alone, compared",
    "sweep": "sixteen students of the demo's labels, killed on the way: time, what is skipped, the best",
    "parity": "the demo's students beside their teacher on GSM8K",
    "teacher": "convert the packaged demo teacher to a model folder, once",
    "student": "make the demo's untrained student of half of its teacher's layers, once",
    "answers": "what students say to held-out prompts, beside their teacher",
}
MODULES = {
    "storage": "benchmarks.sizes.storage",
    "decode": "benchmarks.sizes.decode",
    "labeling": "benchmarks.labels.labeling",
    "loading": "benchmarks.students.loading",
    "training": "benchmarks.students.training",
    "fidelity": "benchmarks.students.fidelity",
    "faults": "benchmarks.jobs.faults",
    "schedules": "benchmarks.schedules.schedules",
    "curation": "benchmarks.labels.curation",
    "scale": "benchmarks.jobs.scale",
    "store": "benchmarks.jobs.large_store",
    "all": "benchmarks.suite",
    "plan": "benchmarks.advice.plan",
    "recommend": "benchmarks.advice.recommend",
    "check": "benchmarks.report.check",
    "agreement": "benchmarks.labels.agreement",
    "storm": "benchmarks.jobs.storm",
    "leases": "benchmarks.jobs.leases",
    "gpu": "benchmarks.gpu.command",
    "sources": "benchmarks.labels.vllm_sources",
    "demo": "benchmarks.demo.demo",
    "prompted": "benchmarks.demo.prompted",
    "retokenized": "benchmarks.demo.retokenized",
    "sweep": "benchmarks.students.sweep",
    "parity": "benchmarks.students.parity",
    "teacher": "benchmarks.demo.demo_teacher",
    "student": "benchmarks.demo.demo_student",
    "answers": "benchmarks.demo.answers",
}
"""The module behind each part; only the one asked for is imported."""
FILLING_A_FOLDER = (
    "all",
    "agreement",
    "storm",
    "leases",
    "gpu",
    "prompted",
    "retokenized",
    "sweep",
    "parity",
)
"""Commands with results in the folder `--out`, as every measurement has them."""
PROGRAM = Program(
    name="bench",
    description="Measure labeling, storing and training; choose K by what was measured; run the demo.",
    extra="label-cpu,train,bench",
    examples="""examples:
  penumbra bench storage --top-k 16,64
  penumbra bench all --quick --out build/bench
  penumbra bench plan --tokens 1e12 --top-k 64 --gpus 64 --rate 20000
""",
)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        args = build_parser(arguments).parse_args(arguments)
        if args.fills_a_folder:  # a place that cannot be written shows now, not at the end
            args.out.mkdir(parents=True, exist_ok=True)
        return args.run(args)

    return run_program(PROGRAM, command)


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only the module of the part that was asked for is imported."""
    parser = new_parser(PROGRAM)
    parts = parser.add_subparsers(required=True, metavar="PART")
    asked_for = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in {**MEASUREMENTS, **COMMANDS}.items():
        part = parts.add_parser(name, help=summary, description=summary)
        if name != asked_for:
            continue
        module = importlib.import_module(MODULES[name])
        if name in MEASUREMENTS or name == "all":
            add_common_arguments(part)
        module.add_arguments(part)
        part.set_defaults(run=module.run, fills_a_folder=name in (*MEASUREMENTS, *FILLING_A_FOLDER))
    return parser


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What every measurement takes; each adds its own beside these."""
    parser.add_argument("--quick", action="store_true", help="smaller inputs and fewer repetitions")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of the JSON and plots")
    parser.add_argument("--teacher", default=".demo/teacher", help="Hugging Face id or folder of a model")
    parser.add_argument("--gpus", type=amount, default=0, help="GPUs of one engine; 0 runs it on a CPU core")
    parser.add_argument("--input", help="prompts: JSONL, Parquet or Arrow (default: those of the demo)")
    parser.add_argument("--fields", type=parse_fields, default={}, metavar="ROLE=NAME,...",
                        help="the input's fields, such as prompt=question,response=answer")  # fmt: skip
    parser.add_argument("--records", type=positive, help="of the input that are labeled (default 128)")
    parser.add_argument("--capture", type=Path, help="npz of logits to measure sizes and reading on as well")
    parser.add_argument("--capture-only", action="store_true",
                        help="measure those on the capture alone, which needs no teacher")  # fmt: skip
    parser.add_argument("--top-k", type=parse_top_k, default=(8, 16, 32, 64, 128), metavar="K,K,...",
                        help="stored entries to measure at (default 8,16,32,64,128)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print no table")


def parse_fields(text: str) -> dict[str, str]:
    """ "prompt=question,response=answer" -> {"prompt": "question", "response": "answer"}."""
    pairs = [word.partition("=") for word in text.split(",")]
    if not all(role and name for role, _, name in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROLE=NAME,...; for example prompt=question")
    return {role: name for role, _, name in pairs}


def parse_top_k(text: str) -> tuple[int, ...]:
    """ "8,16" -> (8, 16)."""
    return tuple(sorted({positive(word) for word in text.split(",")}))


if __name__ == "__main__":
    sys.exit(main())
