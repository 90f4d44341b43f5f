"""Names, numbers and the Arrow schema of a shard (format version 1).

FORMAT.md is the normative text; this module is its list of constants.
"""

from __future__ import annotations

import functools

import pyarrow as pa

from logitstore.manifest.fields import GIVEN_ENTRIES, OPTIONAL_COLUMNS, TEXTS_ONLY, LabelSpec

SHARD_FORMAT = "logitstore-shard"
SHARD_VERSION = 1

KNOWN_FEATURES: frozenset[str] = frozenset((*OPTIONAL_COLUMNS, GIVEN_ENTRIES, TEXTS_ONLY))
"""Features that this reader knows beyond version 1; a shard that names another is refused."""

FIRST_GROUP = 8
"""Rank groups are [0,8), [8,16), then doubling, the last cut at top_k."""

BLOCK_ROWS = 16_384
"""Most label rows a block aims at; blocks hold whole sequences."""
BLOCK_ENTRIES = 1 << 20
"""Most stored entries (rows times top_k) a block aims at: about a megabyte in the file."""

MAX_BLOCK_ENTRIES = 1 << 26
MAX_SHARD_BYTES = 1 << 31
"""Hard limit of rows times top_k in one block, so that a reader's memory is bounded."""
MAX_BLOCK_SEQUENCES = 1 << 20
MAX_BLOCK_TOKENS = 1 << 26

SEQUENCE_COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
    ("record_id", pa.list_(pa.field("item", pa.utf8(), nullable=False))),
    ("sample_index", pa.list_(pa.field("item", pa.int32(), nullable=False))),
    ("num_tokens", pa.list_(pa.field("item", pa.int32(), nullable=False))),
    ("prompt_length", pa.list_(pa.field("item", pa.int32(), nullable=False))),
    ("label_start", pa.list_(pa.field("item", pa.int32(), nullable=False))),
    ("num_rows", pa.list_(pa.field("item", pa.int32(), nullable=False))),
    ("finish_reason", pa.list_(pa.field("item", pa.utf8(), nullable=False))),
    ("flags", pa.list_(pa.field("item", pa.utf8(), nullable=False))),
)
"""One item per sequence of the block, plain Arrow: readable by any tool."""

ROW_COLUMNS: tuple[str, ...] = ("loss_mask", "token_ids", "counts", "label", "tails", "normalizers")
"""Packed columns that every shard has."""
TOP_LOGITS = "top_logits"
"""Packed column of gap_f16 shards: the fp32 top logit."""
CODEBOOK_CHOICE = "codebook_choice"
"""Packed column of shards with a codebook set of more than one book."""


def rank_groups(top_k: int) -> list[tuple[int, int]]:
    """Bounds of the rank groups of a shard, e.g. [(0, 8), (8, 16), (16, 32)] for top_k=32."""
    groups: list[tuple[int, int]] = []
    start, end = 0, FIRST_GROUP
    while start < top_k:
        groups.append((start, min(end, top_k)))
        start, end = end, 2 * end
    return groups


def values_column(group: tuple[int, int]) -> str:
    return f"values_{group[0]}_{group[1]}"


def ids_column(group: tuple[int, int]) -> str:
    return f"ids_{group[0]}_{group[1]}"


def packed_columns(labels: LabelSpec, has_choice: bool) -> list[str]:
    """Names of the packed columns of a shard, in file order: what every read needs comes first."""
    names: list[str] = list(ROW_COLUMNS)
    if labels.value_kind == "gap_f16":
        names.append(TOP_LOGITS)
    if has_choice:
        names.append(CODEBOOK_CHOICE)
    names += labels.extra_columns
    for group in rank_groups(labels.top_k):
        names += [values_column(group), ids_column(group)]
    return names


@functools.lru_cache(maxsize=64)
def shard_schema(labels: LabelSpec, has_choice: bool) -> pa.Schema:
    """The Arrow schema of a shard, without its metadata. A record batch has one row: a block."""
    fields = [pa.field(name, dtype, nullable=False) for name, dtype in SEQUENCE_COLUMNS]
    fields.append(pa.field("sequences_checksum", pa.uint32(), nullable=False))
    fields += [pa.field(name, pa.binary(), nullable=False) for name in packed_columns(labels, has_choice)]
    return pa.schema(fields)
