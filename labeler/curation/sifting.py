"""Prompts near others, or near an evaluation set's, left out: the steps `dedupe` and `decontaminate`."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeler.curation.settings import DecontaminateSettings, DedupeSettings
from labeler.curation.sift import Sieve, SiftPaths, SiftReport, sift
from logitstore.common.whole_file import refuse_input
from logitstore.contamination.evaluation_sets import near_texts, read_evaluation_sets
from logitstore.contamination.near import EMBEDDING, Method, NearTexts
from logitstore.contamination.prompt_texts import PromptText, Unreadable, read_prompts
from logitstore.inputs.listing import input_fingerprint, list_files, open_file
from logitstore.objects.addresses import is_local_uri

Show = Callable[[SiftReport], None]


@dataclass(frozen=True)
class Source:
    """Where the prompts of a step are."""

    uri: str
    field: str | None = None
    """Field of the text; None looks for the usual names."""
    storage_options: Mapping[str, Any] | None = None
    limit: int | None = None
    """Only the first so many records; None is all."""

    def prompts(self) -> Iterator[PromptText | Unreadable]:
        """In the order of the input. Raises InputNotFoundError if nothing matches."""
        found = read_prompts(self.uri, self.field, storage_options=self.storage_options)
        return itertools.islice(found, self.limit)

    def fingerprint(self) -> str:
        """Digest of local files' content, so that a copy is the same; else of names, sizes and times."""
        return content_fingerprint(self.uri, self.storage_options)


def dedupe(
    source: Source, out: Path, settings: DedupeSettings, *, restart: bool = False, show: Show = lambda _: None
) -> SiftReport:
    """Write to `out` the records of `source` that are near none before them. See `sift`."""
    methods = [_near_texts(way, jaccard=settings.jaccard, cosine=settings.cosine) for way in settings.by]
    _refuse_inputs(out, [source.uri])
    return sift(
        source.prompts(),
        Sieve(methods, among_themselves=True),
        out,
        _whole(source, settings.model_dump(mode="json")),
        restart=restart,
        show=show,
    )


def decontaminate(
    source: Source,
    out: Path,
    settings: DecontaminateSettings,
    *,
    restart: bool = False,
    show: Show = lambda _: None,
) -> SiftReport:
    """Write to `out` the records of `source` that no evaluation set has. See `sift`.

    Raises:
        UnsupportedInputError: an evaluation set cannot be read whole.
    """
    partners = read_evaluation_sets(settings.against, settings.against_field, source.storage_options)
    digests = [content_fingerprint(uri, source.storage_options) for uri in settings.against]
    methods = [near_texts(way, cosine=settings.cosine, words=settings.words) for way in settings.by]
    _refuse_inputs(out, [source.uri, *settings.against])
    return sift(
        source.prompts(),
        Sieve(methods, partners),
        out,
        _whole(source, settings.model_dump(mode="json") | {"against": digests}),
        restart=restart,
        show=show,
    )


def _refuse_inputs(out: Path, uris: Sequence[str]) -> None:
    """Raises UnsupportedInputError where a file that is read would be replaced, also by --restart."""
    here = [path.removeprefix("file://") for uri in filter(is_local_uri, uris) for path, _ in list_files(uri)]
    paths = SiftPaths(out)
    for path in (paths.kept, paths.dropped, paths.report):
        refuse_input(path, here)


def _whole(source: Source, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input": source.fingerprint(),
        "field": source.field,
        "limit": source.limit,
        **settings,
        **({"embedding": EMBEDDING} if "cosine" in settings["by"] else {}),
    }


def _near_texts(way: Method, *, cosine: float, jaccard: float = 0.8) -> NearTexts:
    if way == "minhash":
        from labeler.curation.minhash import MinHashTexts

        return MinHashTexts(jaccard)
    return near_texts(way, cosine=cosine)


def content_fingerprint(uri: str, storage_options: Mapping[str, Any] | None) -> str:
    """32 hexadecimal digits. Raises InputNotFoundError if nothing matches."""
    if not is_local_uri(uri):
        return input_fingerprint(uri, storage_options=storage_options)
    hasher = hashlib.blake2b(digest_size=16)
    for path, relative in list_files(uri):
        hasher.update(f"{relative}\n".encode())
        with open_file(path, {}) as file:
            while chunk := file.read(1 << 20):
                hasher.update(chunk)
    return hasher.hexdigest()


def ways_of(text: str) -> Sequence[str]:
    """The names of a list with commas, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))
