"""What every import shares: sequences in units, a codebook set, and a store at the end.

Shape legend: N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any

import numpy as np

from logitstore import __version__
from logitstore.codec.codebook_training import train_codebooks
from logitstore.codec.codebooks import CodebookSet
from logitstore.errors import (
    CorruptManifestError,
    InvalidLabelsError,
    StoreChangedError,
    UnsupportedInputError,
)
from logitstore.manifest.fields import InputInfo, LabelSpec, Manifest, Retokenized, TeacherInfo, TokenizerInfo
from logitstore.manifest.reading import MANIFEST_NAME, check_labels
from logitstore.objects.opening import Objects
from logitstore.records import LabeledSequence, LabelRows
from logitstore.store import LogitStore
from logitstore.tools.carried_deletions import Living, carry_deletions, deleted_in, warn_of_deleted

UNIT_ROWS = 65_536
"""Label rows a unit of an import aims at; the codebook set is trained on the first unit."""
CODEBOOK_USES = 4
"""A set is kept for further stores of its teacher: it may cost as much as that many of this size repay."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Source:
    """Sequences of another form, read on demand, and what is known of them."""

    form: str
    """"npz", "parquet", "distillkit", ...; the engine that the manifest names."""
    uri: str
    labels: LabelSpec
    sequences: Iterator[LabeledSequence]
    num_rows: int | None
    """Label rows in all, if known; for the progress bar and the size of the codebook set."""
    teacher: TeacherInfo | None = None
    """Where the source says whose labels these are."""
    tokenizer: TokenizerInfo | None = None
    features: tuple[str, ...] = ()
    """Features of the manifest, for sources that carry one."""
    retokenized: Retokenized | None = None


@dataclass(frozen=True)
class Origin:
    """What the caller knows of an import's teacher and the source does not say."""

    model: str = "unknown"
    revision: str | None = None
    fingerprint: str = ""
    dtype: str = "float32"


