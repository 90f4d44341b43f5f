"""Places on the machines that made a store, in what is about to be published."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from logitstore.errors import UnsupportedInputError
from logitstore.manifest.fields import Manifest

MAX_SHOWN = 5
_FOLDERS = (
    "home|Users|root|mnt|media|tmp|var|data|scratch|work|workspace|workspaces|nfs|gpfs|lustre|fsx|efs|srv|opt|"
    "private|Volumes|shared|storage|content"
)
"""At the root of a disk: what people's files lie below."""
_PLACE = (
    rf"(?<![\w.~:/\\-])(?:/|[A-Za-z]:[\\/]+)(?:{_FOLDERS})[\\/]+[\w.-][^\s\"'<>|]*"
    r"|(?<!\w)~/[\w.-][^\s\"'<>|]*"
    r"|\bfile:/[^\s\"'<>|]*"
    r"|\b(?:s3a?|gs|gcs|az|abfss?|hdfs)://[\w.-][^\s\"'<>|]*"
)
_SETTING = re.compile(r"~?/[^/\s]+/\S|\.{1,2}/\w|\\\\\w|[A-Za-z]:[\\/]\w|(?!hf:)\w+://\w")
_WORDS_ALONE = ("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
"""Files of a tokenizer that list its words, among which "/home/" may well be."""


class PlaceFinder:
    """Finds places on machines in texts: those of any machine by their form, and those that a store names."""

    def __init__(self, manifest: Manifest, uri: str) -> None:
        """`manifest` with all the settings of its job; `uri` of the store."""
        named = {text for text in (*_strings(manifest.config), uri) if _is_place(text)}
        longest_first = sorted(map(re.escape, named), key=len, reverse=True)
        self._pattern = re.compile("|".join([_PLACE, *(rf"(?<![\w/]){one}(?!\w)" for one in longest_first)]))

    def refuse_in_files(self, files: Mapping[str, bytes]) -> None:
        """Raises UnsupportedInputError where one of the files, by name, says such a place."""
        found: dict[tuple[str, str], None] = {}
        for name, data in files.items():
            texts = [] if name in _WORDS_ALONE else _texts_of(name, data)
            found |= {(name, match.group()): None for text in texts for match in self._pattern.finditer(text)}
        _refuse(list(found))

    def refuse_in_ids(self, record_ids: Iterable[str]) -> None:
        """Raises UnsupportedInputError for record ids that hold such places."""
        _refuse([("the id of a record", one) for one in record_ids if self._pattern.search(one)])


def _refuse(found: list[tuple[str, str]]) -> None:
    if not found:
        return
    shown = "; ".join(f"{name}: {place!r:.120}" for name, place in found[:MAX_SHOWN])
    more = f"; and {len(found) - MAX_SHOWN:,} more" if len(found) > MAX_SHOWN else ""
    raise UnsupportedInputError(
        f"what would be published says where it was made: {shown}{more}. Take it out of the source, or "
        "publish it all the same with --allow-paths"
    )


def _texts_of(name: str, data: bytes) -> list[str]:
    """The strings of a JSON file, the words of a tokenizer left out; any other file as one text."""
    if name.endswith(".json"):
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            if name == "tokenizer.json":
                value = {key: one for key, one in value.items() if key not in ("model", "added_tokens")}
            return list(_strings(value))
    return [data.decode("utf-8", errors="replace")]


def _strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _strings(key)
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)


def _is_place(text: str) -> bool:
    """Whether a setting is a path from somewhere, or an address but on the Hub; OWNER/NAME is neither."""
    return _SETTING.match(text) is not None
