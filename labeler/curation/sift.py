"""One pass over prompts that keeps some and drops others, resumable and with a word on each that is dropped.

Beside the output stand `*.dropped.jsonl` (each record that was dropped, its partner and the score) and
`*.sift.json` (the settings and the counts). An interrupted pass leaves `*.part` files; the same command goes
on from them.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from logitstore.common.config_file import ConfigError
from logitstore.common.whole_file import write_whole
from logitstore.contamination.near import Match, NearTexts, Partner
from logitstore.contamination.prompt_texts import PromptText, Unreadable
from logitstore.errors import CorruptManifestError
from logitstore.inputs.json_text import json_text
from logitstore.manifest.strict_json import decode_known

BLOCK_RECORDS = 512
SHOWN_CHARACTERS = 500
"""Characters of a partner's text that are written beside the record that was dropped for it."""

Record = TypeVar("Record")


@dataclass(frozen=True)
class SiftReport:
    """What a pass did; `*.sift.json`."""

    settings: dict[str, object]
    """What the result depends on, the input's fingerprint included."""
    num_read: int = 0
    num_kept: int = 0
    num_dropped: dict[str, int] = field(default_factory=dict)
    """By method; "unreadable" for records that cannot be compared."""
    kept_bytes: int = 0
    dropped_bytes: int = 0
    finished: bool = False


@dataclass(frozen=True)
class SiftPaths:
    """The files of a pass."""

    kept: Path

    @property
    def dropped(self) -> Path:
        return self._beside(".dropped.jsonl")

    @property
    def report(self) -> Path:
        return self._beside(".sift.json")

    def _beside(self, suffix: str) -> Path:
        return self.kept.with_name(self.kept.name.removesuffix(".jsonl") + suffix)


@dataclass(frozen=True)
class Sieve:
    """How a pass decides.

    `partners` are texts that are given and never written (evaluation sets); the pass compares with them. With
    `among_themselves` it compares with the records that it kept too.
    """

    methods: Sequence[NearTexts]
    partners: Sequence[Partner] = ()
    among_themselves: bool = False


def sift(
    prompts: Iterator[PromptText | Unreadable],
    sieve: Sieve,
    out: Path,
    settings: Mapping[str, Any],
    *,
    restart: bool = False,
    show: Callable[[SiftReport], None] = lambda report: None,
) -> SiftReport:
    """Write to `out` the records that are near no other.

    A finished pass with equal settings is not done again.

    Raises:
        ConfigError: `out` is there and was made with other settings, or by something else.
    """
    paths = SiftPaths(out)
    report = _begun(paths, settings, restart=restart)
    if report.finished:
        _put_in_place(paths)
        if not out.exists():
            raise ConfigError(f"{out} was finished and is gone; give --restart to make it again")
        return report
    out.parent.mkdir(parents=True, exist_ok=True)
    _Pass(sieve, paths, show).run(prompts, report)
    return _read_report(paths) or report


def _begun(paths: SiftPaths, settings: Mapping[str, Any], *, restart: bool) -> SiftReport:
    fresh, known = SiftReport(settings=dict(settings)), _read_report(paths)
    if restart:
        return fresh
    if known is None:
        if paths.kept.exists():
            raise ConfigError(
                f"{paths.kept} is there and was not made by this command; choose another --out, or give "
                "--restart to replace it"
            )
        return fresh
    differing = [name for name in settings if known.settings.get(name) != settings[name]]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"{paths.kept} was made with {name} = {known.settings.get(name)!r}, now it is "
            f"{settings[name]!r}; choose another --out, or give --restart to replace it"
        )
    return known


def _read_report(paths: SiftPaths) -> SiftReport | None:
    try:
        return decode_known(SiftReport, json.loads(paths.report.read_bytes()), what="it")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, CorruptManifestError) as error:
        raise ConfigError(
            f"{paths.report} is damaged ({error!s:.100}); give --restart to begin anew"
        ) from error


