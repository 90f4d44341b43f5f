"""Does a place keep the conditions that writing a store relies on? Asked before a job writes anything."""

from __future__ import annotations

import contextlib
import secrets

from logitstore.errors import ObjectStoreError, UnsuitablePlaceError
from logitstore.objects.opening import Objects

PROBE_PREFIX = "probe-"


def require_conditional_writes(objects: Objects) -> None:
    """Write a small object twice under conditions that forbid the second. Raises UnsuitablePlaceError.

    Some servers that speak S3 ignore If-None-Match and If-Match: there every writer of a unit wins, two
    drivers hold one lease, and an index replaces another. A local directory needs no asking.
    """
    if objects.is_local:
        return
    name = f"{PROBE_PREFIX}{secrets.token_hex(8)}.json"
    try:
        ignored = _ignored_condition(objects, name)
    finally:
        with contextlib.suppress(ObjectStoreError):  # `verify --repair` removes what is left
            objects.delete(name)
    if ignored:
        raise UnsuitablePlaceError(
            f"{objects.uri}: the server ignores {ignored}, so several writers would each take a unit "
            "for theirs; write to a server that keeps conditional PUTs, as AWS S3 does, or to a local "
            "directory"
        )


def _ignored_condition(objects: Objects, name: str) -> str:
    """The condition that the server does not keep; "" if it keeps both."""
    objects.put_if_absent(name, b"first")
    if objects.put_if_absent(name, b"second") or objects.get(name) != b"first":
        return "If-None-Match"
    _, etag = objects.get_with_etag(name)
    if not objects.put_if_match(name, b"third", etag) and objects.get(name) != b"third":
        return "If-Match (it refuses the tag that it gave)"
    if objects.put_if_match(name, b"fourth", etag) or objects.get(name) != b"third":
        return "If-Match"
    return ""
