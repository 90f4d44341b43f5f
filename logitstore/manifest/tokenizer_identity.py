"""A fingerprint of what a tokenizer's ids mean, the same whoever computes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping


def tokenizer_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """ "sha256:<hex>" over every (id, token) of `tokenizer.get_vocab()`, added tokens included.

    Two tokenizers with the same fingerprint give the same ids the same text. How they split text, or
    their chat template, may differ: the store holds ids, so neither changes what a label means.
    """
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if len(set(vocabulary.values())) < len(tokens):
        tokens.sort(key=lambda token: (vocabulary[token], token))
    # One call for all of them: inside a quoted token a line's end is written as two characters.
    quoted = json.dumps(tokens, separators=("\n", ":"))[1:-1].split("\n") if tokens else []
    ids = sorted(vocabulary.values())
    lines = [f"{token_id}\t{text}\n" for token_id, text in zip(ids, quoted, strict=True)]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
