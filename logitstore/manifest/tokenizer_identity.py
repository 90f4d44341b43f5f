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
    digest = hashlib.sha256()
    for token, token_id in sorted(vocabulary.items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{token_id}\t{json.dumps(token)}\n".encode())
    return f"sha256:{digest.hexdigest()}"
