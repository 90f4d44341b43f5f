"""vLLM options that the labeler sets itself, so `[teacher.engine_args]` must not.

A plain tuple: the configuration validates against it without importing vllm.
"""

from __future__ import annotations

OWNED_ENGINE_ARGS: tuple[str, ...] = (
    # Named by their own keys of the job file.
    "model",
    "tokenizer",
    "revision",
    "tokenizer_revision",
    "dtype",
    "quantization",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "max_model_len",
    "trust_remote_code",
    # How labels are captured; another value gives wrong labels or none.
    "logprobs_mode",
    "max_logprobs",
    "worker_extension_cls",
    "worker_cls",
    "skip_tokenizer_init",
    "generation_config",
    "override_generation_config",
    "kv_sharing_fast_prefill",
    "enable_prompt_embeds",
    "logits_processors",
    "runner",
    "convert",
    "task",
    # Labels must be those of an engine that the labeler starts and ends.
    "distributed_executor_backend",
    "nnodes",
    "node_rank",
    "master_addr",
    "master_port",
    "disable_log_stats",
    "seed",
)
"""Keys refused in `engine_args`."""

NOT_SUPPORTED: dict[str, str] = {
    "enable_lora": "adapters are not applied; merge the adapter into its base model (peft: merge_and_unload, "
    "then save_pretrained) and give that folder as teacher.model",
    "speculative_config": "labels are those of the teacher itself; remove it",
    "data_parallel_size": "engines side by side are replicas; set workers.replicas instead",
}
"""Keys of what the labeler does not do, and what to do instead."""
