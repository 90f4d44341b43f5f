"""Records of the input that are several of the store: by turns, or by the texts of a list."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from logitstore.inputs.parts import id_of, parent_id, part_number, parts_of
from logitstore.inputs.raw_record import RawRecord
from logitstore.manifest.fields import InputInfo
from logitstore.rows.conditions import id_hashes

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL, TOOL = {"role": "assistant", "tool_calls": [{}]}, {"role": "tool", "content": "21"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


def parts(record: dict[str, Any], info: InputInfo) -> list[RawRecord]:
    return list(parts_of([RawRecord("in.jsonl", 4, record, None)], info))


@pytest.mark.parametrize(
    ("messages", "ends"),
    [
        ([USER, ANSWER], {1: 2}),
        ([USER, ANSWER, USER, ANSWER], {1: 2, 2: 4}),
        ([USER, CALL, TOOL, ANSWER], {1: 2, 2: 4}),
        ([HUMAN, GPT, HUMAN, GPT], {1: 2, 2: 4}),
        ([USER, ANSWER, USER], {1: 2, 2: 3}),
        ([USER], {1: 1}),
        ([ANSWER, USER, ANSWER], {2: 3}),
        ([ANSWER], {2: 1}),
    ],
    ids=["one", "two", "tools", "sharegpt", "open end", "no answer", "greeting", "answer alone"],
)
def test_a_record_for_each_turn(messages: list[dict[str, Any]], ends: dict[int, int]) -> None:
    record = {"id": "c", "data": {"chat": messages}, "tools": [1]}
    info = InputInfo("in", "messages", {"messages": "data.chat", "id": "id"}, parts="turns")
    found = parts(record, info)
    assert {raw.part: len((raw.record or {})["data"]["chat"]) for raw in found} == ends
    assert [id_of(raw, info) for raw in found] == [f"c#turn-{number}" for number in ends]
    assert all((raw.file, raw.line, (raw.record or {})["tools"]) == ("in.jsonl", 4, [1]) for raw in found)
    assert record["data"]["chat"] is messages


@pytest.mark.parametrize(
    ("kind", "fields", "record", "texts"),
    [
        ("prompt", {"prompt": "turns"}, {"turns": ["a", "b"]}, [("turns", "a"), ("turns", "b")]),
        ("text", {"text": "text"}, {"text": ["a"]}, [("text", "a")]),
        (
            "prompt_response",
            {"prompt": "q", "response": "a"},
            {"q": "Q", "a": ["x", "y"]},
            [("a", "x"), ("a", "y")],
        ),
    ],
)
def test_a_record_for_each_text(
    kind: str, fields: dict[str, str], record: dict[str, Any], texts: list[tuple[str, str]]
) -> None:
    info = InputInfo("in", kind, fields, parts="texts")
    found = parts(record, info)
    assert [raw.record for raw in found] == [{**record, name: text} for name, text in texts]
    ids = [id_of(raw, info) for raw in found]
    assert len({parent_id(name) for name in ids}) == 1
    assert [part_number(name) for name in ids] == list(range(1, len(texts) + 1))


def test_what_is_no_list_stays_whole() -> None:
    info = InputInfo("in", "prompt_response", {"prompt": "q", "response": "a", "id": "id"}, parts="texts")
    for record in ({"id": 1, "q": "Q", "a": "A"}, {"id": 1, "q": ["a"], "a": ["b"]}, {"id": 1, "q": []}):
        (raw,) = parts(record, info)
        assert (raw.record, raw.part, id_of(raw, info)) == (record, 0, "1")
    broken = RawRecord("in", 1, None, "bad")
    assert list(parts_of([broken], info)) == [broken]


def test_a_split_keeps_the_parts_of_a_record_together() -> None:
    hashes = id_hashes(["c", "c#turn-1", "c#turn-12", "c#text-3", "c#turn-1-2", "c#turn-x", "d#turn-1"])
    assert np.unique(hashes[:5]).size == 1
    assert len(set(hashes.tolist())) == 3


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
def test_an_answer_that_is_not_to_be_learned_ends_no_part(key: str) -> None:
    info = InputInfo("in", "messages", {"messages": "messages"}, parts="turns")
    no = 0 if key == "weight" else False
    shown = [USER, {**ANSWER, key: no}, USER, {**ANSWER, key: 1}]
    assert [raw.part for raw in parts({"messages": shown}, info)] == [2]
    (whole,) = parts({"messages": shown[:2]}, info)
    assert (whole.part, whole.record) == (0, {"messages": shown[:2]}), "it is not lost"
