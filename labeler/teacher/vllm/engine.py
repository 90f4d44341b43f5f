"""Starts a vLLM engine for labeling. Imports vllm: only what runs in a worker imports this, and late.

vLLM reads its environment when it is imported, so `prepare_process` runs before the import of torch.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig
from labeler.teacher.engine_sizes import (
    CPU_BATCHED_TOKENS,
    CPU_SEQUENCES,
    DEVICE_BATCHED_TOKENS,
    DEVICE_SEQUENCES,
)
from labeler.teacher.model_identity import own_dtype, read_model_config
from labeler.teacher.output_head import Head, HeadChoice, choose_head
from labeler.teacher.vllm.gpu_turns import turns_on_gpus
from labeler.teacher.vllm.orphans import start_guard

CPU_KV_CACHE_BYTES = 1 << 30
"""KV cache of a CPU engine unless `engine_args` says otherwise: an explicit size skips the measuring run."""
ENGINE_CHECK_SEC = 1.0


def parse_cores(cores: str) -> list[int]:
    """Logical CPUs of "0", "0-3" or "0,2"."""
    numbers: list[int] = []
    for part in cores.split(","):
        first, _, last = part.partition("-")
        try:
            numbers.extend(range(int(first), int(last or first) + 1))
        except ValueError:
            raise ValueError(f'cores {cores!r} must be written like "0", "0-3" or "0,2"') from None
    return numbers


def cores_by_rank(numbers: list[int], num_ranks: int) -> str:
    """The cores as vLLM wants them for an engine of several ranks, a list for each: "0,1|2,3"."""
    shares = [numbers[rank::num_ranks] or [numbers[rank % len(numbers)]] for rank in range(num_ranks)]
    return "|".join(",".join(str(number) for number in share) for share in shares)


def prepare_process(teacher_config: TeacherConfig, cores: str | None, machines: int = 1) -> None:
    """Environment and core binding of this process. Takes effect only before torch and vllm are imported.

    An engine on CPU cores of its own runs inside this process: it starts several times faster than one in a
    process tree of its own, and labels as fast. Elsewhere the engine keeps its own process, so that
    the accelerator works on while this process handles results, and ends with this process.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if machines > 1:
        import ray

        # The address by which Ray's nodes know each other, where a machine has several.
        os.environ["VLLM_HOST_IP"] = ray.util.get_node_ip_address()
        # On a CPU: the driver hands out cores only to engines on one machine.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    elif cores is not None:
        _bind(parse_cores(cores), teacher_config.num_ranks)
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
        start_guard()


def _bind(cores: list[int], num_ranks: int) -> None:
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores_by_rank(cores, num_ranks)
    if num_ranks == 1:
        os.sched_setaffinity(0, cores)
        os.environ["OMP_NUM_THREADS"] = str(len(cores))
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def head_choice(teacher_config: TeacherConfig, folder: Path) -> HeadChoice:
    """How this machine's engine computes the logits of the model in `folder`."""
    from vllm.platforms import current_platform

    on_gpu = current_platform.is_cuda() or current_platform.is_rocm()
    return choose_head(teacher_config, read_model_config(folder), on_gpu=on_gpu)


