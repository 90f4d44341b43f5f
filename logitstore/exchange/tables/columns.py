"""The columns of a table of sequences, and where its manifest stands.

They are the fields of `LabeledSequence` and `LabelRows`. Parquet and Arrow files carry the manifest in their
schema's metadata, JSONL in its first line, so that a table imports without being told anything.
"""

from __future__ import annotations

import base64

import pyarrow as pa

from logitstore.inputs.raw_record import MANIFEST_KEY
from logitstore.manifest import strict_json
from logitstore.manifest.fields import SEGMENTS, STUDENT_PROMPTS, Manifest

METADATA_KEY = MANIFEST_KEY.encode()

TABLE_SCHEMA = pa.schema(
    {
        "record_id": pa.utf8(),
        "sample_index": pa.int32(),
        "token_ids": pa.list_(pa.int32()),
        "prompt_length": pa.int32(),
        "label_start": pa.int32(),
        "loss_mask": pa.list_(pa.bool_()),
        "finish_reason": pa.utf8(),
        "flags": pa.list_(pa.utf8()),
        "top_ids": pa.list_(pa.list_(pa.int32())),
        "top_logits": pa.list_(pa.list_(pa.float32())),
        "logsumexp": pa.list_(pa.list_(pa.float32())),
        "log_tail_mass": pa.list_(pa.list_(pa.float32())),
        "label_logprob": pa.list_(pa.float32()),
        "label_rank": pa.list_(pa.int32()),
    }
)


STUDENT_PROMPT = pa.field("student_prompt_ids", pa.list_(pa.int32()))
"""A further column of stores with the feature `student_prompts`; null where a sequence has none."""
SEGMENTS_OF_TOKENS = pa.field(SEGMENTS, pa.list_(pa.uint8()))
"""A further column of stores with the feature `segments`: the number of each token's `Segment`; null where
they are not known."""


def table_schema(manifest: Manifest) -> pa.Schema:
    """The columns of a store with this manifest, which is in the metadata."""
    schema = TABLE_SCHEMA
    if STUDENT_PROMPTS in manifest.features:
        schema = schema.append(STUDENT_PROMPT)
    if SEGMENTS in manifest.features:
        schema = schema.append(SEGMENTS_OF_TOKENS)
    return schema.with_metadata({METADATA_KEY: base64.b64encode(strict_json.encode(manifest))})
