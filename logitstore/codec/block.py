"""One block of label rows to packed columns and back.

Entries are rank-major: all first-ranked entries of the block, then all second-ranked, in rank groups
that are packed apart, so that a reader of the first K' entries leaves the rest on disk. Rows with
fewer entries than a rank simply have none there.

Shape legend: N label rows of the block, K stored entries, G ranks of a group, M temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from logitstore.codec import rowcodes, values
from logitstore.codec.bytecodes import NUM_STREAMS, IntegerReader, streams_of
from logitstore.codec.codebooks import CodebookSet
from logitstore.codec.id_codes import IdDecoder, spread
from logitstore.codec.loops import Loops
from logitstore.codec.streams import Unpacker, damaged, pack, take_planes, to_planes
from logitstore.codec.writing_loops import CHOICE_RANKS, WritingLoops
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabelRows
from logitstore.rows.temperature import prefix_log_tail_mass
from logitstore.shard.schema import (
    CODEBOOK_CHOICE,
    TOP_LOGITS,
    ids_column,
    rank_groups,
    values_column,
)

ID_THRESHOLD = 128
VALUE_THRESHOLD = 128
PART_ENTRIES = 1 << 17
"""Entries that are decoded at once, to stay in cache."""

OpenColumn = Callable[[str, int], Unpacker]


@dataclass(frozen=True)
class BlockCodec:
    """What the blocks of a shard have in common."""

    labels: LabelSpec
    codebooks: CodebookSet

    @property
    def is_gap(self) -> bool:
        return self.labels.value_kind == values.GAP_F16

    def encode(self, rows: LabelRows, loops: WritingLoops) -> dict[str, bytes]:
        """Packed columns of valid label rows (validation.py), by name."""
        width = rows.token_ids_NK.shape[1]
        count_N = np.ascontiguousarray(rows.count_N, np.int32)
        logits_NK = np.ascontiguousarray(rows.logits_NK, np.float32)
        steps_NK = loops.steps(logits_NK, count_N, self.labels.value_kind)
        columns = self._encode_rows(rows, steps_NK)
        ids_NK = np.ascontiguousarray(rows.token_ids_NK, np.int32)
        choice_N = self.codebooks.choose(ids_NK, np.minimum(count_N, CHOICE_RANKS), loops)
        if self.codebooks.num_codebooks > 1:
            columns[CODEBOOK_CHOICE] = pack([choice_N])
        codes_NK = self.codebooks.positions(ids_NK, count_N, choice_N, loops)
        if not self.is_gap:
            loops.code_ties(codes_NK, steps_NK, count_N)
        for start, end in rank_groups(self.labels.top_k):
            for name, coded_NK, threshold in (
                (values_column((start, end)), steps_NK, VALUE_THRESHOLD),
                (ids_column((start, end)), codes_NK, ID_THRESHOLD),
            ):
                parts = loops.split(coded_NK, count_N, start, min(end, width), threshold)
                columns[name] = pack(streams_of(parts, threshold))
        return columns

    def decode(
        self,
        columns: Mapping[str, memoryview],
        num_rows: int,
        top_k: int,
        loops: Loops,
        *,
        verify_checksums: bool,
    ) -> LabelRows:
        """The first `top_k` entries of the block's rows; `columns` must hold the groups they need."""

        def open_column(name: str, num_streams: int) -> Unpacker:
            return Unpacker(columns[name], num_streams, name, verify_checksum=verify_checksums)

        temperatures_M = np.asarray(self.labels.temperatures, np.float32)
        num_planes = 3 * len(temperatures_M)
        count_N = self._decode_counts(open_column("counts", 4), num_rows, loops)
        above_MN = rowcodes.decode_normalizers(
            open_column("normalizers", num_planes), num_rows, len(temperatures_M), loops
        )
        tails_MN = rowcodes.decode_tails(
            open_column("tails", num_planes), num_rows, len(temperatures_M), loops
        )
        logits_NG, ids_NG = self._decode_entries(open_column, count_N, top_k, loops)
        logsumexp_MN = logits_NG[:, 0] / temperatures_M[:, None] + above_MN
        rank_N, logprob_N = self._decode_labels(open_column, logits_NG, logsumexp_MN[0], count_N, loops)
        rows = LabelRows(
            logits_NK=logits_NG[:, :top_k],
            token_ids_NK=ids_NG[:, :top_k],
            count_N=np.minimum(count_N, top_k),
            logsumexp_NM=logsumexp_MN.T,
            log_tail_mass_NM=tails_MN.T,
            label_logprob_N=logprob_N,
            label_rank_N=rank_N,
        )
        if int(count_N.min(initial=top_k)) < top_k:
            beyond_NK = np.arange(top_k)[None, :] >= count_N[:, None]
            rows.logits_NK[beyond_NK] = -np.inf
            rows.token_ids_NK[beyond_NK] = 0
        if top_k == self.labels.top_k:
            return rows
        cut_MN = prefix_log_tail_mass(
            rows.logits_NK, above_MN, tails_MN, count_N > top_k, self.labels.temperatures
        )
        return replace(rows, log_tail_mass_NM=cut_MN.T)

    def _encode_rows(self, rows: LabelRows, steps_NK: np.ndarray) -> dict[str, bytes]:
        columns = {
            "counts": pack(self._count_streams(rows.count_N)),
            "label": pack(self._label_streams(rows, steps_NK)),
            "tails": pack(rowcodes.encode_tails(rows.log_tail_mass_NM)),
            "normalizers": pack(rowcodes.encode_normalizers(rows, self.labels.temperatures)),
        }
        if self.is_gap:
            columns[TOP_LOGITS] = pack(rowcodes.encode_top_logits(rows.logits_NK[:, 0]))
        return columns

    def _count_streams(self, count_N: np.ndarray) -> list[np.ndarray]:
        """A flag byte, then byte planes of the counts unless every row is full."""
        if (count_N == self.labels.top_k).all():
            return [np.array([1], np.uint8), *[np.zeros(0, np.uint8)] * 3]
        return [np.array([0], np.uint8), *to_planes(count_N, 3)]

    def _decode_counts(self, unpacker: Unpacker, num_rows: int, loops: Loops) -> np.ndarray:
        full = int(unpacker.take(1)[0])
        if full == 1:
            take_planes(unpacker, 0, loops)
            return np.full(num_rows, self.labels.top_k, np.int32)
        count_N = take_planes(unpacker, num_rows, loops).astype(np.int32)
        if full != 0 or (num_rows and not 1 <= int(count_N.min()) <= int(count_N.max()) <= self.labels.top_k):
            raise damaged(f"entries per row are not all in 1..{self.labels.top_k}, the shard's top_k")
        return count_N

    def _label_streams(self, rows: LabelRows, steps_NK: np.ndarray) -> list[np.ndarray]:
        top_N = rows.logits_NK[:, 0] if self.is_gap else None
        patterns_GN = np.cumsum(steps_NK[:, : rowcodes.MAX_DERIVED_RANK].T, axis=0, dtype=np.int32)
        rank_N = rows.label_rank_N.astype(np.int64)
        stored = (rank_N >= 1) & (rank_N <= np.minimum(rows.count_N, rowcodes.MAX_DERIVED_RANK))
        at_rank_N = patterns_GN[np.where(stored, rank_N - 1, 0), np.arange(rows.num_rows)]
        at_rank_N = values.to_logits(at_rank_N, top_N)
        derived_N = np.where(stored, at_rank_N - rows.logsumexp_NM[:, 0], np.nan)
        return rowcodes.encode_labels(rank_N, rows.label_logprob_N, derived_N)

    def _decode_labels(
        self,
        open_column: OpenColumn,
        logits_NG: np.ndarray,
        logsumexp_N: np.ndarray,
        count_N: np.ndarray,
        loops: Loops,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank and log-probability of the actual tokens, read off the entries where not stored."""
        column = open_column("label", rowcodes.LABEL_STREAMS)
        rank_N, logprob_N, is_derived_N = rowcodes.decode_labels(column, count_N.shape[0], loops)
        if int(rank_N.max(initial=0)) > self.labels.vocab_size:
            raise damaged(f"a label has rank {int(rank_N.max())} in a vocabulary of {self.labels.vocab_size}")
        if (is_derived_N & (rank_N > count_N)).any():
            raise damaged("a label's log-probability refers to an entry that its row does not have")
        loops.read_label(is_derived_N, rank_N, logits_NG, logsumexp_N, logprob_N)
        return rank_N, logprob_N

    def _decode_entries(
        self, open_column: OpenColumn, count_N: np.ndarray, top_k: int, loops: Loops
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits float32 and ids int32, [N, G], of every rank group that starts below top_k.

        In parts of PART_ENTRIES, so that the intermediate arrays stay in cache.
        """
        groups = [group for group in rank_groups(self.labels.top_k) if group[0] < top_k]
        num_rows, width = count_N.shape[0], groups[-1][1]
        logits_NG = np.empty((num_rows, width), np.float32)
        ids_NG = np.empty((num_rows, width), np.int32)
        choice_N = np.zeros(num_rows, np.uint8)
        if self.codebooks.num_codebooks > 1:
            choice_N = open_column(CODEBOOK_CHOICE, 1).take(num_rows)
        ids = IdDecoder(self.codebooks, choice_N, loops, has_ties=not self.is_gap)
        top_N = None
        if self.is_gap:
            top_N = rowcodes.decode_top_logits(open_column(TOP_LOGITS, 4), num_rows, loops)
        decoder = values.ValueDecoder(self.labels.value_kind, top_N, loops)
        fewest = int(count_N.min(initial=self.labels.top_k))
        ranks_per_part = min(max(1, PART_ENTRIES // max(1, num_rows)), values.MAX_STEPS)
        for group in groups:
            num_entries = num_rows * (group[1] - group[0])
            if fewest < group[1]:
                num_entries = int((np.clip(count_N, *group) - group[0]).sum(dtype=np.int64))
            name, ids_name = values_column(group), ids_column(group)
            steps = IntegerReader(open_column(name, NUM_STREAMS), num_entries, name, loops)
            codes = IntegerReader(open_column(ids_name, NUM_STREAMS), num_entries, ids_name, loops)
            for start in range(group[0], group[1], ranks_per_part):
                end = min(start + ranks_per_part, group[1])
                real_GN = np.arange(start, end)[:, None] < count_N if fewest < end else None
                size = (end - start) * num_rows if real_GN is None else int(np.count_nonzero(real_GN))
                steps_GN = spread(steps.take(size), real_GN, (end - start, num_rows))
                codes_GN = spread(codes.take(size), real_GN, steps_GN.shape)
                ids.decode(codes_GN, steps_GN, real_GN, ids_NG, start)
                decoder.decode(steps_GN, logits_NG, start)
        return logits_NG, ids_NG
