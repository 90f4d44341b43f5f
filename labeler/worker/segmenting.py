"""What each token of a labeled sequence is: context, or which part of the assistant's turn.

Shape legend: T tokens of the sequence, R tokens of one turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from labeler.prompting.segment_marks import Mark, SegmentMarks
from labeler.records import TokenizedPrompt
from labeler.teacher.response_ends import ResponseEnds
from logitstore.records import LabeledSequence, Segment

TOKENS_BEFORE = 32
"""Tokens before a turn in which a mark that opens its reasoning is looked for."""


@dataclass(frozen=True, slots=True)
class Segmenter:
    """Finds the segments of sequences by the marks of their teacher."""

    marks: SegmentMarks
    ends: ResponseEnds
    decode: Callable[[Sequence[int]], str] | None = None
    """Ids to text; needed where a mark is several tokens."""

    def of_prompt(self, prompt: TokenizedPrompt, token_ids_T: np.ndarray) -> np.ndarray:
        """uint8 [T] of a sequence that begins with `prompt`: those given with it, or else found."""
        if prompt.segments_T is not None:
            return prompt.segments_T
        written_T = np.arange(len(token_ids_T)) >= len(prompt.prompt_token_ids)
        if prompt.loss_mask_T is not None:
            written_T[: len(prompt.loss_mask_T)] &= prompt.loss_mask_T
        return self.segments(token_ids_T, written_T)

    def segments(self, token_ids_T: np.ndarray, written_T: np.ndarray) -> np.ndarray:
        """uint8 [T]; bool `written_T` are the tokens of the assistant's labeled turns."""
        segments_T = np.full(len(token_ids_T), Segment.CONTEXT, np.uint8)
        edges = np.flatnonzero(np.diff(written_T.astype(np.int8), prepend=0, append=0)).tolist()
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            segments_T[start:stop] = self._of_turn(token_ids_T[start:stop], token_ids_T[:start])
        return segments_T

    def reasons_to_the_end(self, token_ids_T: np.ndarray, segments_T: np.ndarray) -> bool:
        """Whether the last turn ends before its reasoning does."""
        last = len(segments_T) - 1
        while last >= 0 and segments_T[last] == Segment.END:
            last -= 1
        if self.marks.reasoning is None or last < 0 or segments_T[last] != Segment.REASONING:
            return False
        span_R = token_ids_T[max(0, last + 1 - TOKENS_BEFORE) : last + 1]
        found = self._find(span_R, self.marks.reasoning[1], 0)
        return found is None or found[1] != len(span_R)

    def _of_turn(self, ids_R: np.ndarray, before_T: np.ndarray) -> np.ndarray:
        segments_R = np.full(len(ids_R), Segment.ANSWER, np.uint8)
        stop = len(ids_R)
        if stop and int(ids_R[-1]) in self.ends.token_ids:
            stop -= 1
            segments_R[stop] = Segment.END
        begin = self._mark_reasoning(segments_R[:stop], ids_R[:stop], before_T)
        self._mark_calls(segments_R[:stop], ids_R[:stop], begin)
        return segments_R

    def _mark_reasoning(self, segments_R: np.ndarray, ids_R: np.ndarray, before_T: np.ndarray) -> int:
        """Marks every part that thinks; returns where the first answer begins."""
        if self.marks.reasoning is None:
            return 0
        start, end = self.marks.reasoning
        opened, closed = self._find(ids_R, start, 0), self._find(ids_R, end, 0)
        is_open = self._is_opened(before_T, start)
        if closed is not None and (opened is None or closed[0] < opened[0]):
            is_open = True
        at = answer = 0
        while at < len(ids_R):
            if not is_open:
                opened = self._find(ids_R, start, at)
                if opened is None:
                    break
                at = opened[0]
            closed = self._find(ids_R, end, at)
            stop = len(ids_R) if closed is None else closed[1]
            segments_R[at:stop] = Segment.REASONING
            answer = answer or stop
            at, is_open = stop, False
        return answer

    def _mark_calls(self, segments_R: np.ndarray, ids_R: np.ndarray, begin: int) -> None:
        if self.marks.tool is None:
            return
        start, end = self.marks.tool
        if self.marks.tool_begins_turn:
            text = self.decode(ids_R[begin:].tolist()).lstrip() if self.decode is not None else ""
            if _without_space(text).startswith(_without_space(start.text)):
                segments_R[begin:] = Segment.TOOL
            return
        at = begin
        while (opened := self._find(ids_R, start, at)) is not None:
            closed = None if end is None else self._find(ids_R, end, opened[1])
            at = len(ids_R) if closed is None else closed[1]
            call_R = segments_R[opened[0] : at]
            call_R[call_R == Segment.ANSWER] = Segment.TOOL

    def _is_opened(self, before_T: np.ndarray, start: Mark) -> bool:
        """Whether the generation prompt has begun the reasoning."""
        tail = before_T[-TOKENS_BEFORE:].tolist()
        if start.token_id is not None:
            while tail and tail[-1] != start.token_id and tail[-1] in self.ends.blank_ids:
                tail.pop()
            return bool(tail) and tail[-1] == start.token_id
        return self.decode is not None and self.decode(tail).rstrip().endswith(start.text)

    def _find(self, ids_R: np.ndarray, mark: Mark, start: int) -> tuple[int, int] | None:
        """(first token, token after) of the mark's first place at or behind `start`."""
        if mark.token_id is not None:
            places = np.flatnonzero(ids_R[start:] == mark.token_id)
            return (start + int(places[0]), start + int(places[0]) + 1) if len(places) else None
        if self.decode is None:
            return None
        ids, decode = ids_R.tolist(), self.decode
        if mark.text not in decode(ids[start:]):
            return None
        # The shortest beginning that holds it, then its shortest end: neighbours may be joined to a mark.
        stop = _first(start + 1, len(ids), lambda at: mark.text in decode(ids[start:at]))
        first = _first(0, stop - start - 1, lambda back: mark.text in decode(ids[stop - 1 - back : stop]))
        return stop - 1 - first, stop


def with_segments(
    sequences: Sequence[LabeledSequence], prompts: Sequence[TokenizedPrompt], segmenter: Segmenter
) -> list[LabeledSequence]:
    """The sequences with the segments that their prompts give, or else that are found."""
    by_id = {prompt.record_id: prompt for prompt in prompts}
    return [
        replace(one, segments_T=segmenter.of_prompt(by_id[one.record_id], one.token_ids_T))
        for one in sequences
    ]


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The smallest number from `low` on for which it holds, as for all above; it holds for `high`."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _without_space(text: str) -> str:
    return "".join(text.split())
