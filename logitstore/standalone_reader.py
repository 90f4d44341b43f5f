"""Reads a store of format version 1 with numpy, pyarrow and zstandard: copy this file where you need it.

    for sequence in read_store("build/labels"):
        print(sequence["record_id"], sequence["token_ids_NK"].shape)

or `python standalone_reader.py STORE`. It follows FORMAT.md, which lies beside it, shares no code with the
rest of the project and favours plainness over speed; `logitstore` reads much faster, a prefix of the K
entries, other temperatures and remote stores. Features that it does not know are refused.

Shape legend: N label rows of a sequence or block, T tokens, K stored entries, M temperatures.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

KNOWN_FEATURES = {
    "mixed", "retokenized", "given_entries", "texts_only", "segments", "student_prompts", "record_parts"
}  # fmt: skip
PART = re.compile(r"#(?:turn|text)-\d+(?:-\d+)?$")
NAME = re.compile(r"(?:index/[0-9a-f]{16}\.arrow|deleted/[0-9a-f]{16}\.json)")
UNIT_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
FIELDS = {
    "manifest": "format_version teacher tokenizer labels input created codebooks features config retokenized",
    "index": "format_version generation manifest segments dropped deleted",
    "record": "format_version attempt manifest shard rejects",
    "tombstone": "format_version manifest reason deleted_sec records units",
    "dropped": "unit_id attempt",
    "deleted": "name num_bytes checksum",
    "unit": "unit_id attempt places num_rows num_tokens",
    "segment": "name num_entries num_bytes checksum rejects_name num_rejects rejects_bytes rejects_checksum",
    "shard": "unit_id unit_index name num_sequences num_rows num_tokens num_bytes checksum num_rejects "
    "seconds worker committed_sec",
}
OPTIONAL = {"retokenized", "dropped", "deleted"}
ABSENT = {"teacher_vocab_size": None, "extra_columns": [], "support": "top", "parts": "", "retokenized": None}
"""What the absence of optional fields of a manifest says."""
CODEBOOKS_MAGIC = b"logitstore-codebooks-1\n"


class NotReadableError(ValueError):
    """The file breaks the format, or has what this reader does not know."""


BROKEN = (
    OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error,
    pa.ArrowException, zstandard.ZstdError,
)  # fmt: skip
"""What the libraries raise over what is damaged, or missing."""


def _in_words(read: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same generator, which ends in NotReadableError whatever is wrong with its file."""

    @functools.wraps(read)
    def reading(*arguments: Any) -> Iterator[Any]:
        try:
            yield from read(*arguments)
        except NotReadableError:
            raise
        except BROKEN as error:
            raise NotReadableError(
                f"it breaks the format, or is not whole ({type(error).__name__}: {error})"
            ) from None

    return reading


