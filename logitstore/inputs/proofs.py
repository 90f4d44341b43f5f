"""Proof of content: which records, by id and content, the labels of a store are of.

A labeling job keeps a digest of 16 bytes over each planned record's id and content in the segments of its
plan. So a record that was edited in place, under the same id, is told from the one that was labeled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from logitstore.errors import AccessRefusedError, CorruptManifestError
from logitstore.inputs.identity import content_text
from logitstore.job_objects import PLAN_SEGMENTS_PREFIX
from logitstore.manifest.fields import InputInfo
from logitstore.objects.opening import Objects

PROOF_BYTES = 16


def proof_of(id_digest: bytes, record: Mapping[str, Any], info: InputInfo) -> bytes:
    """The proof of one record: a digest of its id's digest and of the raw content of its fields."""
    content = content_text(record, info).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(id_digest + content, digest_size=PROOF_BYTES).digest()


@dataclass(frozen=True, slots=True)
class PlannedProofs:
    """The proofs of a store's plan, and what has none."""

    proofs: np.ndarray
    """void[16], ascending."""
    unproven: np.ndarray
    """void[16], ascending: digests of the ids that a version planned which kept no proofs."""

    def held(self, proofs: np.ndarray) -> np.ndarray:
        """bool, which of these void[16] are in the plan."""
        return np.isin(proofs, self.proofs)

    def unknown(self, id_digests: np.ndarray) -> np.ndarray:
        """bool, of which of these void[16] ids the content is not known."""
        return np.isin(id_digests, self.unproven)


def read_proofs(objects: Objects) -> PlannedProofs | None:
    """The proofs of the store below `objects`; None if it has no plan, or none that can be listed.

    Raises CorruptManifestError.
    """
    proofs, unproven = [b""], [b""]
    try:
        names = [name for name in objects.list(PLAN_SEGMENTS_PREFIX) if name.endswith(".json")]
    except AccessRefusedError:
        return None
    for name in names:
        for target, part in _parts(objects, name):
            (proofs if target == "proofs" else unproven).append(part)
    if not names:
        return None
    return PlannedProofs(_sorted(b"".join(proofs)), _sorted(b"".join(unproven)))


def _parts(objects: Objects, name: str) -> Iterator[tuple[str, bytes]]:
    try:
        segment = json.loads(objects.get(name))
        part = "proofs" if "proofs" in segment else "ids"
        start, end = segment[part]
        yield part, objects.get_range(segment["data"], start, end)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptManifestError(
            f"{name} of the store at {objects.uri} is no segment of a plan ({type(error).__name__}: "
            f"{error}); restore it from a copy of the store"
        ) from None


def _sorted(content: bytes) -> np.ndarray:
    return np.unique(np.frombuffer(content, "V16"))
