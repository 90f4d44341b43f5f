"""Little tokenizers of two kinds, and stores whose whole distributions are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from logitstore.manifest.fields import InputInfo, LabelSpec, Manifest, TeacherInfo, TokenizerInfo
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.records import LabeledSequence, LabelRows
from logitstore.retokenize.store_mapping import retokenize_store
from logitstore.retokenize.tokenization import load_tokenization
from logitstore.store import LogitStore
from tests.logitstore.random_labels import TEMPERATURES, exact_rows

TEACHER_WORDS = ("ca", "cat", " s", " sa", "at", "th", "the")
STUDENT_WORDS = ("at", "cat", " s", "sat", " t", "th", "the", "hat")
TEXTS = [("the cat", " sat the hat"), ("a ", "cat sat é the"), ("", "that cat"), ("hat", " thé cats sat")]


def byte_level(
    folder: Path,
    words: Sequence[str],
    *,
    special: Sequence[str] = (),
    eos: str = "",
    shuffle: int | None = None,
) -> str:
    """A byte-level BPE with all bytes and `words`, in that order of merging; the folder's path."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet]
    merges: list[tuple[str, str]] = []
    for word in words:
        spelled = word.replace(" ", "Ġ")
        halves = [(spelled[:at], spelled[at:]) for at in range(1, len(spelled))]
        merges.append(next(pair for pair in halves if pair[0] in tokens and pair[1] in tokens))
        tokens.append(spelled)
    places = (
        np.arange(len(tokens)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(tokens))
    )
    vocabulary = {token: int(place) for token, place in zip(tokens, places, strict=True)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if eos:
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    return str(folder)


def sentence_piece(folder: Path, words: Sequence[str]) -> str:
    """A BPE with ▁ for the space, a dummy space before each text, and bytes as a fallback."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [*"▁abcdehst"]
    merges: list[tuple[str, str]] = []
    for word in words:
        spelled = word.replace(" ", "▁")
        halves = [(spelled[:at], spelled[at:]) for at in range(1, len(spelled))]
        merges.append(next(pair for pair in halves if pair[0] in tokens and pair[1] in tokens))
        tokens.append(spelled)
    model = models.BPE(
        vocab={token: place for place, token in enumerate(tokens)}, merges=merges, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@dataclass(frozen=True)
class WholeLabels:
    """A store and the logits that its rows were cut from."""

    store: LogitStore
    tokenizer: Tokenizer
    logits_by_record: dict[str, np.ndarray]
    """float64 [N, V] by record id."""


def label_texts(
    uri: str,
    tokenizer_path: str,
    texts: Sequence[tuple[str, str]],
    *,
    top_k: int,
    units: int = 1,
    seed: int = 0,
    tail: str = "",
    prefix: str = "r",
    storage_options: dict[str, object] | None = None,
) -> WholeLabels:
    """(prompt, response) labeled by random logits that fp16 holds; `tail` is a special token at the end."""
    tokenizer = Tokenizer.from_file(str(Path(tokenizer_path) / "tokenizer.json"))
    vocab_size = tokenizer.get_vocab_size()
    spec = LabelSpec(vocab_size, top_k, TEMPERATURES, "logit_f16", "score", "response")
    manifest = Manifest(
        teacher=TeacherInfo("tests/words", None, "0" * 64, "float32", None, "vllm", "0", "in_engine"),
        tokenizer=TokenizerInfo(tokenizer_fingerprint(tokenizer.get_vocab()), vocab_size),
        labels=spec,
        input=InputInfo("memory", "prompt_response", {}),
        created="2026-11-28T00:00:00Z",
        config={"teacher": {"model": tokenizer_path}},
    )
    store = LogitStore.create(uri, manifest, storage_options=storage_options)
    rng = np.random.default_rng(seed)
    logits_by_record: dict[str, np.ndarray] = {}
    sequences: list[LabeledSequence] = []
    for number, (prompt, response) in enumerate(texts):
        prompt_ids = tokenizer.encode(prompt).ids
        ids = [*prompt_ids, *tokenizer.encode(response).ids]
        if tail:
            ids.append(int(tokenizer.token_to_id(tail) or 0))
        label_start = max(1, len(prompt_ids))
        labels_N = np.array(ids[label_start:])
        logits_NV = rng.normal(0, 3, (len(labels_N), vocab_size)).astype(np.float16).astype(np.float64)
        logits_NV[np.arange(len(labels_N)), labels_N] += 4
        logits_NV = logits_NV.astype(np.float16).astype(np.float64) + 0.0
        logits_by_record[f"{prefix}{number}"] = logits_NV
        sequences.append(
            LabeledSequence(
                record_id=f"{prefix}{number}",
                sample_index=0,
                token_ids_T=np.array(ids, np.int32),
                prompt_length=len(prompt_ids),
                label_start=label_start,
                rows=cut_rows(logits_NV, labels_N, top_k),
                loss_mask_N=np.ones(len(labels_N), bool),
                finish_reason="scored",
                flags=("repeated",) if number == 1 else (),
            )
        )
    for unit, part in enumerate(np.array_split(np.arange(len(sequences)), units)):
        chosen = [sequences[place] for place in part]
        store.commit_unit(f"unit-{unit}", unit, chosen, seconds=0.0, worker="test")
    return WholeLabels(store, tokenizer, logits_by_record)


def cut_rows(logits_NV: np.ndarray, labels_N: np.ndarray, top_k: int) -> LabelRows:
    order_NV = np.argsort(-logits_NV, axis=1, kind="stable")
    rest_NV = np.take_along_axis(logits_NV, order_NV[:, top_k:], axis=1)
    return exact_rows(logits_NV, order_NV[:, :top_k], rest_NV, labels_N)


def mapped(
    source: LogitStore, teacher: str, student: str, uri: str | Path, merge_spans: bool = False
) -> LogitStore:
    left = load_tokenization(teacher, vocab_size=source.manifest.labels.vocab_size)
    right = load_tokenization(student)
    target, _ = retokenize_store(source, str(uri), teacher=left, student=right, merge_spans=merge_spans)
    return target
