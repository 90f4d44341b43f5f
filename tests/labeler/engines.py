"""The real engines that labeler tests share: two of them, each started on its first use.

`score_teacher` and `generate_teacher` are one engine that changes its labels: ask for the one meant
before every use.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig
from labeler.errors import PromptError
from labeler.records import TokenizedPrompt
from labeler.teacher.protocol import Teacher
from labeler.teacher.vllm.teacher import VllmTeacher
from logitstore.records import LabeledSequence
from logitstore.store import LogitStore

MODEL = Path(__file__).parents[2] / ".demo" / "teacher"
needs_model = pytest.mark.skipif(
    not MODEL.exists(), reason="no demo teacher in .demo/teacher; `make setup` makes it"
)
MAX_MODEL_LEN = 256
TEXTS = (
    "The moon pulls at the water on both sides of the Earth, which is why there are two tides a day.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)\n",
    "Question: A train leaves at 9:40 and arrives at 12:05. How long is the journey? Answer: 2 hours 25 minutes.",
    "Bread rises because yeast eats sugar and breathes out gas; the gluten holds the bubbles in place. "
    "Knead for ten minutes, let the dough double, shape it, and bake it hot with some steam.",
    "Zażółć gęślą jaźń – 東京 is the capital of Japan, Ελλάδα is Greece, and 🙂 is a smile.",
    '{"name": "Ada", "year": 1815, "tags": ["mathematics", "engine"], "alive": false}',
    "Once upon a time there was a lighthouse keeper who collected the sounds of storms in glass jars.",
    "SELECT city, COUNT(*) AS n FROM visits WHERE year >= 2020 GROUP BY city ORDER BY n DESC LIMIT 10;",
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer the slings and arrows",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584, 4181, 6765, 10946",
)
"""Prose, code, numbers, a dialogue and other scripts."""
QUESTIONS = (
    "Name three colours.",
    "What is two plus two?",
    "Why is the sky blue?",
    "Write one line about rain.",
)
SCORE = LabelsConfig(mode="score", top_k=64)
GENERATE = LabelsConfig(mode="generate", top_k=64, label_at="decode")
SAMPLING = SamplingConfig(temperature=0.8, top_p=0.95, max_tokens=12, n=2, stop=("\n\n",))
GREEDY_SAMPLING = SamplingConfig(temperature=0.0, max_tokens=40)
STRESS_ARGS = {
    "max_num_batched_tokens": 48,
    "max_num_seqs": 8,
    "block_size": 32,
    "num_gpu_blocks_override": 12,
}
"""Prompts in pieces of at most 48 tokens, and a KV cache of 352 tokens that several answers overflow."""


def start(config: TeacherConfig, labels: LabelsConfig, sampling: SamplingConfig) -> VllmTeacher:
    """An engine in this process, as an actor with cores of its own has it, but bound to no core.

    It is closed when the tests end: closing one of several would take the others' groups along.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        teacher = VllmTeacher(config, labels, sampling, cores=None)
    finally:
        del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]
    atexit.register(teacher.close)
    return teacher


def _start(sampling: SamplingConfig, engine_args: dict[str, object]) -> VllmTeacher:
    config = TeacherConfig(
        model=str(MODEL), max_model_len=MAX_MODEL_LEN, capture="in_engine", engine_args=engine_args
    )
    return start(config, GENERATE, sampling)


@cache
def _roomy_teacher() -> VllmTeacher:
    # Blocks of the cache small enough for the prompts here to fill some.
    return _start(SAMPLING, {"kv_cache_memory_bytes": 256 << 20, "block_size": 32})


def score_teacher() -> VllmTeacher:
    """Scores."""
    teacher = _roomy_teacher()
    teacher.change_labels(SCORE)
    return teacher


def generate_teacher() -> VllmTeacher:
    """Samples two responses with a stop string and a cached prompt, labels at decode time."""
    teacher = _roomy_teacher()
    teacher.change_labels(GENERATE, SAMPLING)
    return teacher


