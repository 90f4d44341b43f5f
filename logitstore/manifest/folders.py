"""Folders of this machine that are label stores: whatever else is written stays outside of them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from logitstore.errors import CorruptManifestError, StoreExistsError, UnsupportedFormatError
from logitstore.manifest import strict_json
from logitstore.manifest.reading import MANIFEST_NAME, MAX_MANIFEST_BYTES, check_version
from logitstore.objects.opening import is_local_uri, normalise_uri


def refuse_in_store(place: str | os.PathLike[str], what: str, *, is_store: bool = False) -> None:
    """Raise StoreExistsError where a local place is a store's folder or lies within one.

    Readers would pass over what is written there, `verify` would call it foreign, and a store that is
    taken away would take it along. `what` names the output in the message. `is_store`: the output is a
    store, for which the place itself is looked at elsewhere. A URL is not looked at: each folder above it
    would be a request.
    """
    path = normalise_uri(place)
    if not is_local_uri(path):
        return
    folder = Path(path).resolve()
    for one in (*(() if is_store else (folder,)), *folder.parents):
        if _is_store(one):
            where = "is" if one == folder else f"lies in {one},"
            raise StoreExistsError(
                f"{what} {os.fspath(place)} {where} a store of labels, whose folder holds nothing else; "
                "choose a place outside of it"
            )


def refuse_own_place(source_uri: str, target_uri: str, verb: str) -> None:
    """Raise StoreExistsError where a store would be written onto itself, or into a store's folder."""
    if target_uri == source_uri or target_uri.startswith(source_uri.rstrip("/") + "/"):
        where = "is" if target_uri == source_uri else f"lies in {source_uri}, which is"
        raise StoreExistsError(f"{target_uri} {where} the store itself; {verb} to another place")
    refuse_in_store(target_uri, "the place", is_store=True)


def _is_store(folder: Path) -> bool:
    path = folder / MANIFEST_NAME
    with contextlib.suppress(OSError, CorruptManifestError):
        if path.is_file():
            value = strict_json.parse_object(
                path.read_bytes(), what=MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES
            )
            with contextlib.suppress(UnsupportedFormatError):  # another version's is a store too
                check_version(value, what=MANIFEST_NAME)
            return "labels" in value and "tokenizer" in value
    return False
