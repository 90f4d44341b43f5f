"""What only the fake teacher promises; the rest is in the conformance tests."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from labeler.config.loading import FakeTeacherConfig, LabelsConfig, SamplingConfig, TeacherConfig
from labeler.errors import PromptError, TeacherDiedError
from labeler.records import TokenizedPrompt
from labeler.teacher.fake import END_OF_TURN_ID, FakeTeacher
from logitstore.records import LabeledSequence


def _teacher(sampling: SamplingConfig | None = None, **fake: float | str) -> FakeTeacher:
    config = TeacherConfig(engine="fake", fake=FakeTeacherConfig(**fake))  # type: ignore[arg-type]
    labels = LabelsConfig(mode="score" if sampling is None else "generate", top_k=16)
    return FakeTeacher(config, labels, sampling or SamplingConfig())


def _prompt(name: str, response: list[int]) -> TokenizedPrompt:
    return TokenizedPrompt(name, np.array([1, 2], np.int32), np.array(response, np.int32), 2)


def _only(items: list[LabeledSequence | PromptError]) -> LabeledSequence:
    (item,) = items
    assert isinstance(item, LabeledSequence)
    return item


def test_a_row_depends_on_its_prefix_and_on_nothing_else() -> None:
    teacher = _teacher()
    first = _only(list(teacher.label([_prompt("a", [10, 11, 12, 13, 14])]))).rows
    second = _only(list(teacher.label([_prompt("b", [10, 11, 12, 99, 14])]))).rows
    # Rows 0..3 see [1, 2, 10, 11, 12] at most; row 4 sees the changed token.
    np.testing.assert_array_equal(first.logits_NK[:4], second.logits_NK[:4])
    assert not np.array_equal(first.token_ids_NK[4], second.token_ids_NK[4])


def test_the_order_of_tokens_matters() -> None:
    teacher = _teacher()
    rows = [_only(list(teacher.label([_prompt("a", ids)]))).rows for ids in ([5, 9, 1], [9, 5, 1])]
    assert not np.array_equal(rows[0].token_ids_NK[2], rows[1].token_ids_NK[2])


def test_responses_end_with_the_end_of_turn() -> None:
    teacher = _teacher(SamplingConfig(max_tokens=400, n=20))
    items = list(teacher.label([TokenizedPrompt("a", np.arange(4, dtype=np.int32), None, 4)]))
    sequences = [item for item in items if isinstance(item, LabeledSequence)]
    stopped = [item for item in sequences if item.finish_reason == "stop"]
    assert len(stopped) >= 18
    assert all(item.token_ids_T[-1] == END_OF_TURN_ID for item in stopped)


def test_a_fatal_token_kills_the_teacher_for_good() -> None:
    teacher = _teacher(fatal_token_id=200)
    with pytest.raises(TeacherDiedError, match="200"):
        list(teacher.label([_prompt("a", [3, 200])]))
    with pytest.raises(TeacherDiedError):
        list(teacher.label([_prompt("b", [3, 4])]))


def test_slowness_is_what_was_asked_for() -> None:
    teacher = _teacher(seconds_per_token=0.01)
    begun = time.monotonic()
    list(teacher.label([_prompt("a", list(range(18)))]))
    assert time.monotonic() - begun >= 0.2


def test_a_held_teacher_is_let_go_with_its_file(tmp_path: Path) -> None:
    held_by = tmp_path / "slow"
    held_by.touch()
    teacher = _teacher(seconds_per_token=60.0, slow_while=str(held_by))
    labeled: list[object] = []
    thread = threading.Thread(target=lambda: labeled.extend(teacher.label([_prompt("a", list(range(18)))])))
    thread.start()
    time.sleep(0.2)
    assert not labeled
    held_by.unlink()
    thread.join(100)
    assert len(labeled) == 1


def _sampled(**sampling: float | str | tuple[int, ...]) -> np.ndarray:
    """The tokens of 40 responses, [T] each, in one array."""
    config = SamplingConfig(max_tokens=40, n=40, **sampling)  # type: ignore[arg-type]
    prompt = TokenizedPrompt("a", np.arange(4, dtype=np.int32), None, 4)
    items = list(_teacher(config).label([prompt]))
    return np.concatenate([item.token_ids_T[4:] for item in items if isinstance(item, LabeledSequence)])


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}], ids=str)
def test_a_cut_to_the_likeliest_token_samples_as_greedy(cut: dict[str, float]) -> None:
    np.testing.assert_array_equal(_sampled(**cut), _sampled(temperature=0.0))
    assert not np.array_equal(_sampled(), _sampled(temperature=0.0))


def test_penalties_make_repeats_rarer() -> None:
    def share_of_repeats(tokens: np.ndarray) -> float:
        return 1 - len(np.unique(tokens)) / len(tokens)

    plain = share_of_repeats(_sampled(top_k=4))
    assert share_of_repeats(_sampled(top_k=4, presence_penalty=2.0)) < plain
    assert share_of_repeats(_sampled(top_k=4, repetition_penalty=2.0)) < plain


def test_a_frequency_penalty_counts_each_time() -> None:
    penalised_V = _teacher(SamplingConfig(frequency_penalty=0.5, presence_penalty=0.25))._penalised(
        np.zeros(512, np.float32), [7, 7, 8, 9, 9, 9], 2
    )
    expected = {8: -0.75, 9: -1.75}
    assert {int(i): penalised_V[i] for i in np.flatnonzero(penalised_V)} == expected


def test_nothing_ends_a_response_before_its_least_length() -> None:
    def lengths(least: int) -> list[int]:
        stops = tuple(chr(i) for i in range(32, 127))
        sampling = SamplingConfig(
            max_tokens=60, n=20, stop=stops, stop_token_ids=tuple(range(100, 200)), min_tokens=least
        )
        items = _teacher(sampling).label([TokenizedPrompt("a", np.arange(4, dtype=np.int32), None, 4)])
        return [len(item.token_ids_T) - 4 for item in items if isinstance(item, LabeledSequence)]

    assert min(lengths(0)) < 20
    assert min(lengths(20)) == 21, "the first that may end is the one after them"
    assert set(lengths(60)) == {60}


def test_a_stop_token_ends_a_response() -> None:
    teacher = _teacher(SamplingConfig(max_tokens=60, n=20, stop_token_ids=tuple(range(100, 200))))
    items = teacher.label([TokenizedPrompt("a", np.arange(4, dtype=np.int32), None, 4)])
    responses = [item.token_ids_T[4:] for item in items if isinstance(item, LabeledSequence)]
    for response_T in responses:
        stops = np.isin(response_T, range(100, 200))
        assert not stops[:-1].any()
    assert sum(100 <= int(response_T[-1]) < 200 for response_T in responses) >= 15


def test_the_tokens_of_a_stop_text_are_not_learnt_unless_asked_for() -> None:
    def masks(stop_text: str) -> list[np.ndarray]:
        stops = tuple(chr(i) for i in range(32, 127))
        teacher = _teacher(SamplingConfig(max_tokens=60, n=20, stop=stops, stop_text=stop_text))  # type: ignore[arg-type]
        items = teacher.label([TokenizedPrompt("a", np.arange(4, dtype=np.int32), None, 4)])
        return [
            item.loss_mask_N
            for item in items
            if isinstance(item, LabeledSequence) and 32 <= int(item.token_ids_T[-1]) < 127
        ]

    masked = masks("mask")
    assert len(masked) >= 10
    assert all(not mask_N[-1] and mask_N[:-1].all() for mask_N in masked)
    assert all(mask_N.all() for mask_N in masks("learn"))