@cache
def stressed_teacher() -> VllmTeacher:
    """Writes greedily in an engine too small for its work: prompts in pieces, requests preempted."""
    return _start(GREEDY_SAMPLING, dict(STRESS_ARGS))


@cache
def tokenizer() -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(MODEL))


@cache
def reference_model() -> Any:
    """The demo's teacher in transformers, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(MODEL), dtype=torch.float32).eval()


def encode(text: str) -> np.ndarray:
    """int32 ids of plain text."""
    return np.asarray(tokenizer()(text)["input_ids"], np.int32)  # type: ignore[operator]


def text_prompts(texts: tuple[str, ...] = TEXTS) -> list[TokenizedPrompt]:
    """Texts to score as a whole."""
    empty = np.empty(0, np.int32)
    return [TokenizedPrompt(f"text-{index}", empty, encode(text), 1) for index, text in enumerate(texts)]


def chat_prompt(record_id: str, question: str, label_start: int | None = None) -> TokenizedPrompt:
    """A question in the chat template, to answer; labels from the response on, or from `label_start`."""
    encoded = tokenizer().apply_chat_template(  # type: ignore[attr-defined]
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
    )
    ids = np.asarray(encoded["input_ids"], np.int32)
    return TokenizedPrompt(record_id, ids, None, len(ids) if label_start is None else label_start)


def question_prompts(label_start: int | None = None) -> list[TokenizedPrompt]:
    """The questions, each as a record."""
    return [chat_prompt(f"question-{index}", text, label_start) for index, text in enumerate(QUESTIONS)]


def labeled(teacher: Teacher, prompts: list[TokenizedPrompt]) -> dict[tuple[str, int], LabeledSequence]:
    """Everything `teacher` makes of `prompts`, none of which may fail."""
    results: dict[tuple[str, int], LabeledSequence] = {}
    for item in teacher.label(prompts):
        assert not isinstance(item, PromptError), str(item)
        key = (item.record_id, item.sample_index)
        assert key not in results
        results[key] = item
    return results


def scored_again(sequences: list[LabeledSequence], teacher: Teacher) -> dict[str, LabeledSequence]:
    """The same token ids with the same label positions, scored by `teacher`; by "<record>/<sample>"."""
    prompts = [
        TokenizedPrompt(
            f"{item.record_id}/{item.sample_index}",
            item.token_ids_T[: item.prompt_length],
            item.token_ids_T[item.prompt_length :],
            item.label_start,
        )
        for item in sequences
    ]
    return {key[0]: value for key, value in labeled(teacher, prompts).items()}


def write_even_model(folder: Path) -> Path:
    """A small model of random weights whose heads two ranks can share (the demo teacher has nine)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in MODEL.iterdir():
        if "token" in path.name or path.suffix in (".txt", ".jinja"):
            shutil.copy(path, folder)
    return folder


def assert_labels_are_those_of_transformers(store: Path, model_folder: Path) -> None:
    """Every tenth sequence of a store, at temperatures 1, 2 and 4."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    for sequence in itertools.islice(LogitStore.open(store).iter_sequences(), 0, None, 10):
        with torch.inference_mode():
            logits_TV = model(torch.as_tensor(sequence.token_ids_T[None].astype(np.int64))).logits[0]
        logits_NV = logits_TV[sequence.label_start - 1 : -1].double().numpy()
        theirs_NK = np.take_along_axis(logits_NV, sequence.rows.token_ids_NK.astype(np.int64), 1)
        assert np.abs(theirs_NK - sequence.rows.logits_NK).max() < 1e-2
        np.testing.assert_array_equal(sequence.rows.token_ids_NK[:, 0], logits_NV.argmax(axis=1))
        for index, temperature in enumerate((1.0, 2.0, 4.0)):
            whole_N = np.logaddexp.reduce(logits_NV / temperature, axis=1)
            assert np.abs(sequence.rows.logsumexp_NM[:, index] - whole_N).max() < 1e-3