@_in_words
def read_store(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The sequences of a store in a local folder, in the order of its units.

    Each is a dict of `record_id`, `sample_index`, `prompt_length`, `label_start`, `finish_reason`, `flags`,
    `token_ids_T`, `loss_mask_N`, `segments_T` and `student_prompt_ids` (None where there are none), and the
    label rows: `logits_NK` (float32, -inf beyond `count_N`), `token_ids_NK`, `count_N`, `logsumexp_NM`,
    `log_tail_mass_NM`, `label_logprob_N` (NaN if unknown), `label_rank_N` (0 if unknown). A store of the
    feature "texts_only" has none of them: N is 0, and the tokens from `label_start` on are the text to learn.

    Raises:
        NotReadableError: a checksum differs, something is missing or not as the format says, or the store has
            a feature that is not known here.
    """
    root = Path(folder)
    manifest = _object(root / "manifest.json", "manifest")
    unknown = sorted(set(manifest["features"]) - KNOWN_FEATURES)
    _require(not unknown, f"the store has the features {unknown}; read it with logitstore")
    order, heads = np.arange(manifest["labels"]["vocab_size"]), np.zeros((1, 0), np.int64)
    current = root / "codebooks" / "current.json"
    if current.exists():
        digest = json.loads(current.read_text())["hash"]
        name = f"{digest.removeprefix('blake2b-128:')}.bin"
        _require(re.fullmatch(r"[0-9a-f]{32}\.bin", name) is not None, f"{current} names {name!r:.80}")
        data = (root / "codebooks" / name).read_bytes()
        _require(checksum(data) == digest, f"{current} names a codebook file of another checksum")
        order, heads = read_codebooks(data)
    entries, deleted, records = units_of(root, manifest_hash(manifest))
    has_parts = "record_parts" in manifest["features"]
    for entry in entries:
        if entry["name"]:
            data = (root / entry["name"]).read_bytes()
            _require(checksum(data) == entry["checksum"], f"{entry['name']} has another checksum")
            gone = deleted.get(entry["name"][-22:-6], set())
            for place, sequence in enumerate(read_shard(data, order, heads)):
                if place not in gone and not _is_deleted(sequence["record_id"], records, has_parts):
                    yield sequence


def _is_deleted(record_id: str, records: set[str], has_parts: bool) -> bool:
    """By the id, since a commit record may be of a writer that knew nothing of the deletion. With a record go
    its parts."""
    names = {record_id, PART.sub("", record_id) if has_parts else record_id}
    return any(checksum(name.encode()).removeprefix("blake2b-128:") in records for name in names)


def manifest_hash(manifest: dict[str, Any]) -> str:
    """By which the other objects of a store name their manifest."""
    core = {**manifest, "created": "", "codebooks": None, "config": {}}
    for part in ("labels", "input"):
        core[part] = {name: value for name, value in core[part].items() if ABSENT.get(name, ...) != value}
    core["labels"]["temperatures"] = [float(one) for one in core["labels"]["temperatures"]]
    core = {name: value for name, value in core.items() if ABSENT.get(name, ...) != value}
    text = json.dumps(core, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return checksum(text.encode()).removeprefix("blake2b-128:")


def units_of(root: Path, manifest: str) -> tuple[list[dict[str, Any]], dict[str, set[int]], set[str]]:
    """The shards' entries, ascending in `unit_index` (the index wins over commit records), the places of
    deleted sequences by attempt, and the digests of the deleted records. `manifest` is its hash."""
    records = sorted((root / "commits").rglob("*.json"))  # listed before the index is read
    units: dict[int, dict[str, Any]] = {}
    index = _object(root / "index.json", "index", manifest)
    taken_back = [_with_fields(one, "dropped") for one in index.get("dropped", [])]
    dropped = {one["attempt"] for one in taken_back}
    rounds = Counter(one["unit_id"] for one in taken_back)
    deleted: dict[str, set[int]] = {}
    digests = ""
    for info in index.get("deleted", []):
        _named(root, _with_fields(info, "deleted"))
        tombstone = _object(root / info["name"], "tombstone", manifest)
        digests += tombstone["records"]
        for unit in tombstone["units"]:
            _with_fields(unit, "unit")
            deleted.setdefault(unit["attempt"], set()).update(unit["places"])
    for segment in index["segments"]:
        data = _named(root, _with_fields(segment, "segment"))
        for row in pa.ipc.open_stream(data).read_all().to_pylist():
            if row["attempt"].hex() in dropped:
                continue
            name = _shard_name(row["unit_index"], row["unit_id"], row["attempt"].hex())
            _require(row["unit_index"] not in units, f"two units have the index {row['unit_index']}")
            units[row["unit_index"]] = {
                "unit_id": row["unit_id"],
                "name": name if row["has_shard"] else "",
                "checksum": f"blake2b-128:{row['checksum'].hex()}",
            }
    for path in records:
        record = _object(path, "record", manifest)
        entry, attempt = _with_fields(record["shard"], "shard"), record["attempt"]
        unit_id, place = entry["unit_id"], entry["unit_index"]
        _require(entry["name"] in ("", _shard_name(place, unit_id, attempt)), f"{path} names another shard")
        folder = f"again-{rounds[unit_id]}" if rounds[unit_id] else "commits"
        if path.parent.name == folder and attempt not in dropped:
            _require(
                units.setdefault(place, entry)["unit_id"] == unit_id, f"two units have the index {place}"
            )
    if not units and not index["generation"]:
        lost = [*(root / "shards").glob("*.arrow"), *(root / "index").glob("*.arrow")]
        _require(not lost, "labels lie here that index.json does not name: restore it")
    gone = {digests[start : start + 32] for start in range(0, len(digests), 32)}
    return [units[place] for place in sorted(units)], deleted, gone


def _object(path: Path, kind: str, manifest: str = "") -> dict[str, Any]:
    """A JSON object of the store, with its fields and no others, made for the manifest of this hash."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _require(len(dict(pairs)) == len(pairs), f"{path} has a field twice")
        return dict(pairs)

    value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=distinct)
    _require(value["format_version"] == 1, f"{path} is of version {value['format_version']}, not 1")
    _with_fields(value, kind)
    _require(not manifest or value["manifest"] == manifest, f"{path} was made for another manifest")
    return value