def import_source(
    source: Source,
    uri: str,
    *,
    origin: Origin,
    like: LogitStore | None = None,
    codebooks: CodebookSet | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> LogitStore:
    """A store of the source's sequences; an interrupted import goes on where it stopped.

    What was deleted from `like`, the store that the source came out of, is left out, with a StoreWarning.
    Without `codebooks` a set is trained on the first unit, as large as CODEBOOK_USES such imports pay for.
    Raises InvalidLabelsError for rows that no store can hold, StoreExistsError for another store,
    StoreChangedError for a store with units that the source does not give.
    """
    manifest = _manifest(source, origin)
    begun_store(uri, manifest, storage_options)
    origins = [] if like is None else [like]
    living = Living(_checked(source), deleted_in(origins))
    units = units_of(iter(living))
    first = list(islice(units, 1))  # before the store is made: a source that cannot be read leaves none
    store = LogitStore.create(uri, manifest, storage_options=storage_options)
    carry_deletions(origins, store)
    if codebooks is not None:
        _use_codebooks(store, codebooks)
    committed, names = store.committed_units(), set[str]()
    done_rows = 0
    for unit_index, sequences in enumerate(chain(first, units)):
        if store.codebooks() is None:
            store.set_codebooks(_train(sequences, source))
        unit_id = unit_id_of(source.form, unit_index, sequences)
        names.add(unit_id)
        if unit_id not in committed:
            store.commit_unit(unit_id, unit_index, sequences, seconds=0.0, worker="import")
        done_rows += sum(sequence.rows.num_rows for sequence in sequences)
        if progress:
            progress("rows", done_rows, source.num_rows or done_rows)
    check_no_others(store, committed - names)
    store.compact()
    warn_of_deleted(living.num_left_out, uri)
    return store


def _checked(source: Source) -> Iterator[LabeledSequence]:
    """Raises InvalidLabelsError for a sequence that comes twice, as in tables that were put together, and for
    tokens that the teacher has no logit of, as of another tokenizer."""
    seen = set[tuple[str, int]]()
    vocab_size, uri = source.labels.vocab_size, source.uri
    for sequence in source.sequences:
        highest = int(sequence.token_ids_T.max(initial=0))
        if highest >= vocab_size:
            raise InvalidLabelsError(
                f"record {sequence.record_id!r:.120} of {uri} holds the token {highest}, and the vocabulary "
                f"ends at {vocab_size - 1}; give the tokens that the labels are of, or the teacher's own "
                "width (--vocab-size)"
            )
        key = (sequence.record_id, sequence.sample_index)
        if key in seen:
            raise InvalidLabelsError(
                f"record {sequence.record_id!r:.120} (sample {sequence.sample_index}) is in {uri} twice, and "
                "a store has each sequence once; leave one of them out, and import to a new place"
            )
        seen.add(key)
        yield sequence


def begun_store(uri: str, manifest: Manifest, storage_options: Mapping[str, Any] | None) -> LogitStore | None:
    """The store that an interrupted command began; None where there is none, and none is made.

    What can be refused is refused before a store is made, so that no empty one stays. Raises
    StoreExistsError for another store.
    """
    if not Objects(uri, storage_options).exists(MANIFEST_NAME):
        return None
    return LogitStore.create(uri, manifest, storage_options=storage_options)


def unit_id_of(kind: str, unit_index: int, sequences: Sequence[LabeledSequence]) -> str:
    """A name that holds a hash of all that the sequences say: whoever goes on with others is refused."""
    hasher = hashlib.blake2b(digest_size=8)
    for sequence in sequences:
        _add_fields(hasher, sequence)
    return f"{kind}-{unit_index:06d}-{hasher.hexdigest()}"


def _add_fields(hasher: hashlib.blake2b, record: LabeledSequence | LabelRows) -> None:
    """Add every field, each ended by its name and size, so that no two records run into the same bytes."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, LabelRows):
            _add_fields(hasher, value)
            continue
        data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
        hasher.update(data)
        hasher.update(f"{field.name} {len(data)}\n".encode())


def check_no_others(store: LogitStore, others: set[str]) -> None:
    """Raise StoreChangedError if the store was begun with `others`, units of another source or selection."""
    if others:
        raise StoreChangedError(
            f"{store.uri} holds {len(others)} units of another source or selection, such as {min(others)}; "
            "write to a new store"
        )


def _train(sequences: list[LabeledSequence], source: Source) -> CodebookSet:
    """A set from the first unit, for this import and others of its teacher."""
    num_rows = source.num_rows or sum(sequence.rows.num_rows for sequence in sequences)
    rows = (sequence.rows for sequence in sequences)
    return train_codebooks(rows, source.labels, expected_rows=CODEBOOK_USES * num_rows)


def units_of(sequences: Iterator[LabeledSequence]) -> Iterator[list[LabeledSequence]]:
    """Whole sequences in groups of about UNIT_ROWS rows; one without rows counts by its tokens."""
    unit: list[LabeledSequence] = []
    num_rows = 0
    for sequence in sequences:
        more = sequence.rows.num_rows or len(sequence.token_ids_T)
        if unit and num_rows + more > UNIT_ROWS:
            yield unit
            unit, num_rows = [], 0
        unit.append(sequence)
        num_rows += more
    if unit:
        yield unit


def checked_labels(labels: LabelSpec, what: str) -> LabelSpec:
    """The labels of a file that `what` names. Raises UnsupportedInputError for what no store holds."""
    try:
        check_labels(labels, what=what)
    except CorruptManifestError as error:
        raise UnsupportedInputError(str(error)) from error
    return labels


def choose_value_kind(logits_NK: np.ndarray) -> str:
    """ "logit_f16" where fp16 holds every logit exactly, as of bf16 and fp16 teachers, else "gap_f16"."""
    finite = logits_NK[np.isfinite(logits_NK)].astype(np.float32)
    with np.errstate(over="ignore"):
        exact = finite.astype(np.float16).astype(np.float32) == finite
    return "logit_f16" if bool(exact.all()) else "gap_f16"


def label_statistics(
    logits_NK: np.ndarray, ids_NK: np.ndarray, logsumexp_N: np.ndarray, label_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """float32 log-probability and int32 rank of the actual tokens; NaN and 0 where not stored."""
    # Padding has id 0, which is a token too, and no logit.
    hit_NK = (ids_NK == label_N[:, None]) & (logits_NK != -np.inf)
    known_N = hit_NK.any(axis=1) & (label_N >= 0)
    at_label_N = np.take_along_axis(logits_NK, hit_NK.argmax(axis=1)[:, None], axis=1)[:, 0]
    rank_N = (logits_NK >= at_label_N[:, None]).sum(axis=1)
    logprob_N = np.where(known_N, at_label_N - logsumexp_N, np.nan)
    return np.minimum(logprob_N, 0).astype(np.float32), np.where(known_N, rank_N, 0).astype(np.int32)


def _manifest(source: Source, origin: Origin) -> Manifest:
    teacher = source.teacher or TeacherInfo(
        model=origin.model,
        revision=origin.revision,
        fingerprint=origin.fingerprint,
        dtype=origin.dtype,
        quantization=None,
        engine=source.form,
        engine_version=__version__,
        capture="import",
    )
    return Manifest(
        teacher=teacher,
        tokenizer=source.tokenizer or TokenizerInfo("", source.labels.vocab_size),
        labels=source.labels,
        input=InputInfo(uri=source.uri, kind="import", fields={}),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        features=source.features,
        retokenized=source.retokenized,
    )


def _use_codebooks(store: LogitStore, codebooks: CodebookSet) -> None:
    winner = store.set_codebooks(codebooks)
    if winner.hash != codebooks.hash:
        raise StoreChangedError(
            f"{store.uri} already uses the codebook set {winner.hash}, not {codebooks.hash}; import into a "
            "new store, or leave --codebook out"
        )
