"""[data]: what is read, from which stores and texts, and in which batches."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat

from logitstore.common.section import HomePath, Section

_BYTE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(value: object) -> int | None:
    """Bytes of a size like 5000000, "500mb" or "2GiB"; None stays None."""
    if value is None or isinstance(value, int):
        return value
    text = value.lower() if isinstance(value, str) else ""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", text)
    if match is None or match[2] not in _BYTE_UNITS:
        raise ValueError(
            f"{value!r} is not a size; write a number of bytes, or for example '500mb' or '20gib'"
        )
    return int(Decimal(match[1]) * _BYTE_UNITS[match[2]])


class StoreSource(Section):
    uri: str
    """Folder or URL of a logit store."""
    weight: float = Field(default=1.0, ge=0)
    """How often its sequences occur in an epoch of training: 2 is twice, 0.5 another half every epoch
    (with data.shuffle = false the same first half), 0 leaves the store out. Those held out are judged once
    each."""
    alpha: float | None = Field(default=None, ge=0, le=1)
    """Weight of distillation for this store's labels; None takes `loss.alpha`. 0 trains on its text alone."""
    temperature: float | None = Field(default=None, gt=0)
    """T of the distillation term for this store's labels; None takes `loss.temperature`."""
    where: str | None = None
    """Which of its sequences take part, as `penumbra store cat --where` has it, for example
    'finish_reason != length and num_tokens < 2048', or 'hash < 0.9' for nine tenths of the records; None
    takes all."""
    ids: HomePath | None = None
    """A file of record ids, one a line: only these take part."""
    without_ids: HomePath | None = None
    """A file of record ids that take no part."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """For the object store, as in fsspec. Credentials are better left to the environment."""


class TextSource(Section):
    uri: str
    """Path, folder, glob or URL of JSONL, Parquet, CSV or Arrow files, as the labeler reads them."""
    kind: Literal["text", "prompt_response", "messages"] = "messages"
    """What a record holds: `text`, all of it learned; `prompt` and `response`, or `messages`, of which the
    last answer is learned. Both of the latter go through the tokenizer's chat template, if it has one."""
    weight: float = Field(default=1.0, ge=0)
    """How often its records occur in an epoch, as for stores."""
    bad_records: Literal["refuse", "drop"] = "refuse"
    """What becomes of a record that cannot be used: it stops the run by name before training, or is left
    out, counted and said."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """As for stores."""


def _as_source(value: Any) -> Any:
    return {"uri": value} if isinstance(value, str) else value


def _as_sources(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


Sources = Annotated[
    tuple[Annotated[StoreSource, BeforeValidator(_as_source)], ...], BeforeValidator(_as_sources)
]


class DataConfig(Section):
    """What is read, and in which batches."""

    stores: Sources
    """One or several stores: a URI, or tables with uri, weight, alpha, temperature, where, ids, without_ids
    and storage_options."""
    texts: tuple[TextSource, ...] = ()
    """Plain text without a teacher, mixed with the stores and learned by cross-entropy alone. It is tokenised
    once, into `texts` in the output folder; nothing of it is held out."""
    top_k: int | None = Field(default=None, ge=1)
    """Entries read of each row, at most what the store holds; None reads all. Fewer bytes are read too."""
    shuffle: bool = True
    """Read in an order of its own every epoch; false reads as stored."""
    seed: int = 0
    """Seed of the order of reading."""
    num_splits: int = Field(default=16, ge=1)
    """Shards read side by side. More mixes better; each holds a shard open. If `training.batch_size` is a
    multiple of 8 and `num_splits` one of batch_size / 8 x processes x workers, no two of them decode the
    same block, but at an epoch's end; otherwise several do. Packed, a split gives one row at a time: then
    `num_splits` should be a multiple of batch_size x processes x workers; of few labels fewer splits are
    taken, so that each has about 8 rows."""
    held_out_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of records, chosen by a hash of their id, kept from training for evaluation. 0 needs
    `evaluation.stores`."""
    max_length: int | None = Field(default=None, ge=2)
    """Tokens kept of each sequence."""
    pack_length: int | None = Field(default=None, ge=2)
    """Pack whole sequences, across batches, into rows of at most so many tokens; None pads. A batch then is
    `training.batch_size` rows, so at most batch_size x pack_length tokens. Each logged step says its fill,
    the share of places that hold tokens."""
    pack_buffer_rows: int = Field(default=16, ge=1)
    """Rows that each of `num_splits` packs together. More find a better fit and hold more decoded labels."""
    packed_attention: (
        Literal["position_ids", "position_ids_one_row", "block_diagonal", "block_diagonal_additive"] | None
    ) = None
    """How packed documents are kept apart, as `CollateSettings` says. None takes the first way that a trial
    with the student shows to be right; one that is given is tried too, and refused if it is wrong."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that decode and collate. 0 does it in the training process: one background thread, and up to
    four more that decode blocks side by side without the interpreter's lock, as many as there are cores. That
    is right as long as the student learns more slowly than this reads, which is nearly always. Batches of a
    worker cross shared memory, and workers may decode a block again that another one has (see `num_splits`),
    which costs more processor time in all but less in the training process: take 1 or 2 where that is busy
    itself, with processor cores to spare. Fewer are begun, and that is said, where more would only decode
    what others decode."""
    segments: dict[Literal["context", "reasoning", "answer", "tool", "end"], NonNegativeFloat] = Field(
        default_factory=dict
    )
    """Weight of each label's loss by what its token is, for example { reasoning = 0.3, tool = 0 }; a segment
    left out has 1. The loss is sum(w L) / sum(w) over the labels of an optimizer step; 0 masks them, also in
    evaluation, which counts all others alike. Needs stores that know segments; what is learned of
    `texts` is "answer", but for an end of text."""
    cache_dir: HomePath | None = None
    """Folder for copies of the shards of remote or slow stores; None reads what is needed each time."""
    cache_limit: Annotated[int | None, BeforeValidator(parse_bytes)] = None
    """Bytes the cache may take, also like "20gb"; None is no limit."""
    predownload: int = Field(default=1, ge=0)
    """Shards of each split fetched ahead into the cache."""