def _with_fields(value: dict[str, Any], kind: str) -> dict[str, Any]:
    odd = {*value} ^ {*FIELDS[kind].split()} - (OPTIONAL - {*value})
    _require(not odd, f"an object ({kind}) lacks fields, or has others: {sorted(odd)!r:.200}")
    return value


def _named(root: Path, info: dict[str, Any]) -> bytes:
    """An object that index.json names."""
    _require(NAME.fullmatch(info["name"]) is not None, f"index.json names {info['name']!r:.80}")
    data = (root / info["name"]).read_bytes()
    _require(checksum(data) == info["checksum"], f"{info['name']} has another checksum")
    return data


def _shard_name(unit_index: int, unit_id: str, attempt: str) -> str:
    _require(UNIT_ID.fullmatch(unit_id) is not None, f"{unit_id!r:.80} is no id of a unit")
    _require(re.fullmatch("[0-9a-f]{16}", attempt) is not None, f"{attempt!r:.80} is no attempt")
    return f"shards/{unit_index:08d}-{unit_id}-{attempt}.arrow"


def read_codebooks(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The global order of ids, and the heads as ids, one row per codebook."""
    _require(data.startswith(CODEBOOKS_MAGIC), "no codebook file of version 1")
    vocab, _, num_books, head = struct.unpack_from("<4I", data, len(CODEBOOKS_MAGIC))
    streams = _streams(data[len(CODEBOOKS_MAGIC) + 16 :], 8)

    def from_steps(steps: np.ndarray, first: int) -> list[int]:
        values: list[int] = []
        for place, step in enumerate(steps.tolist(), start=first):
            begins = not values or place < 128 or (place - 128) % 256 == 0
            values.append(step if begins else values[-1] + 1 + step)
        return values

    order = from_steps(_integers(streams[:4]), head)
    order += sorted(set(range(vocab)) - set(order))
    ranks = _integers(streams[4:]).reshape(num_books, head)
    heads = [[order[rank] for rank in from_steps(row, 0)] for row in ranks]
    return np.array(order), np.array(heads, np.int64).reshape(num_books, head)


@_in_words
def read_shard(data: bytes, order: np.ndarray, heads: np.ndarray) -> Iterator[dict[str, Any]]:
    """The sequences of one shard. Raises NotReadableError."""
    file = pa.ipc.open_file(data)
    metadata = {key.decode(): value.decode() for key, value in file.schema.metadata.items()}
    what = f"{metadata['format']} {metadata['version']}, features {metadata['features']}"
    _require(what.startswith("logitstore-shard 1,"), f"no shard of version 1: {what}")
    _require(set(json.loads(metadata["features"])) <= KNOWN_FEATURES, f"unknown features: {what}")
    if not metadata["codebooks"]:
        order, heads = np.arange(int(metadata["vocab_size"])), np.zeros((1, 0), np.int64)
    for place in range(file.num_record_batches):
        yield from _sequences(file.get_batch(place), metadata, order, heads)


def _sequences(
    batch: pa.RecordBatch, metadata: dict[str, str], order: np.ndarray, heads: np.ndarray
) -> Iterator[dict[str, Any]]:
    rows = read_block(batch, metadata, order, heads)
    plain = {
        name: batch.column(name)[0].as_py()
        for name in (
            "record_id", "sample_index", "num_tokens", "prompt_length", "label_start", "num_rows",
            "finish_reason", "flags",
        )
    }  # fmt: skip
    (mask,) = _streams(batch.column("loss_mask")[0].as_py(), 1)
    mask_N = np.unpackbits(mask)[: sum(plain["num_rows"])].astype(bool)
    tokens_T = _planes(_streams(batch.column("token_ids")[0].as_py(), 3)).astype(np.int32)
    prompts = _student_prompts(batch, len(plain["num_rows"]))
    segments = _segments(batch, len(plain["num_rows"]))
    row = token = 0
    for place, num_rows in enumerate(plain["num_rows"]):
        num_tokens, here = plain["num_tokens"][place], slice(row, row + num_rows)
        yield {
            **{name: plain[name][place] for name in ("record_id", "sample_index", "prompt_length")},
            **{name: plain[name][place] for name in ("label_start", "finish_reason")},
            "flags": tuple(json.loads(plain["flags"][place] or "[]")),
            "token_ids_T": tokens_T[token : token + num_tokens],
            "loss_mask_N": mask_N[here],
            "segments_T": segments[place],
            "student_prompt_ids": prompts[place],
            **{name: values[here] for name, values in rows.items()},
        }
        row, token = row + num_rows, token + num_tokens


def _student_prompts(batch: pa.RecordBatch, num_sequences: int) -> list[np.ndarray | None]:
    if "student_prompts" not in batch.schema.names:
        return [None] * num_sequences
    streams = _streams(batch.column("student_prompts")[0].as_py(), 6)
    ids, found, at = _planes(streams[3:]).astype(np.int32), [], 0
    for count in _planes(streams[:3]).tolist():
        found.append(ids[at : at + count - 1] if count else None)
        at += max(count - 1, 0)
    return found


def _segments(batch: pa.RecordBatch, num_sequences: int) -> list[np.ndarray | None]:
    if "segments" not in batch.schema.names:
        return [None] * num_sequences
    streams = _streams(batch.column("segments")[0].as_py(), 7)
    kinds, lengths, found, at = streams[3], _planes(streams[4:]) + 1, [], 0
    for count in _planes(streams[:3]).tolist():
        runs = slice(at, at + count)
        found.append(np.repeat(kinds[runs], lengths[runs].astype(np.int64)) if count else None)
        at += count
    return found


def read_block(
    batch: pa.RecordBatch, metadata: dict[str, str], order: np.ndarray, heads: np.ndarray
) -> dict[str, np.ndarray]:
    """The label rows of a block, by name."""
    num_rows = sum(batch.column("num_rows")[0].as_py())
    top_k, temperatures = int(metadata["top_k"]), json.loads(metadata["temperatures"])
    is_gap = metadata["value_kind"] == "gap_f16"

    def column(name: str, count: int) -> list[np.ndarray]:
        return _streams(batch.column(name)[0].as_py(), count)

    flag, *count_planes = column("counts", 4)
    count_N = np.full(num_rows, top_k) if flag[0] else _planes(count_planes).astype(int)
    choice_N = column("codebook_choice", 1)[0] if len(heads) > 1 else np.zeros(num_rows, int)
    pattern_NK, position_NK = _entries(column, count_N, top_k, ties_ascend=not is_gap)
    table = [np.concatenate([head, order]) for head in heads]
    ids_NK = np.array([table[choice][row] for choice, row in zip(choice_N, position_NK, strict=True)])
    if is_gap:
        top_N = _planes(column("top_logits", 4)).astype(np.uint32).view(np.float32)
        logits_NK = top_N[:, None] - pattern_NK.astype(np.uint16).view(np.float16).astype(np.float32)
    else:
        bits = np.where(pattern_NK < 0x8000, 0x7FFF - pattern_NK, pattern_NK).astype(np.uint16)
        logits_NK = bits.view(np.float16).astype(np.float32)
    lse, tail = column("normalizers", 3 * len(temperatures)), column("tails", 3 * len(temperatures))
    logsumexp_NM = np.stack(
        [
            logits_NK[:, 0] / np.float32(temperature) + _float24(_planes(lse[3 * m : 3 * m + 3]))
            for m, temperature in enumerate(temperatures)
        ],
        axis=1,
    )
    tails = [_planes(tail[3 * m : 3 * m + 3]) for m in range(len(temperatures))]
    tails = [np.where(one == 0xFFFFFF, -np.inf, one * np.float32(-1 / 1024)) for one in tails]
    rank_N, logprob_N = _actual_tokens(column("label", 7), logits_NK, logsumexp_NM)
    is_real = np.arange(top_k) < count_N[:, None]
    return {
        "logits_NK": np.where(is_real, logits_NK, -np.inf).astype(np.float32),
        "token_ids_NK": np.where(is_real, ids_NK.reshape(is_real.shape), 0).astype(np.int32),
        "count_N": count_N.astype(np.int32),
        "logsumexp_NM": logsumexp_NM,
        "log_tail_mass_NM": np.stack(tails, axis=1).astype(np.float32),
        "label_logprob_N": logprob_N,
        "label_rank_N": rank_N,
    }


def _entries(
    column: Any, count_N: np.ndarray, top_k: int, *, ties_ascend: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Patterns of the values and positions of the ids, rank by rank through all groups."""
    pattern_NK = np.zeros((len(count_N), top_k), np.int64)
    position_NK = np.zeros((len(count_N), top_k), np.int64)
    bounds = [0, 8]
    while bounds[-1] < top_k:
        bounds.append(2 * bounds[-1])
    for start, end in zip(bounds, [*bounds[1:-1], top_k], strict=False):
        steps = iter(_integers(column(f"values_{start}_{end}", 4)))
        codes = iter(_integers(column(f"ids_{start}_{end}", 4)))
        for rank in range(start, end):
            for row in np.flatnonzero(count_N > rank):
                step, code = next(steps), next(codes)
                is_tie = ties_ascend and rank > 0 and step == 0
                before = (pattern_NK[row, rank - 1], position_NK[row, rank - 1]) if rank else (0, 0)
                pattern_NK[row, rank] = before[0] + step
                position_NK[row, rank] = before[1] + 1 + code if is_tie else code
    return pattern_NK, position_NK


def _actual_tokens(
    streams: list[np.ndarray], logits_NK: np.ndarray, logsumexp_NM: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rank and log-probability at T=1 of the token that stands at each row's position."""
    source_N, *explicit = streams
    rank_N, logprob_N = source_N.astype(np.int32), np.full(len(source_N), np.nan, np.float32)
    rank_N[source_N == 255] = _planes(explicit[:3])
    logprob_N[source_N == 255] = -_float24(_planes(explicit[3:]))
    for row in np.flatnonzero((source_N > 0) & (source_N < 255)):
        logprob_N[row] = min(np.float32(0), logits_NK[row, rank_N[row] - 1] - logsumexp_NM[row, 0])
    return rank_N, logprob_N


def _streams(packed: bytes, count: int) -> list[np.ndarray]:
    """The byte streams of a packed value, with its CRC-32 checked."""
    _require(zlib.crc32(packed[:-4]) == struct.unpack("<I", packed[-4:])[0], "a column has another CRC-32")
    sizes = struct.unpack(f"<{2 * count}I", packed[: 8 * count])
    at, streams = 8 * count, []
    for raw, stored in zip(sizes[::2], sizes[1::2], strict=True):
        data = packed[at : at + stored]
        at += stored
        if raw != stored:
            _require(zstandard.frame_content_size(data) == raw, "a stream inflates to another size")
            data = zstandard.ZstdDecompressor().decompress(data)
        streams.append(np.frombuffer(data, np.uint8))
    _require(at == len(packed) - 4, "a column has bytes that no stream owns")
    return streams


def _planes(streams: list[np.ndarray]) -> np.ndarray:
    return np.sum([stream.astype(np.uint32) << (8 * place) for place, stream in enumerate(streams)], axis=0)


def _float24(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.uint32) << 7).view(np.float32)


def _integers(streams: list[np.ndarray]) -> np.ndarray:
    threshold, classes, low, wide = streams
    (t,) = threshold.astype(int)
    values = classes.astype(np.int64)
    is_low, is_wide = (values >= t) & (values < 224), values >= 224
    values[is_low] = t + 256 * (values[is_low] - t) + low
    values[is_wide] = t + 256 * (224 - t) + 65536 * (values[is_wide] - 224) + wide.view("<u2")
    return values


def checksum(data: bytes) -> str:
    return f"blake2b-128:{hashlib.blake2b(data, digest_size=16).hexdigest()}"


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise NotReadableError(otherwise)


if __name__ == "__main__":
    for found in read_store(sys.argv[1]):
        print(found["record_id"], found["sample_index"], *found["logits_NK"].shape)
