"""What a reader of each layout gets back, against the labels that were written.

Shape legend: N label rows, K stored entries, C = K + 1 outcomes (the entries, then the tail).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.labels.label_sources import LabelSource
from benchmarks.sizes.layouts import PLAIN_VALUES, Entries, encode_shard
from logitstore.codec.codebooks import CodebookSet
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabelRows
from logitstore.rows.temperature import log_tail_mass, logprobs
from logitstore.shard.reader import ShardReader

OURS = "this format"
PREFIX_TOP_K = 16
TEMPERATURES = (1.0, 2.0)

Distribution = Callable[[float], np.ndarray]
"""Temperature -> float64 [N, C], log-probabilities of the outcomes."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far what is read from a layout is from what was written."""

    layout: str
    slug: str
    """Its part in the names of figures."""
    mean_error: float
    """Mean absolute error of the K log-probabilities at T=1, nats."""
    largest_error: float
    kl_by_temperature: dict[float, float]
    """Mean over rows of KL(what is read || what was written), nats: what a loss still shows when the student
    equals the teacher. Only temperatures at which the source knows its masses."""


def layout_fidelity(source: LabelSource, codebooks: CodebookSet) -> list[Fidelity]:
    """This format and the plain layouts at the source's K."""
    written = _of_rows([sequence.rows for sequence in source.sequences], source.spec)
    data = encode_shard(source.spec, source.sequences, codebooks)
    found = [_compare(OURS, "this", source.spec, written, _read(data, source.spec, codebooks, None))]
    entries = Entries.of(source.sequences)
    for values in PLAIN_VALUES:
        read = _as_users_read(values.logprobs(entries).astype(np.float64))
        found.append(_compare(values.name, values.slug, source.spec, written, read))
    return found


def prefix_fidelity(source: LabelSource, codebooks: CodebookSet) -> Fidelity:
    """A read of the first 16 entries of a shard that holds more, against the same rows cut to 16."""
    data = encode_shard(source.spec, source.sequences, codebooks)
    cut = source.cut(PREFIX_TOP_K)
    written = _of_rows([sequence.rows for sequence in cut.sequences], cut.spec)
    name = f"{OURS}, {PREFIX_TOP_K} read of {source.spec.top_k}"
    return _compare(name, "prefix", cut.spec, written, _read(data, source.spec, codebooks, PREFIX_TOP_K))


def interpolated_fidelity(source: LabelSource) -> Fidelity | None:
    """T=2 as the other stored temperatures foretell it, against T=2 as stored; None where it is not stored.

    The hardest case there is: in practice a temperature between neighbours of 1, 2 and 4 is interpolated.
    """
    spec, rows = source.spec, [sequence.rows for sequence in source.sequences]
    kept = [index for index, temperature in enumerate(spec.temperatures) if temperature != 2.0]
    if len(kept) == len(spec.temperatures) or not spec.temperatures[0] < 2.0 < spec.temperatures[-1]:
        return None
    others = replace(spec, temperatures=tuple(spec.temperatures[index] for index in kept))
    without = [
        replace(
            part, logsumexp_NM=part.logsumexp_NM[:, kept], log_tail_mass_NM=part.log_tail_mass_NM[:, kept]
        )
        for part in rows
    ]
    name = f"T=2 interpolated from T={', '.join(f'{temperature:g}' for temperature in others.temperatures)}"
    return _compare(name, "interpolated", spec, _of_rows(rows, spec), _of_rows(without, others))


def _compare(layout: str, slug: str, spec: LabelSpec, written: Distribution, read: Distribution) -> Fidelity:
    errors_NK = np.abs(written(1.0) - read(1.0))[:, :-1]
    kl = {
        temperature: _kl(read(temperature), written(temperature))
        for temperature in TEMPERATURES
        if temperature in spec.temperatures
    }
    return Fidelity(layout, slug, float(errors_NK.mean()), float(errors_NK.max()), kl)


def _read(data: bytes, spec: LabelSpec, codebooks: CodebookSet, top_k: int | None) -> Distribution:
    reader = ShardReader(io.BytesIO(data), spec, codebooks)
    return _of_rows([sequence.rows for sequence in reader.iter_sequences(top_k=top_k)], spec)


def _of_rows(rows: Sequence[LabelRows], spec: LabelSpec) -> Distribution:
    def distribution(temperature: float) -> np.ndarray:
        parts = [
            np.concatenate(
                [logprobs(part, spec, temperature), log_tail_mass(part, spec, temperature)[:, None]], axis=1
            )
            for part in rows
        ]
        return np.concatenate(parts).astype(np.float64)

    return distribution


def _as_users_read(logprobs_NK: np.ndarray) -> Distribution:
    """At T=1 the tail is what is missing from 1; elsewhere nothing says it: the entries are renormalised."""

    def distribution(temperature: float) -> np.ndarray:
        scaled_NK = logprobs_NK / temperature
        if temperature == 1:
            tail_N = np.maximum(1 - np.exp(logprobs_NK).sum(axis=1), 0)
        else:
            tail_N = np.zeros(len(logprobs_NK))
            scaled_NK = scaled_NK - np.logaddexp.reduce(scaled_NK, axis=1)[:, None]
        with np.errstate(divide="ignore"):
            return np.concatenate([scaled_NK, np.log(tail_N)[:, None]], axis=1)

    return distribution


def _kl(log_q_NC: np.ndarray, log_p_NC: np.ndarray) -> float:
    """Mean of KL(q || p), both made to add up to 1; an outcome without mass in q adds nothing."""
    log_q_NC, log_p_NC = (x - np.logaddexp.reduce(x, axis=1)[:, None] for x in (log_q_NC, log_p_NC))
    mass_NC = np.exp(log_q_NC)
    with np.errstate(invalid="ignore"):
        terms_NC = np.where(mass_NC > 0, mass_NC * (log_q_NC - log_p_NC), 0.0)
    return float(terms_NC.sum(axis=1).mean())
