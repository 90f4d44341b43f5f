"""Sequences of a store that a person looks for: by id or text, by a selection, in the order of a figure.

Shards are looked through one after the other in a thread, and what is known so far is shown meanwhile. The
figures of a shard are kept, so that the next question about them is answered at once; what was found in it is
kept too, so that a store that still grows is not looked through from its beginning after every commit.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from logitstore.decoding.tokens import TokenTexts
from logitstore.errors import UnsupportedInputError
from logitstore.index.entries import ShardIndex
from logitstore.manifest.fields import ShardEntry
from logitstore.records import LabeledSequence
from logitstore.rows.conditions import Block
from logitstore.rows.entropy import entropy
from logitstore.rows.selection import Selection
from logitstore.rows.where import parse_selection
from logitstore.shard.reader import ShardReader
from logitstore.store import LogitStore

_ShardKey = tuple[str, int]
"""A shard and how many of its sequences are not deleted."""
Order = Literal["number", "length", "entropy", "surprise"]
MAX_KEPT = 8
"""Answers that are kept, the latest."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is looked for; the defaults look for everything, in the store's order."""

    text: str = ""
    """A part of the record id or of the text, whatever its case."""
    where: str = ""
    """An expression as for `--where`."""
    order: Order = "number"
    """"length" in tokens; "entropy" of the teacher and "surprise" of the actual tokens, means at T = 1 over
    the label rows that a loss counts."""
    descending: bool = False

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise UnsupportedInputError(
                f"order {self.order!r:.40} is none of {', '.join(get_args(Order))}; choose one of them"
            )

    @property
    def takes_all_as_they_are(self) -> bool:
        return self == Question()


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known so far."""

    numbers: np.ndarray
    """int64, of the sequences found, in the order asked for; those without the figure last."""
    looked: int
    """Sequences looked through."""
    total: int
    problem: str = ""
    """Why it ended early; empty where it did not."""
    unmet: tuple[str, ...] = ()
    """When all is looked through: sentences about what the condition names and no sequence has."""


class Finder:
    """Answers questions about one store; safe to call from several threads."""

    def __init__(self, store: LogitStore, selection: Selection, texts: TokenTexts) -> None:
        self._store, self._selection, self._texts = store, selection, texts
        self._lock = threading.Lock()
        self._searches: OrderedDict[Question, _Search] = OrderedDict()
        self._figures: dict[tuple[_ShardKey, Order], np.ndarray] = {}
        """float64 of each sequence that is not deleted."""

    def ask(self, question: Question, shards: ShardIndex, starts: np.ndarray) -> Answer:
        """What is known; the first call begins to look, and one for another question ends the one before.

        `starts` are the numbers of the shards' first selected sequences.

        Raises:
            UnsupportedInputError: `where` is no expression.
        """
        with self._lock:
            search = before = self._searches.get(question)
            if search is None or search.shards is not shards:
                selection = parse_selection(question.where) if before is None else before.selection
                known = {} if before is None else before.known
                search = _Search(self, question, selection, shards, starts, known)
            for other in self._searches.values():
                other.is_wanted = other is search
            self._searches[question] = search
            self._searches.move_to_end(question)
            search.go_on()
            while len(self._searches) > MAX_KEPT:
                self._searches.popitem(last=False)[1].is_wanted = False
        return search.answer()

    def found_in(
        self, entry: ShardEntry, question: Question, selection: Selection
    ) -> tuple[np.ndarray, np.ndarray]:
        """(places among the shard's selected sequences, their figures) of what is found in one shard."""
        takes_unit = selection.takes_unit(entry)  # also asked where the first says no: it notes what is there
        if not (self._selection.takes_unit(entry) and takes_unit):
            return np.zeros(0, np.int64), np.zeros(0)
        kept: list[np.ndarray] = []
        found: list[np.ndarray] = []
        with self._store.open_shard(entry) as reader:
            for index in range(reader.num_blocks):
                block = Block(reader, index)
                kept.append(self._selection.kept(block, entry))
                found.append(kept[-1] & selection.kept(block, entry))
                if question.text and found[-1].any():
                    found[-1] &= self._has_text(block, question.text, found[-1])
            figures = self._figures_of(entry, reader, question.order)
        kept_S, found_S = (np.concatenate([np.zeros(0, bool), *parts]) for parts in (kept, found))
        return np.flatnonzero(found_S[kept_S]), figures[found_S]

    def _has_text(self, block: Block, text: str, wanted_S: np.ndarray) -> np.ndarray:
        needle, raw = text.casefold(), self._texts.raw
        tokens = block.reader.token_ids(block.index)
        has_S = np.zeros(len(wanted_S), bool)
        for place in np.flatnonzero(wanted_S):
            whole = b"".join(map(raw, tokens[place].tolist())).decode("utf-8", errors="replace")
            has_S[place] = needle in block.plain.record_id[place].casefold() or needle in whole.casefold()
        return has_S

    def _figures_of(self, entry: ShardEntry, reader: ShardReader, order: Order) -> np.ndarray:
        key = ((entry.name, reader.num_sequences), order)
        if key not in self._figures:
            self._figures[key] = self._read_figures(reader, order)
        return self._figures[key]

    def _read_figures(self, reader: ShardReader, order: Order) -> np.ndarray:
        blocks = range(reader.num_blocks)
        if order in ("number", "length"):
            lengths = [reader.plain_columns(index).num_tokens for index in blocks]
            return np.concatenate([np.zeros(0), *lengths]).astype(np.float64)
        spec = self._store.manifest.labels
        figure: Callable[[LabeledSequence], np.ndarray] = _surprise
        top_k = 1 if spec.support != "given" else None
        if order == "entropy":
            figure, top_k = (lambda sequence: entropy(sequence.rows, spec, 1.0)), None
        values = [
            _mean(figure(sequence), sequence.loss_mask_N)
            for index in blocks
            for sequence in reader.read_block(index, top_k=top_k)
        ]
        return np.array(values, np.float64)


class _Search:
    """One question on its way through the shards."""

    def __init__(
        self,
        finder: Finder,
        question: Question,
        selection: Selection,
        shards: ShardIndex,
        starts: np.ndarray,
        known: dict[_ShardKey, tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self._finder, self._question, self.selection = finder, question, selection
        self.shards, self._starts = shards, starts
        self.known = known
        """Places and figures by shard, of this search and of those before the store changed."""
        self._found: list[tuple[np.ndarray, np.ndarray]] = []
        self._problem = ""
        self.is_wanted = False
        self._has_thread = False
        self._lock = threading.Lock()
        """Held to begin and to end the thread, so that there is never a second one."""
        self._looked = np.cumsum([0, *shards.column("num_sequences")])

    def go_on(self) -> None:
        """Look through what is left, unless that is being done."""
        with self._lock:
            self.is_wanted = True
            if not self._has_thread and not self._is_done:
                self._has_thread = True
                threading.Thread(target=self._run, name="finder", daemon=True).start()

    @property
    def _is_done(self) -> bool:
        return len(self._found) == len(self.shards) or bool(self._problem)

    def answer(self) -> Answer:
        found = self._found[:]
        numbers = np.concatenate([np.zeros(0, np.int64), *(numbers for numbers, _ in found)])
        if self._question.order != "number":
            figures = np.concatenate([np.zeros(0), *(figures for _, figures in found)])
            numbers = numbers[np.argsort(-figures if self._question.descending else figures, kind="stable")]
        elif self._question.descending:
            numbers = numbers[::-1]
        is_whole = len(found) == len(self.shards)
        unmet = tuple(self.selection.unmet.sentences()) if is_whole else ()
        return Answer(numbers, int(self._looked[len(found)]), int(self._looked[-1]), self._problem, unmet)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self.is_wanted or self._is_done:
                    self._has_thread = False
                    return
            try:
                self._found.append(self._look_through(len(self._found)))
            except (OSError, ValueError) as error:  # the errors of stores are of these
                self._problem = str(error)

    def _look_through(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and figures of what is found in the shard at this place."""
        entry = self.shards[place]
        if not entry.name:
            return np.zeros(0, np.int64), np.zeros(0)
        key = (entry.name, entry.num_sequences)
        if key not in self.known:
            self.known[key] = self._finder.found_in(entry, self._question, self.selection)
        places, figures = self.known[key]
        return places + self._starts[place], figures


def _surprise(sequence: LabeledSequence) -> np.ndarray:
    return -sequence.rows.label_logprob_N


def _mean(values_N: np.ndarray, loss_mask_N: np.ndarray) -> float:
    """The mean over rows that a loss counts and whose value is known; NaN where there is none."""
    known = values_N[loss_mask_N & ~np.isnan(values_N)]
    return float(known.mean()) if len(known) else float("nan")
