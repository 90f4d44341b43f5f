"""The baseline of `penumbra bench loading`: plain Parquet, streamed by Hugging Face `datasets`.

The file has a row per sequence and nested lists. It is read in the two ways that `datasets` offers, into the
same batches of tensors that our collator gives.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from logitstore.store import LogitStore


def write_parquet(store: LogitStore, plain: Path, tuned: Path) -> None:
    """What one writes without a store: a row per sequence, lists of lists; with the defaults of pyarrow, and
    with fp16 values and the options that are smallest and fastest (`layouts.to_tuned_parquet`)."""
    records = [
        {
            "input_ids": sequence.token_ids_T,
            "token_ids": list(sequence.rows.token_ids_NK),
            "logprobs": list(sequence.rows.logits_NK - sequence.rows.logsumexp_NM[:, :1]),
            "tail": sequence.rows.log_tail_mass_NM[:, 0],
        }
        for sequence in store.iter_sequences()
    ]
    schema = pa.schema(
        {
            "input_ids": pa.list_(pa.int32()),
            "token_ids": pa.list_(pa.list_(pa.int32())),
            "logprobs": pa.list_(pa.list_(pa.float32())),
            "tail": pa.list_(pa.float32()),
        }
    )
    table = pa.Table.from_pylist(records, schema=schema)
    pq.write_table(table, plain, row_group_size=64)
    place = schema.get_field_index("logprobs")
    halves = table["logprobs"].cast(pa.list_(pa.list_(pa.float16())))
    split: Any = [f"{name}.list.element.list.element" for name in ("token_ids", "logprobs")]
    pq.write_table(
        table.set_column(place, "logprobs", halves),
        tuned,
        row_group_size=64,
        compression="zstd",
        compression_level=9,
        use_dictionary=False,
        use_byte_stream_split=split,
    )


def record_batches(path: Path, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Record by record, as arrays."""
    import datasets  # the baseline only

    stream: Any = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    records = iter(stream.with_format("numpy"))
    while batch := list(itertools.islice(records, batch_size)):
        yield _pad(batch)


def arrow_batches(path: Path, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """As Arrow tables, whose lists are flattened without a Python object per entry: the fastest way."""
    import datasets  # the baseline only

    stream: Any = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    for table in stream.with_format("arrow").iter(batch_size=batch_size):
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        yield _pad(
            [{name: _array(column[row]) for name, column in columns.items()} for row in range(len(table))]
        )


def _array(item: Any) -> np.ndarray:
    """A list of numbers [N], or of equally long lists [N, K], of an Arrow column."""
    values = item.values
    if pa.types.is_list(values.type):
        return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
    return values.to_numpy(zero_copy_only=False)


def _pad(records: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """The same keys as our collator gives."""
    width = -(-max(len(record["input_ids"]) for record in records) // 8) * 8
    count, entries = len(records), len(records[0]["token_ids"][0])
    input_ids = torch.zeros(count, width, dtype=torch.long)
    attention_mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
    token_ids = torch.zeros(count, width, entries, dtype=torch.long)
    logprobs = torch.full((count, width, entries), -torch.inf)
    tail, mask = torch.zeros(count, width), torch.zeros(count, width, entries, dtype=torch.bool)
    for row, record in enumerate(records):
        tokens = torch.from_numpy(np.asarray(record["input_ids"], dtype=np.int64))
        rows = slice(1, 1 + len(record["tail"]))
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
        labels[row, 1 : len(tokens)] = tokens[1:]
        token_ids[row, rows] = torch.from_numpy(np.stack(record["token_ids"]).astype(np.int64))
        logprobs[row, rows] = torch.from_numpy(np.stack(record["logprobs"]).astype(np.float32))
        tail[row, rows] = torch.from_numpy(np.array(record["tail"], dtype=np.float32))
        mask[row, rows] = True
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "teacher_token_ids": token_ids,
        "teacher_logprobs": logprobs,
        "teacher_tail_logprob": tail,
        "teacher_mask": mask,
    }
