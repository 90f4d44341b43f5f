"""What is in a store: sizes, entry counts, entropy, tails, and how much mass which K would keep.

Shape legend: N label rows, K stored entries, M temperatures, G listed K.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from logitstore.codebook_objects import CURRENT_CODEBOOKS, codebook_name
from logitstore.errors import AccessRefusedError, CorruptShardError, ObjectNotFoundError
from logitstore.index.commits import COMMITS_PREFIX
from logitstore.index.pointer import INDEX_NAME
from logitstore.manifest.fields import LabelSpec, Retokenized, ShardEntry
from logitstore.manifest.reading import MANIFEST_NAME
from logitstore.records import UNKNOWN_RANK, LabeledSequence, LabelRows
from logitstore.retokenize.report import Report, read_report
from logitstore.rows.entropy import entropy
from logitstore.rows.silent_rows import is_silent
from logitstore.shard.schema import CODEBOOK_CHOICE, TOP_LOGITS
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import StoredTokenizer, stored_tokenizer

RECOMMENDED_MASS = 0.99
QUANTILES = (0.1, 0.5, 0.9, 0.99)
MAX_KEPT_ROWS = 1_000_000
"""Rows whose entropy and tails are kept for quantiles; beyond, every n-th shard is read."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Spread:
    """Mean and quantiles of one quantity over label rows."""

    mean: float
    quantiles: dict[str, float]
    """By name, "p10", "p50", "p90", "p99"."""

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        if not values.size:
            return cls(float("nan"), {})
        found = np.quantile(values, QUANTILES)
        names = [f"p{round(100 * quantile)}" for quantile in QUANTILES]
        return cls(float(values.mean()), dict(zip(names, found.tolist(), strict=True)))


@dataclass(frozen=True)
class MassAtK:
    """What a store of `top_k` entries would keep of the distribution, on average over rows."""

    top_k: int
    mass: dict[str, float]
    """By temperature, for example {"1": 0.98, "2": 0.41}."""
    rows_above_target: float
    """Share of rows with at least the target mass at T=1."""


@dataclass(frozen=True)
class Inspection:
    """Figures of a store; `inspect --json` prints this record."""

    uri: str
    digest: str
    teacher: str
    labels: dict[str, object]
    retokenized: Retokenized | None
    """Whence a store for another tokenizer than the teacher's was made."""
    kept: Report | None
    """What of its source's labels it has; None where `retokenize` has not finished, or did not make it."""
    is_being_mapped: bool
    """Whether `retokenize` made it and has not finished."""
    tokenizer: StoredTokenizer | None
    """The tokenizer's files and the teacher's licence, as far as the store keeps them."""
    codebooks: str | None
    num_units: int
    num_shards: int
    num_sequences: int
    num_rows: int
    num_tokens: int
    num_rejects: int
    shard_bytes: int
    other_bytes: dict[str, int]
    """Bytes of the store beside the shards: "manifest", "index and records", "codebooks"."""
    bytes_per_row: float
    """Shards only, per label row."""
    needed_bytes_per_row: float
    """The part of the inspected shards that entries and the T=1 normaliser take: no tokens, tails, other
    temperatures or actual tokens."""
    store_bytes_per_row: float
    """Shards, manifest, index, records and codebooks, per label row."""
    num_inspected_rows: int
    num_silent_rows: int
    """Those of them that say nothing, between others; what follows of distributions is without them."""
    column_bytes: dict[str, int]
    """By column, over the inspected shards; "framing" is the rest of the files."""
    entries_histogram: dict[int, int]
    """Rows by number of stored entries."""
    entropy: Spread
    """Nats at T=1, of the whole vocabulary (`logitstore.rows.entropy`)."""
    tail_mass: dict[str, Spread]
    """By temperature."""
    label_nll: float
    """Mean negative log-likelihood of the actual tokens, nats; nan if none is known."""
    label_top1: float
    """Share of rows whose actual token is the first, among rows that know its rank; nan without any."""
    mass_by_k: list[MassAtK]
    target_mass: float
    recommended_k: int | None
    """Least listed K with the target mass on average at T=1; None if even the stored K has less."""


@dataclass
class _Sums:
    """What accumulates over the rows read."""

    columns: dict[str, int] = field(default_factory=dict)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    entropy: list[np.ndarray] = field(default_factory=list)
    tails_NM: list[np.ndarray] = field(default_factory=list)
    label_logprob: list[np.ndarray] = field(default_factory=list)
    label_rank: list[np.ndarray] = field(default_factory=list)
    mass_GM: np.ndarray = field(default_factory=lambda: np.zeros(0))
    above_G: np.ndarray = field(default_factory=lambda: np.zeros(0))
    num_rows: int = 0
    num_silent_rows: int = 0