def engine_args(
    teacher_config: TeacherConfig,
    labels_config: LabelsConfig,
    sampling_config: SamplingConfig,
    folder: Path,
    num_logprobs: int,
    *,
    in_engine: bool,
    head: Head,
) -> dict[str, Any]:
    """vLLM's arguments: the job's own table over our defaults, and over both what the labels depend on."""
    arguments = _defaults(labels_config, sampling_config) | teacher_config.engine_args
    arguments.update(
        model=str(folder),
        dtype=own_dtype(folder) if teacher_config.dtype == "auto" else teacher_config.dtype,
        quantization=teacher_config.quantization,
        tensor_parallel_size=teacher_config.tensor_parallel_size,
        pipeline_parallel_size=teacher_config.pipeline_parallel_size,
        max_model_len=teacher_config.max_model_len,
        trust_remote_code=teacher_config.trust_remote_code,
        logprobs_mode="raw_logits" if in_engine else "raw_logprobs",
        max_logprobs=num_logprobs,
        # Sampling defaults of the model's own generation_config must not change the job's.
        generation_config="vllm",
        # Text is only needed to find stop strings.
        skip_tokenizer_init=not (labels_config.mode == "generate" and sampling_config.stop),
        disable_log_stats=True,
        seed=0,
    )
    if in_engine:
        arguments["worker_extension_cls"] = "labeler.teacher.vllm.capture.installing.CaptureExtension"
    if head != "model" or teacher_config.head_dtype == "model":
        overrides = dict(arguments.get("hf_overrides") or {})
        arguments["hf_overrides"] = overrides | {"head_dtype": "model" if head == "model" else "float32"}
    return arguments


def _defaults(labels_config: LabelsConfig, sampling_config: SamplingConfig) -> dict[str, Any]:
    """vLLM's arguments where the job's own table says nothing: how much this machine takes at once."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {
        "max_num_batched_tokens": CPU_BATCHED_TOKENS if on_cpu else DEVICE_BATCHED_TOKENS,
        "max_num_seqs": CPU_SEQUENCES if on_cpu else DEVICE_SEQUENCES,
        # Scored rows must all be computed; only decoding gains from a cached prompt.
        "enable_prefix_caching": labels_config.mode == "generate",
    }
    if on_cpu:
        # Without compilation and with a given cache size the engine starts without a warm-up run;
        # compiled it was no faster here and took two minutes more.
        arguments["enforce_eager"] = True
        if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            arguments["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
        if labels_config.mode == "generate" and sampling_config.temperature > 0:
            # vLLM 0.32's CPU engine dies of a seeded request whose prompt is split over two steps
            # ("CPU Generator does not use offset"). Unsplit, a step takes up to max_model_len tokens.
            arguments["enable_chunked_prefill"] = False
            del arguments["max_num_batched_tokens"]
    return arguments


def start_engine(arguments: dict[str, Any]) -> Any:
    """A vLLM `LLMEngine` with these arguments."""
    import torch
    from vllm import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    set_num_threads = torch.set_num_threads
    if "OMP_NUM_THREADS" in os.environ:
        # Takes effect also where torch was imported before the environment was set.
        set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        with nullcontext() if current_platform.is_cpu() else turns_on_gpus():
            engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    finally:
        # A CPU worker inside this process leaves a stub in its place.
        torch.set_num_threads = set_num_threads
    _wake_when_dead(engine.engine_core)
    if current_platform.is_cpu() and arguments["pipeline_parallel_size"] > 1:
        # vLLM 0.32's CPU engine skips the warm-up that gives later stages their buffers.
        engine.collective_rpc("execute_dummy_batch")
    return engine


def _wake_when_dead(client: Any) -> None:
    """End the wait for an engine process that was killed, which vLLM 0.32's synchronous client never does.

    Its monitor marks the engine dead and closes the socket, and nothing comes out of the queue any more.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    if not hasattr(client, "outputs_queue"):
        return  # The engine runs in this process.
    resources, outputs_queue, finalizer = client.resources, client.outputs_queue, client._finalizer  # noqa: SLF001

    def watch() -> None:
        while finalizer.alive and not resources.engine_dead:
            time.sleep(ENGINE_CHECK_SEC)
        if resources.engine_dead:
            outputs_queue.put(EngineDeadError())

    threading.Thread(target=watch, name="engine-watch", daemon=True).start()


def stop_engine(engine: Any) -> None:
    """Free the engine, its memory and its processes."""
    from vllm.distributed import cleanup_dist_env_and_memory

    engine.engine_core.shutdown()
    del engine
    gc.collect()
    cleanup_dist_env_and_memory()
