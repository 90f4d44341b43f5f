"""Whether the labeler fits a vLLM, installed or not, and what that vLLM changed of the sources it relies on.

`vllm_sources.json` holds, of each source that the labeler replaces, wraps or relies on, a digest of every
line as the labeler was written against it. Run it on every new vLLM, and `--write` the record again once the
labeler fits what is new. No vLLM is imported: a wheel from `pip download vllm==VERSION --no-deps` is enough.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.labels.vllm_tree import VllmTree, installed_tree, tree_at
from labeler.teacher import known_vllm

RECORD = Path(__file__).with_name("vllm_sources.json")
SOURCES = {
    "vllm.v1.sample.sampler:Sampler.gather_logprobs": "replaced on the V1 runner",
    "vllm.v1.worker.gpu.sample.logprob:compute_topk_scores": "replaced on the V2 runner",
    "vllm.v1.engine.logprobs:LogprobsProcessor": "replaced in the front end",
    "vllm.v1.worker.gpu.sample.prompt_logprob:": "calls the replaced function for prompts, in chunks of rows",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._get_prompt_logprobs_dict": "calls it on the V1 runner",
    "vllm.v1.sample.sampler:Sampler.forward": "calls it for sampled tokens on the V1 runner",
    "vllm.v1.core.sched.scheduler:Scheduler._preempt_request": "throws out a request that is computed again",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.finish_requests": "forgets it on the V2 runner",
    "vllm.v1.worker.gpu.sample.sampler:Sampler": "calls the replaced function for sampled tokens",
    "vllm.v1.worker.gpu.sample.batch_shard:_gather_logprobs_tensors": "collects rows of several ranks",
    "vllm.v1.outputs:LogprobsTensors": "holds the rows on their way",
    "vllm.model_executor.layers.logits_processor:LogitsProcessor": "makes the logits; keeps the float32 sums",
    "vllm.config.model:_get_head_dtype": "reads head_dtype",
    "vllm.v1.worker.worker_base:WorkerWrapperBase.init_worker": "mixes the capture into the worker",
    "vllm.v1.engine.core_client:SyncMPClient": "is woken when the engine's process is killed",
    "vllm.v1.engine.llm_engine:LLMEngine": "is the engine",
    "vllm.v1.engine:FinishReason": "says how a request ended",
    "vllm.exceptions:": "says whose fault a refused request is",
}
"""What the labeler does with each, by module and name; without a name it is the whole module."""
ARGUMENTS = {
    "vllm.engine.arg_utils:EngineArgs": (
        "disable_log_stats", "distributed_executor_backend", "dtype", "enable_chunked_prefill",
        "enable_prefix_caching", "enforce_eager", "generation_config", "hf_overrides",
        "kv_cache_memory_bytes", "logprobs_mode", "master_addr", "master_port", "max_logprobs",
        "max_model_len", "max_num_batched_tokens", "max_num_seqs", "model", "nnodes", "node_rank",
        "pipeline_parallel_size", "quantization", "seed", "skip_tokenizer_init", "tensor_parallel_size",
        "trust_remote_code", "worker_extension_cls",
    ),
    "vllm.sampling_params:SamplingParams": (
        "detokenize", "extra_args", "flat_logprobs", "frequency_penalty", "logprobs", "max_tokens", "min_p",
        "min_tokens", "output_kind", "presence_penalty", "prompt_logprobs", "repetition_penalty", "seed",
        "skip_clone", "skip_special_tokens", "stop", "stop_token_ids", "temperature", "top_k", "top_p",
    ),
    "vllm.v1.worker.gpu.input_batch:InputBatch": (
        "num_computed_prefill_tokens_np", "num_tokens", "query_start_loc_np", "req_ids",
    ),
}  # fmt: skip
"""Fields by which the labeler gives arguments or reads a step, by the class that has them."""
DIGEST_BYTES = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--of", type=Path, metavar="PATH", help="a vLLM wheel, or the folder that one was unpacked to"
    )
    parser.add_argument("--write", action="store_true", help="take these sources as the known ones")


def run(args: argparse.Namespace) -> int:
    tree = installed_tree() if args.of is None else tree_at(args.of)
    if args.write:
        record = {"version": tree.version, "lines": {name: digests(tree, name) for name in SOURCES}}
        RECORD.write_text(json.dumps(record, indent=0) + "\n")
        return 0
    record = json.loads(RECORD.read_text())
    changes = compare(tree, record["lines"])
    lacking = dict(lacking_fields(tree))
    print(f"vLLM {tree.version}, compared with {record['version']}:")
    for name, use in SOURCES.items():
        lines = changes.get(name, [])
        print(f"{name} ({use}): {'CHANGED' if lines else 'as known'}")
        for line in lines:
            print(f"    {line}")
    for name in ARGUMENTS:
        missing = lacking.get(name, [])
        print(f"{name}: {'LACKS ' + ', '.join(missing) if missing else 'has every field that is used'}")
    for line in verdicts(tree):
        print(line)
    return 1 if changes or lacking else 0


def verdicts(tree: VllmTree) -> Iterator[str]:
    """What the labeler would do with this vLLM, in sentences."""
    refusals = [
        known_vllm.capture_refusal(tree.version, runner, tree.source_hash) for runner in known_vllm.RUNNERS
    ]
    reason = next((found for found in refusals if found), None)
    if reason is None:
        yield "labels with exact tails at every temperature: yes, on both model runners"
    else:
        yield (
            f'labels with exact tails at every temperature: NO, at T=1 only, capture = "public_api": {reason}'
        )
    refusals = [known_vllm.given_refusal(runner, tree.source_hash) for runner in known_vllm.RUNNERS]
    reason = reason or next((found for found in refusals if found), None)
    yield "labels at given ids (labels.given): " + ("yes" if reason is None else f"NO: {reason}")
    arrays = known_vllm.keeps_arrays(tree.source_hash)
    yield f"rows stay arrays in the front end: {'yes' if arrays else 'NO, the same labels at a lower rate'}"


def lacking_fields(tree: VllmTree) -> Iterator[tuple[str, list[str]]]:
    """Classes of `ARGUMENTS` that lack some of their fields."""
    for name, used in ARGUMENTS.items():
        found = tree.fields(*name.split(":"))
        missing = [field for field in used if field not in found]
        if missing:
            yield name, missing


def source_lines(tree: VllmTree, name: str) -> list[str] | None:
    """Lines of a source, blank ones left out; None if there is no such thing."""
    module_name, _, qualified_name = name.partition(":")
    source = tree.source(module_name, qualified_name)
    if source is None:
        return None
    return [line.rstrip() for line in source.splitlines() if line.strip()]


def digests(tree: VllmTree, name: str) -> list[str]:
    """A short digest of every line."""
    lines = source_lines(tree, name)
    if lines is None:
        raise ValueError(f"this vLLM has no {name}; correct SOURCES")
    return [_digest(line) for line in lines]


def _digest(line: str) -> str:
    return hashlib.blake2b(line.encode(), digest_size=DIGEST_BYTES).hexdigest()


def compare(tree: VllmTree, known: dict[str, list[str]]) -> dict[str, list[str]]:
    """What changed of each source, in lines for people; those as known are left out."""
    changes: dict[str, list[str]] = {}
    for name in SOURCES:
        lines = source_lines(tree, name)
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