def inspect_store(
    store: LogitStore,
    *,
    max_rows: int | None = None,
    target_mass: float = RECOMMENDED_MASS,
    progress: Progress | None = None,
) -> Inspection:
    """Read the shards, or an even choice of them with about `max_rows` rows, and sum up.

    Raises CorruptShardError and its siblings for what cannot be read: `verify` tells more.
    """
    shards = store.shards()
    num_rows = int(shards.column("num_rows").sum())
    limit = min(max_rows or MAX_KEPT_ROWS, MAX_KEPT_ROWS)
    step = max(1, -(-num_rows // max(1, limit)))
    chosen = [entry for entry in shards[::step] if entry.name]
    listed_k = _listed_k(store.manifest.labels.top_k)
    temperatures = store.manifest.labels.temperatures
    sums = _Sums(
        histogram=np.zeros(store.manifest.labels.top_k + 1, np.int64),
        mass_GM=np.zeros((len(listed_k), len(temperatures))),
        above_G=np.zeros(len(listed_k)),
    )
    for done, entry in enumerate(chosen):
        if progress:
            progress("shards", done, len(chosen))
        _add_shard(store, entry, sums, listed_k, target_mass)
    if progress:
        progress("shards", len(chosen), len(chosen))
    return _summary(store, sums, listed_k, target_mass)


def _listed_k(top_k: int) -> list[int]:
    powers = [1 << power for power in range(top_k.bit_length()) if 1 << power < top_k]
    return [*powers, top_k]


def _add_shard(
    store: LogitStore, entry: ShardEntry, sums: _Sums, listed_k: list[int], target_mass: float
) -> None:
    file = store.open_whole(entry)
    if file.seek(0, io.SEEK_END) != entry.num_bytes:
        raise CorruptShardError(
            f"{entry.name} has another size than its entry says ({entry.num_bytes} bytes); run `verify`"
        )
    reader = store.reader_of(file, entry)
    for sequence in reader.iter_sequences():
        _add_rows(sequence, store.manifest.labels, sums, listed_k, target_mass)
    for name, num_bytes in reader.column_bytes().items():
        sums.columns[name] = sums.columns.get(name, 0) + num_bytes


def _add_rows(
    sequence: LabeledSequence,
    labels: LabelSpec,
    sums: _Sums,
    listed_k: list[int],
    target_mass: float,
) -> None:
    silent_N = is_silent(sequence.rows, labels.num_outcomes) & ~sequence.loss_mask_N
    sums.num_rows += sequence.rows.num_rows
    sums.num_silent_rows += int(silent_N.sum())
    if silent_N.all():
        return
    rows = LabelRows(*(getattr(sequence.rows, name)[~silent_N] for name in LabelRows.__slots__))
    sums.histogram += np.bincount(rows.count_N, minlength=len(sums.histogram))
    for index, temperature in enumerate(labels.temperatures):
        probability_NK = _probabilities(rows, temperature, index)
        mass_NK = np.cumsum(probability_NK, axis=1)
        # A K wider than this block's rows keeps what the rows have.
        mass_NG = mass_NK[:, np.minimum(np.array(listed_k), mass_NK.shape[1]) - 1]
        sums.mass_GM[:, index] += mass_NG.sum(axis=0)
        if index == 0:
            sums.above_G += (mass_NG >= target_mass).sum(axis=0)
            sums.entropy.append(entropy(rows, labels, temperature))
    sums.tails_NM.append(np.exp(rows.log_tail_mass_NM.astype(np.float64)))
    known_N = np.isfinite(rows.label_logprob_N)
    sums.label_logprob.append(rows.label_logprob_N[known_N])
    sums.label_rank.append(rows.label_rank_N[rows.label_rank_N != UNKNOWN_RANK])


def _probabilities(rows: LabelRows, temperature: float, index: int) -> np.ndarray:
    """float64 [N, K], 0 on padding."""
    real_NK = np.arange(rows.logits_NK.shape[1])[None, :] < rows.count_N[:, None]
    scaled_NK = rows.logits_NK.astype(np.float64) / temperature - rows.logsumexp_NM[:, index, None]
    return np.where(real_NK, np.exp(scaled_NK), 0.0)


def _summary(store: LogitStore, sums: _Sums, listed_k: list[int], target_mass: float) -> Inspection:
    manifest, shards = store.manifest, store.shards()
    totals = {
        name: int(shards.column(name).sum())
        for name in ("num_sequences", "num_rows", "num_tokens", "num_rejects", "num_bytes")
    }
    other, kept = _other_bytes(store), read_report(store)
    num_rows = max(1, totals["num_rows"])
    names = [f"{temperature:g}" for temperature in manifest.labels.temperatures]
    mass_by_k = _mass_by_k(sums, listed_k, names)
    tails_NM = np.concatenate(sums.tails_NM) if sums.tails_NM else np.zeros((0, len(names)))
    logprob, rank = _joined(sums.label_logprob), _joined(sums.label_rank)
    return Inspection(
        uri=store.uri,
        digest=store.digest,
        teacher=f"{manifest.teacher.model} ({manifest.teacher.engine} {manifest.teacher.engine_version}, "
        f"{manifest.teacher.dtype}, capture {manifest.teacher.capture})",
        labels=_labels(manifest.labels),
        retokenized=manifest.retokenized,
        kept=kept,
        is_being_mapped="retokenize" in manifest.config and kept is None,
        tokenizer=stored_tokenizer(store.objects),
        codebooks=manifest.codebooks,
        num_units=len(shards),
        num_shards=int((shards.column("num_bytes") > 0).sum()),
        num_sequences=totals["num_sequences"],
        num_rows=totals["num_rows"],
        num_tokens=totals["num_tokens"],
        num_rejects=totals["num_rejects"],
        shard_bytes=totals["num_bytes"],
        other_bytes=other,
        bytes_per_row=totals["num_bytes"] / num_rows,
        needed_bytes_per_row=_needed_bytes(sums.columns) / max(1, sums.num_rows),
        store_bytes_per_row=(totals["num_bytes"] + sum(other.values())) / num_rows,
        num_inspected_rows=sums.num_rows,
        num_silent_rows=sums.num_silent_rows,
        column_bytes=sums.columns,
        entries_histogram={int(k): int(sums.histogram[k]) for k in np.flatnonzero(sums.histogram)},
        entropy=Spread.of(_joined(sums.entropy)),
        tail_mass={name: Spread.of(tails_NM[:, index]) for index, name in enumerate(names)},
        label_nll=float(-logprob.mean()) if logprob.size else float("nan"),
        label_top1=float((rank == 1).mean()) if rank.size else float("nan"),
        mass_by_k=mass_by_k,
        target_mass=target_mass,
        recommended_k=next((item.top_k for item in mass_by_k if item.mass[names[0]] >= target_mass), None),
    )


def _labels(labels: LabelSpec) -> dict[str, object]:
    return {
        "vocab_size": labels.vocab_size,
        "top_k": labels.top_k,
        "temperatures": list(labels.temperatures),
        "value_kind": labels.value_kind,
        "mode": labels.mode,
        "positions": labels.positions,
        "support": labels.support,
    }


def _mass_by_k(sums: _Sums, listed_k: list[int], temperatures: list[str]) -> list[MassAtK]:
    num_telling = max(1, sums.num_rows - sums.num_silent_rows)
    mass_GM = sums.mass_GM / num_telling
    return [
        MassAtK(top_k, dict(zip(temperatures, mass_M.tolist(), strict=True)), float(above / num_telling))
        for top_k, mass_M, above in zip(listed_k, mass_GM, sums.above_G, strict=True)
    ]


def _needed_bytes(column_bytes: dict[str, int]) -> int:
    exact = ("counts", TOP_LOGITS, CODEBOOK_CHOICE, "normalizers[1]")
    return sum(
        size for name, size in column_bytes.items() if name in exact or name.startswith(("ids_", "values_"))
    )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _other_bytes(store: LogitStore) -> dict[str, int]:
    """Sizes of what the store names; commit records are added where the place may be listed."""
    codebooks = store.codebooks()
    named = {
        "manifest": [MANIFEST_NAME],
        "index and records": [INDEX_NAME, *store.index_names()],
        "codebooks": [CURRENT_CODEBOOKS, codebook_name(codebooks.hash)] if codebooks else [],
    }
    sizes = {what: sum(_size(store, name) for name in names) for what, names in named.items()}
    with contextlib.suppress(AccessRefusedError):
        sizes["index and records"] += sum(info.num_bytes for info in store.objects.list_info(COMMITS_PREFIX))
    return sizes


def _size(store: LogitStore, name: str) -> int:
    try:
        return store.objects.stat(name).num_bytes
    except ObjectNotFoundError:
        return 0