class _Pass:
    def __init__(self, sieve: Sieve, paths: SiftPaths, show: Callable[[SiftReport], None]) -> None:
        self._sieve, self._paths, self._show = sieve, paths, show
        self._partners: list[Partner] = []
        for block in _blocks(iter(sieve.partners)):
            self._start_block([partner.text for partner in block])
            for place, partner in enumerate(block):
                self._keep(place, partner)

    def run(self, prompts: Iterator[PromptText | Unreadable], report: SiftReport) -> None:
        kept_part, dropped_part = _part(self._paths.kept), _part(self._paths.dropped)
        with (
            _opened_at(kept_part, report.kept_bytes) as kept,
            _opened_at(dropped_part, report.dropped_bytes) as dropped,
        ):
            self._recall(itertools.islice(prompts, report.num_read), dropped)
            for block in _blocks(prompts):
                counts = Counter(report.num_dropped)
                for record, verdict in zip(block, self._decide(block), strict=True):
                    if verdict is None:
                        kept.write(_line(record.record))
                    else:
                        counts[verdict["method"]] += 1
                        dropped.write(_line(verdict))
                kept.flush()
                dropped.flush()
                report = replace(
                    report,
                    num_read=report.num_read + len(block),
                    num_kept=report.num_kept + len(block) - counts.total() + sum(report.num_dropped.values()),
                    num_dropped=dict(counts),
                    kept_bytes=kept.tell(),
                    dropped_bytes=dropped.tell(),
                )
                _write_report(self._paths, report)
                self._show(report)
        _write_report(self._paths, replace(report, finished=True))
        _put_in_place(self._paths)

    def _recall(self, prompts: Iterator[PromptText | Unreadable], dropped: BinaryIO) -> None:
        """Know the records again that an interrupted pass kept, without comparing them anew."""
        if not self._sieve.among_themselves:
            deque(prompts, maxlen=0)
            return
        dropped.seek(0)
        places = {json.loads(line)["place"] for line in dropped}
        for block in _blocks(prompts):
            kept = [one for one in block if isinstance(one, PromptText) and one.place not in places]
            self._start_block([one.text for one in kept])
            for place, one in enumerate(kept):
                self._keep(place, _partner_of(one))

    def _decide(self, block: Sequence[PromptText | Unreadable]) -> Iterator[dict[str, Any] | None]:
        """For each record None if it is kept, else its line among the dropped."""
        readable = [one for one in block if isinstance(one, PromptText)]
        self._start_block([one.text for one in readable])
        place = 0
        for one in block:
            if isinstance(one, Unreadable):
                yield {
                    "place": one.place,
                    "method": "unreadable",
                    "reason": one.reason,
                    "text": one.text,
                    "record": one.record,
                }
                continue
            match = next((found for way in self._sieve.methods if (found := way.nearest(place))), None)
            if match is not None:
                yield _dropped(one, match, self._partners[match.partner])
            else:
                if self._sieve.among_themselves:
                    self._keep(place, _partner_of(one))
                yield None
            place += 1

    def _start_block(self, texts: Sequence[str]) -> None:
        for method in self._sieve.methods:
            if texts:
                method.start_block(texts)

    def _keep(self, place: int, partner: Partner) -> None:
        for method in self._sieve.methods:
            method.keep(place, len(self._partners))
        self._partners.append(partner)


def _partner_of(one: PromptText) -> Partner:
    return Partner(one.place, one.record_id, one.text[:SHOWN_CHARACTERS])


def _dropped(one: PromptText, match: Match, partner: Partner) -> dict[str, Any]:
    return {
        "place": one.place,
        "id": one.record_id,
        "method": match.method,
        "score": round(match.score, 4),
        "partner": partner.place,
        "partner_id": partner.record_id,
        "partner_text": partner.text,
        "record": one.record,
    }


def _blocks(
    records: Iterator[Record],
) -> Iterator[list[Record]]:
    while block := list(itertools.islice(records, BLOCK_RECORDS)):
        yield block


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _opened_at(path: Path, num_bytes: int) -> BinaryIO:
    """The part of an output, cut to what the report counts, to go on at its end. Raises ConfigError."""
    size = path.stat().st_size if path.exists() else 0
    if size < num_bytes:
        raise ConfigError(
            f"{path} has {size:,} of the {num_bytes:,} bytes which it was counted to have: it was removed, "
            "or lost its end in a crash; give --restart to begin anew"
        )
    file = open(path, "r+b" if num_bytes else "w+b")  # noqa: SIM115
    file.truncate(num_bytes)
    file.seek(num_bytes)
    return file


def _put_in_place(paths: SiftPaths) -> None:
    """Give the parts of a finished pass their names; it may have been stopped between any two of these."""
    for path in (paths.dropped, paths.kept):
        if _part(path).exists():
            os.replace(_part(path), path)


def _line(value: Any) -> bytes:
    return json_text(value).encode() + b"\n"


def _write_report(paths: SiftPaths, report: SiftReport) -> None:
    write_whole(paths.report, json.dumps(asdict(report), indent=1) + "\n")
