"""What a run reads: datasets of its stores and texts, checked, and how batches are made of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from logitstore.common.config_file import ConfigError
from logitstore.store import LogitStore
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.packed_rows import Packing
from trainer.data.sources import HeldOut, StoreSpec
from trainer.errors import TrainingWarning
from trainer.hf.checks.guards import check_temperature, check_tokenizer, real_vocab_size
from trainer.loss.loss_settings import LossSettings
from trainer.run.config import TrainConfig
from trainer.run.file_names import TEXTS_NAME
from trainer.run.reading.texts import dropped_records, text_store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def datasets(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[StreamingLogitDataset, StreamingLogitDataset]:
    """(training, held-out), their stores checked against the tokenizer and the loss."""
    data = config.data
    make: Callable[..., StreamingLogitDataset] = _dataset_maker(config, _texts(config, tokenizer))
    train_set = make(batch_size=config.training.batch_size, side="train", top_k=data.top_k)
    held_out = make(batch_size=config.evaluation.batch_size, side="held_out", top_k=None)
    for source in [*train_set.sources, *held_out.sources]:
        check_tokenizer(source.manifest, tokenizer.get_vocab(), where=source.uri)
    for source, store in zip(train_set.sources, data.stores, strict=False):
        temperature, alpha = (
            _own(store.temperature, config.loss.temperature),
            _own(store.alpha, config.loss.alpha),
        )
        if source.manifest.labels.support == "none" and alpha > 0:
            raise ConfigError(
                f"{source.uri} holds texts alone and alpha = {alpha:g} wants a teacher's distributions; set "
                "loss.alpha = 0, or alpha = 0 of this store in data.stores, or give its texts as data.texts "
                f"beside labels (penumbra store export {source.uri} --to messages texts.jsonl)"
            )
        if alpha > 0:
            check_temperature(source.manifest.labels, temperature, config.loss.tail, where=source.uri)
    if not train_set.num_sequences + held_out.num_sequences:
        raise ConfigError("data.stores: no sequence is left, the stores are empty or `where` selects none")
    if not held_out.num_sequences and config.evaluation.stores is not None:
        raise ConfigError("evaluation.stores: no sequence is left, they are empty or `where` selects none")
    if not held_out.num_sequences:
        raise ConfigError(
            f"data.held_out_fraction = {data.held_out_fraction} holds no record out of "
            f"{train_set.num_sequences} sequences; raise it, since students are compared on held-out records"
        )
    return train_set, held_out


def _own(value: float | None, of_all: float) -> float:
    return of_all if value is None else value


def store_losses(config: TrainConfig, loss: LossSettings) -> list[LossSettings]:
    return [
        replace(
            loss, alpha=_own(store.alpha, loss.alpha), temperature=_own(store.temperature, loss.temperature)
        )
        for store in config.data.stores
    ] + [replace(loss, alpha=0.0)] * len(config.data.texts)


def _texts(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> list[StoreSpec]:
    """Plain text as stores, as wide as the first store's labels."""
    if not config.data.texts:
        return []
    first = config.data.stores[0]
    width = LogitStore.open(first.uri, storage_options=first.storage_options).manifest.labels.vocab_size
    folder, weighted = Path(config.output.folder, TEXTS_NAME), bool(config.data.segments)
    stores = []
    for text in config.data.texts:
        path = text_store(text, tokenizer, folder, vocab_size=width, with_segments=weighted)
        if dropped := dropped_records(path):
            warnings.warn(
                f"data.texts: {len(dropped)} records of {text.uri} are left out, the first of them: "
                f"{dropped[0].reason}",
                TrainingWarning,
                stacklevel=2,
            )
        stores.append(StoreSpec(str(path), text.weight, is_text=True))
    return stores


def _dataset_maker(config: TrainConfig, texts: list[StoreSpec]) -> Callable[..., StreamingLogitDataset]:
    data, own = config.data, config.evaluation.stores
    packing = None
    if data.pack_length is not None:
        packing = Packing(data.pack_length, data.max_length, data.pack_buffer_rows)

    def make(batch_size: int, side: Literal["train", "held_out"], top_k: int | None) -> StreamingLogitDataset:
        whole = side == "held_out" and own is not None
        stores = own if side == "held_out" and own is not None else data.stores
        return StreamingLogitDataset(
            [
                *(
                    StoreSpec(
                        store.uri,
                        store.weight,
                        store.storage_options,
                        store.where,
                        store.ids,
                        store.without_ids,
                    )
                    for store in stores
                ),
                *(texts if side == "train" else []),
            ],
            batch_size=batch_size,
            shuffle=data.shuffle or side == "held_out",
            seed=data.seed if side == "train" else 0,  # runs of any seed are judged by the same records
            num_splits=data.num_splits,
            top_k=top_k,
            held_out=None if whole else HeldOut(data.held_out_fraction, side),
            cache_dir=data.cache_dir,
            cache_limit=data.cache_limit,
            predownload=data.predownload,
            even=side == "train",
            packing=packing if side == "train" else None,
        )

    return make


def collate_settings(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> CollateSettings:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return CollateSettings(
        pad_token_id=pad if isinstance(pad, int) else 0,
        temperature=config.loss.temperature,
        renormalize=config.loss.tail in ("renormalize", "zero"),
        with_teacher=config.loss.alpha > 0,
        max_length=config.data.max_length,
        pack_length=config.data.pack_length,
        packed_attention=config.data.packed_attention,
        segment_weights={str(name): weight for name, weight in config.data.segments.items()} or None,
    )


def real_size(config: TrainConfig, dataset: StreamingLogitDataset, model: Any) -> int | None:
    """Ids that take part in the loss; None if all do. Raises GuardError for vocabularies that do not fit."""
    width = model.get_output_embeddings().weight.shape[0]
    sizes = [
        real_vocab_size(source.manifest, width, config.loss.vocabulary, where=source.uri)
        for source in dataset.sources
    ]
    return min((size for size in sizes if size is not None), default=None)
