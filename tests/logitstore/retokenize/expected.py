"""What the rows of a retokenized store must be, worked out from whole logits, slowly and plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
from tokenizers import Tokenizer

from logitstore.records import LabeledSequence
from tests.logitstore.random_labels import TEMPERATURES
from tests.logitstore.retokenize.tokenizers_made import (
    WholeLabels,
)


def load_table(tokenizer: Tokenizer) -> dict[int, bytes]:
    """Bytes by id of a byte-level tokenizer, by GPT-2's alphabet written down again."""
    alphabet = {chr(byte): byte for byte in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]}
    others = [byte for byte in range(256) if byte not in alphabet.values()]
    alphabet |= {chr(256 + place): byte for place, byte in enumerate(others)}
    added = {token_id: token.content for token_id, token in tokenizer.get_added_tokens_decoder().items()}
    return {
        token_id: added[token_id].encode() if token_id in added else bytes(alphabet[c] for c in token)
        for token, token_id in tokenizer.get_vocab().items()
    }


def expected_rows(
    labels: WholeLabels, sequence: LabeledSequence, student: Tokenizer, top_k: int
) -> tuple[list[int], list[dict[str, Any] | None]]:
    """For every position of the student's response: None, or what its row must be. Slow and plain."""
    theirs, ours = load_table(labels.tokenizer), load_table(student)
    by_bytes = {raw: token_id for token_id, raw in ours.items()}
    by_bytes[b"<end>"] = by_bytes.pop(b"<stop>")
    starts, offset = {}, 0
    for position, token_id in enumerate(sequence.token_ids_T.tolist()):
        if position >= sequence.label_start:
            starts[offset] = position - sequence.label_start
        offset += len(theirs[token_id])
    prompt = b"".join(theirs[i] for i in sequence.token_ids_T[: sequence.prompt_length].tolist()).decode()
    response_ids = sequence.token_ids_T[sequence.prompt_length :].tolist()
    ends = labels.tokenizer.token_to_id("<end>")
    text = b"".join(theirs[i] for i in response_ids if i != ends).decode()
    student_prompt = student.encode(prompt).ids
    student_ids = [*student_prompt, *student.encode(text).ids]
    student_ids += [student.token_to_id("<stop>")] * response_ids.count(ends)
    rows: list[dict[str, Any] | None] = []
    offset = sum(len(ours[i]) for i in student_prompt)
    logits_NV = labels.logits_by_record[sequence.record_id]
    first = max(1, len(student_prompt))
    offset = sum(len(ours[i]) for i in student_ids[:first])
    for token_id in student_ids[first:]:
        row = starts.get(offset)
        offset += len(ours[token_id])
        if row is None:
            rows.append(None)
            continue
        logits_V = logits_NV[row]
        top = np.argsort(-logits_V, kind="stable")[:top_k]
        entries = {by_bytes[theirs[i]]: logits_V[i] for i in top.tolist() if theirs[i] in by_bytes}
        gone = [i for i in range(len(logits_V)) if i not in top or theirs[i] not in by_bytes]
        rows.append(
            {
                "entries": entries,
                "logsumexp": [np.logaddexp.reduce(logits_V / t) for t in TEMPERATURES],
                "tail": [np.logaddexp.reduce(logits_V[gone] / t) for t in TEMPERATURES],
                "label": token_id,
            }
        )
    return student_ids, rows
