"""What an installed vLLM changed of the sources that the labeler replaces, wraps or relies on.

`vllm_sources.json` holds, of each of them, a digest of every line as the labeler was written against it. Run
it on every new vLLM, and `--write` the record again once the labeler fits what is new.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("vllm_sources.json")
SOURCES = {
    "vllm.v1.sample.sampler:Sampler.gather_logprobs": "replaced on the V1 runner",
    "vllm.v1.worker.gpu.sample.logprob:compute_topk_scores": "replaced on the V2 runner",
    "vllm.v1.engine.logprobs:LogprobsProcessor": "replaced in the front end",
    "vllm.v1.worker.gpu.sample.prompt_logprob:": "calls the replaced function for prompts, in chunks of rows",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._get_prompt_logprobs_dict": "calls it on the V1 runner",
    "vllm.v1.core.sched.scheduler:Scheduler._preempt_request": "throws out a request that is computed again",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.finish_requests": "forgets it on the V2 runner",
    "vllm.v1.worker.gpu.sample.sampler:Sampler": "calls the replaced function for sampled tokens",
    "vllm.model_executor.layers.logits_processor:LogitsProcessor._apply_head": "keeps the float32 sums",
    "vllm.config.model:_get_head_dtype": "reads head_dtype",
    "vllm.v1.worker.worker_base:WorkerWrapperBase.init_worker": "mixes the capture into the worker",
    "vllm.v1.engine.core_client:SyncMPClient": "is woken when the engine's process is killed",
    "vllm.v1.engine:FinishReason": "says how a request ended",
    "vllm.exceptions:": "says whose fault a refused request is",
}
"""What the labeler does with each, by module and name; without a name it is the whole module."""
DIGEST_BYTES = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", action="store_true", help="take the installed sources as the known ones")


def run(args: argparse.Namespace) -> int:
    import vllm

    if args.write:
        record = {"version": vllm.__version__, "lines": {name: digests(name) for name in SOURCES}}
        RECORD.write_text(json.dumps(record, indent=0) + "\n")
        return 0
    record = json.loads(RECORD.read_text())
    changes = compare(record["lines"])
    print(f"vLLM {vllm.__version__}, compared with {record['version']}:")
    for name, use in SOURCES.items():
        lines = changes.get(name, [])
        print(f"{name} ({use}): {'CHANGED' if lines else 'as known'}")
        for line in lines:
            print(f"    {line}")
    return 1 if changes else 0


def source_lines(name: str) -> list[str] | None:
    """Lines of what is installed under this name, blank ones left out; None if there is no such thing."""
    module_name, _, qualified_name = name.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
        for part in qualified_name.split(".") if qualified_name else ():
            target = getattr(target, part)
    except (ImportError, AttributeError):
        return None
    return [line.rstrip() for line in inspect.getsource(target).splitlines() if line.strip()]


def digests(name: str) -> list[str]:
    """A short digest of every line."""
    lines = source_lines(name)
    if lines is None:
        raise ValueError(f"this vLLM has no {name}; correct SOURCES")
    return [_digest(line) for line in lines]


def _digest(line: str) -> str:
    return hashlib.blake2b(line.encode(), digest_size=DIGEST_BYTES).hexdigest()


def compare(known: dict[str, list[str]]) -> dict[str, list[str]]:
    """What changed of each source, in lines for people; those as known are left out."""
    changes: dict[str, list[str]] = {}
    for name in SOURCES:
        lines = source_lines(name)
        if lines is None:
            changes[name] = ["it is gone"]
            continue
        before, after = known.get(name, []), [_digest(line) for line in lines]
        found: list[str] = []
        matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
        for kind, start, end, new_start, new_end in matcher.get_opcodes():
            if kind == "equal":
                continue
            if end > start:
                found.append(f"- {end - start} lines from line {start + 1} (blank ones not counted)")
            found += [f"+ {line}" for line in lines[new_start:new_end]]
        if found:
            changes[name] = found
    return changes
