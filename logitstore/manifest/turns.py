"""Conversations of which all turns are labeled: without segments their loss masks tell the turns apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from logitstore.errors import UnsupportedInputError
from logitstore.manifest.fields import SEGMENTS, Manifest


def masks_tell_turns(manifest: Manifest) -> bool:
    """Whether loss masks alone tell the labeled turns of a conversation apart.

    Elsewhere a mask has holes for other reasons, such as a record's own. Raises UnsupportedInputError for
    turns that were mapped to another tokenizer: rows that were lost on the way are holes as well.
    """
    if not _has_all_turns(manifest):
        return False
    if manifest.retokenized is None:
        return True
    if SEGMENTS not in manifest.labels.extra_columns:
        raise UnsupportedInputError(
            "the store has conversations of which all turns are labeled, no segments, and rows that were "
            "lost on the way to another tokenizer, so nothing tells its answers apart; give the store that "
            "it was mapped from, or map one that was labeled with segments (labels.segments)"
        )
    return False


def turns_settings(manifests: Iterable[Manifest]) -> dict[str, Any]:
    """What a manifest made from these says of turns in `config`; nothing where only one answer is labeled."""
    return {"labels": {"turns": "all"}} if any(_has_all_turns(one) for one in manifests) else {}


def _has_all_turns(manifest: Manifest) -> bool:
    labels = manifest.config.get("labels")
    return isinstance(labels, Mapping) and labels.get("turns") == "all"
