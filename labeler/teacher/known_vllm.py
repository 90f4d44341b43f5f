"""Which sources of vLLM the labeler was written against. Imports neither torch nor vllm.

What it replaces inside vLLM fits only the source that it was written for, so these are known by their
hashes: those of the installed vLLM when an engine starts, or of any other one for `penumbra bench sources`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, Literal

Runner = Literal["v1", "v2"]
"""vLLM's two model runners; on a GPU the second runs where it can."""
RUNNERS: tuple[Runner, ...] = ("v1", "v2")
SourceHash = Callable[[str, str], str | None]
"""sha256 of the source of a function or class, by module and qualified name; None if there is no such."""

REPLACED: dict[Runner, tuple[str, str]] = {
    "v1": ("vllm.v1.sample.sampler", "Sampler.gather_logprobs"),
    "v2": ("vllm.v1.worker.gpu.sample.logprob", "compute_topk_scores"),
}
"""What the capture stands in for."""
SOURCES_BY_VERSION: dict[str, dict[Runner, str]] = {
    "0.32.0": {
        "v1": "ca39ba3c4e61572e6f8e8a9d8c14389e8f7d3f965cf9eab21c6c94bf36bfd890",
        "v2": "16a0e64b66a7a120456e1bf7b9f16747a7cdc185e6154340401c4855d6874782",
    },
    "0.33.0": {
        "v1": "ca39ba3c4e61572e6f8e8a9d8c14389e8f7d3f965cf9eab21c6c94bf36bfd890",
        "v2": "16a0e64b66a7a120456e1bf7b9f16747a7cdc185e6154340401c4855d6874782",
    },
}
"""Their hashes, by vLLM version."""
WATCHED: dict[Runner, tuple[str, str]] = {
    "v1": ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._get_prompt_logprobs_dict"),
    "v2": ("vllm.v1.worker.gpu.sample.prompt_logprob", "PromptLogprobsWorker.compute_prompt_logprobs"),
}
"""What calls these with rows whose order must be known, for labels at given ids."""
WATCHED_SOURCES: dict[Runner, str] = {
    "v1": "889fdb068dfc37ddf4827e8f3af2d99ff790fbd3c77ff4a05eec1e3d0f1f560f",
    "v2": "ea18d7a518d1eb004f63bf2cdff7aeb4e4979ec75ef6f7469f1d301dd1173cfb",
}
"""Their hashes, the same in vLLM 0.32 and 0.33."""
PROCESSOR = ("vllm.v1.engine.logprobs", "LogprobsProcessor")
"""What makes Python lists of label rows in the front end."""
PROCESSOR_SOURCES = frozenset({"1ea97a520599bc1e7f66587dce1facabe8977ab2d6648600b9b158b9cf1d99d6"})
"""Hashes of those that the one which keeps arrays can stand in for; vLLM 0.32 and 0.33 have the same."""


def installed_hash(module_name: str, qualified_name: str) -> str | None:
    """`SourceHash` of the installed vLLM, which it imports."""
    try:
        target: Any = importlib.import_module(module_name)
        for part in qualified_name.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError):
        return None
    return sha256(inspect.getsource(target))


def sha256(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def capture_refusal(version: str, runner: Runner, source_hash: SourceHash = installed_hash) -> str | None:
    """Why the capture must not be installed in this runner of this vLLM, or None."""
    known = SOURCES_BY_VERSION.get(version)
    if known is None:
        return f"vLLM {version} is not among the versions the capture knows ({', '.join(SOURCES_BY_VERSION)})"
    if source_hash(*REPLACED[runner]) != known[runner]:
        return f"{'.'.join(REPLACED[runner])} of this vLLM {version} is not the released one"
    return None


def given_refusal(runner: Runner, source_hash: SourceHash = installed_hash) -> str | None:
    """Why rows of this runner cannot be had at given ids, or None."""
    if source_hash(*WATCHED[runner]) == WATCHED_SOURCES[runner]:
        return None
    return f"{'.'.join(WATCHED[runner])} of this vLLM is not the one that rows at given ids were written for"


def keeps_arrays(source_hash: SourceHash = installed_hash) -> bool:
    """Whether label rows can stay arrays in the front end."""
    return source_hash(*PROCESSOR) in PROCESSOR_SOURCES
