"""Looking for sequences: what is found is what reading the whole store finds."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.__main__ import main
from logitstore.decoding.tokens import TokenTexts
from logitstore.errors import UnsupportedInputError
from logitstore.manifest.fields import ShardEntry
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.records import LabeledSequence, Segment
from logitstore.rows.entropy import entropy
from logitstore.rows.where import parse_selection
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import put_tokenizer
from logitstore.viewer import overview
from logitstore.viewer.conversation import Conversations
from logitstore.viewer.finding import Question
from logitstore.viewer.overview import StoreView
from logitstore.viewer.server import ViewerServer
from logitstore.viewer.static import write_static_page
from tests.logitstore.decoding.test_tokens import byte_level_tokenizer
from tests.logitstore.viewer.viewer_records import fill_large_store, manifest_of

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    folder = tmp_path_factory.mktemp("large")
    tokenizer = byte_level_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    fingerprint = tokenizer_fingerprint(tokenizer.get_vocab())
    made = LogitStore.create(
        str(folder / "store"), manifest_of(257, 8, model=str(folder), fingerprint=fingerprint)
    )
    fill_large_store(made, 8, 40, tokenizer.encode("abcdefghijklmnop ").ids)
    return made


@pytest.fixture(scope="module")
def sequences(store: LogitStore) -> list[LabeledSequence]:
    return list(store.iter_sequences())


def found(server: ViewerServer, question: Question, count: int = 500) -> dict[str, Any]:
    """The answer when all has been looked through."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer: dict[str, Any] = server.sequences(0, 0, count, question)
        if answer["looked"] == answer["of"]:
            return answer
        time.sleep(0.02)
    raise AssertionError("the search did not end")


def numbers_of(answer: dict[str, Any]) -> list[int]:
    return [one["index"] for one in answer["sequences"]]


@pytest.fixture
def server(store: LogitStore) -> Any:
    made = ViewerServer([StoreView(store.uri)], 0)
    yield made
    made.server_close()


def test_flags_and_lengths_select(server: ViewerServer, sequences: list[LabeledSequence]) -> None:
    expected = [i for i, one in enumerate(sequences) if "truncated" in one.flags]
    assert numbers_of(found(server, Question(where="flags has truncated"))) == expected
    assert 0 < len(expected) < len(sequences)
    longer = [i for i, one in enumerate(sequences) if len(one.token_ids_T) > 28]
    assert numbers_of(found(server, Question(where="num_tokens > 28"))) == longer


def test_what_a_condition_names_and_nothing_has_is_said(server: ViewerServer, store: LogitStore) -> None:
    """As other commands say it; of a unit too, though shards of other units are not looked into."""
    answer = found(server, Question(where="flags has truncatd or record_id in (3-1, nobody)"))
    assert answer["unmet"] == (
        "the condition names flags 'truncatd', which no sequence that was looked at has; did you mean "
        "'truncated'? there are: truncated",
        "the condition names record_id 'nobody', which no sequence that was looked at has",
    )
    assert [one["record_id"] for one in answer["sequences"]] == ["3-1"]
    assert found(server, Question(where=f"unit_id = {store.shards()[3].unit_id}"))["unmet"] == ()
    (other,) = found(server, Question(where="unit_id = unit-99"))["unmet"]
    assert "unit_id 'unit-99', which no unit" in other


def test_a_part_of_an_id_or_of_the_text_is_found(
    server: ViewerServer, sequences: list[LabeledSequence]
) -> None:
    texts = TokenTexts(byte_level_tokenizer())
    whole = [b"".join(map(texts.raw, one.token_ids_T.tolist())).decode() for one in sequences]
    needle = whole[77][5:8].upper()
    expected = [i for i, text in enumerate(whole) if needle.lower() in text.lower()]
    assert 77 in expected
    assert numbers_of(found(server, Question(text=needle))) == expected
    by_id = [i for i, one in enumerate(sequences) if "3-1" in one.record_id]
    assert numbers_of(found(server, Question(text="3-1"))) == by_id


@pytest.mark.parametrize("order", ["length", "entropy", "surprise"])
def test_orders_are_those_of_the_rows(
    server: ViewerServer, store: LogitStore, sequences: list[LabeledSequence], order: Any
) -> None:
    spec = store.manifest.labels
    figure = {
        "length": lambda one: len(one.token_ids_T),
        "entropy": lambda one: entropy(one.rows, spec, 1.0).mean(),
        "surprise": lambda one: -one.rows.label_logprob_N.mean(),
    }[order]
    values = [float(figure(one)) for one in sequences]
    for descending in (False, True):
        shown = numbers_of(found(server, Question(order=order, descending=descending)))
        assert sorted(shown) == list(range(len(sequences)))
        ordered = np.array([values[number] for number in shown])
        np.testing.assert_allclose(ordered, sorted(values, reverse=descending), atol=1e-6)


def test_a_search_keeps_to_what_the_page_shows(store: LogitStore, sequences: list[LabeledSequence]) -> None:
    """Numbers are those of the selected sequences, as everywhere on the page."""
    server = ViewerServer([StoreView(store.uri, selection=parse_selection("flags lacks truncated"))], 0)
    kept = [one for one in sequences if not one.flags]
    answer = found(server, Question(where="num_tokens > 28"))
    expected = [one.record_id for one in kept if len(one.token_ids_T) > 28]
    assert [one["record_id"] for one in answer["sequences"]] == expected
    assert all(kept[one["index"]].record_id == one["record_id"] for one in answer["sequences"])
    assert server.record(0, kept[100].record_id, 0) == {"index": 100}
    with pytest.raises(IndexError, match="no sample 0"):
        server.record(0, "0-0", 0)  # flagged
    server.server_close()


def test_what_comes_in_is_shown_before_all_is_looked_through(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = StoreView(store.uri)
    view.open()
    one_shard = view.finder.found_in
    monkeypatch.setattr(
        view.finder, "found_in", lambda *given: (time.sleep(0.2), one_shard(*given))[1], raising=True
    )
    server = ViewerServer([view], 0)
    question = Question(where="flags has truncated")
    looked = set()
    answer: dict[str, Any] = {"looked": None, "of": 0}
    while answer["looked"] != answer["of"]:
        answer = server.sequences(0, 0, 500, question)
        looked.add(answer["looked"])
        assert answer["total"] == answer["looked"] // 10
        time.sleep(0.05)
    assert len(looked) > 2
    server.server_close()


def test_a_store_that_grows_is_not_looked_through_from_its_beginning(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While shards came in faster than it took to look through all, no search ever ended."""
    monkeypatch.setattr(overview, "REFRESH_AFTER_SEC", 0.0)
    shutil.copytree(store.uri, tmp_path / "copy")
    view = StoreView(str(tmp_path / "copy"))
    grown, _ = view.open()
    looked_into: list[str] = []
    one_shard = view.finder.found_in

    def found_in(entry: ShardEntry, *given: Any) -> Any:
        looked_into.append(entry.unit_id)
        return one_shard(entry, *given)

    monkeypatch.setattr(view.finder, "found_in", found_in)
    server = ViewerServer([view], 0)
    question = Question(where="flags has truncated or flags has truncatd")
    first = found(server, question)
    assert len(looked_into) == len(grown.shards())
    late = [dataclasses.replace(one, record_id=f"late-{n}") for n, one in enumerate(grown.iter_sequences())][
        :40
    ]
    LogitStore.open(grown.uri).commit_unit("late", 99, late, seconds=0.0, worker="test")
    second = found(server, question)
    assert looked_into[8:] == ["late"]
    assert (first["of"], second["of"]) == (320, 360)
    assert [one["record_id"] for one in second["sequences"]] == [
        *(one["record_id"] for one in first["sequences"]),
        *(one.record_id for one in late if one.flags),
    ]
    assert second["unmet"] == first["unmet"] != ()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["", "num_tokens > 24"])
def test_what_is_deleted_between_two_requests_is_gone_from_the_second(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """From pages, searches, orders and addresses, with nothing else in its place."""
    monkeypatch.setattr(overview, "REFRESH_AFTER_SEC", 0.0)
    copy = tmp_path / "copy"
    shutil.copytree(store.uri, copy)
    server = ViewerServer([StoreView(str(copy), selection=parse_selection(where))], 0)
    questions = [Question(), Question(text="1-1"), *(Question(order=one) for one in ("length", "entropy"))]
    before = [found(server, question)["sequences"] for question in questions]
    gone = {"1-11", "1-12", "3-39"}
    assert gone <= {one["record_id"] for one in before[0]}
    server.sequence(0, before[0][-1]["index"])
    assert server.record(0, "1-12", 0)["index"] in numbers_of({"sequences": before[0]})

    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(sorted(gone)))
    assert main(["delete", str(copy), "--ids", str(ids), "--reason", "asked for"]) == 0

    for question, shown in zip(questions, before, strict=True):
        after = found(server, question)["sequences"]
        left = [one["record_id"] for one in shown if one["record_id"] not in gone]
        assert [one["record_id"] for one in after] == left
        for one in after[::17]:
            assert server.sequence(0, one["index"])["record_id"] == one["record_id"]
            assert server.record(0, one["record_id"], 0) == {"index": one["index"]}
    with pytest.raises(IndexError, match="no sample 0"):
        server.record(0, "1-12", 0)
    server.server_close()


def test_a_list_is_of_one_state_of_the_store(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another request takes in a deletion between the search and the lines of what it found."""
    copy = tmp_path / "copy"
    shutil.copytree(store.uri, copy)
    view = StoreView(str(copy))
    _, pages = view.open()
    server = ViewerServer([view], 0)
    question = Question(where="num_tokens > 28")
    before = [one["record_id"] for one in found(server, question)["sequences"]]
    (tmp_path / "ids.txt").write_text(before[0])
    command = ["delete", str(copy), "--ids", str(tmp_path / "ids.txt"), "--reason", "asked for"]
    real, deleted = pages.lines, list[int]()

    def lines(numbers: Any) -> Any:
        if not deleted:
            deleted.append(main(command))
            pages.refresh()
        return real(numbers)

    monkeypatch.setattr(pages, "lines", lines)
    shown: dict[str, Any] = server.sequences(0, 0, 500, question)
    assert deleted == [0]
    assert [one["record_id"] for one in shown["sequences"]] == before[1 : 1 + len(shown["sequences"])]
    assert [one["record_id"] for one in found(server, question)["sequences"]] == before[1:]
    server.server_close()


def test_links_go_on_after_the_index_was_compacted(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "REFRESH_AFTER_SEC", 0.0)
    copy = tmp_path / "copy"
    shutil.copytree(store.uri, copy)
    assert main(["compact", str(copy)]) == 0
    server = ViewerServer([StoreView(str(copy))], 0)
    assert server.record(0, "2-7", 0) == {"index": 87}
    late = LogitStore.open(copy)
    (sequence,) = [one for one in store.iter_sequences() if one.record_id == "2-7"]
    late.commit_unit("later", 99, [dataclasses.replace(sequence, record_id="late")], seconds=1, worker="w")
    assert main(["compact", str(copy)]) == 0
    assert server.record(0, "late", 0) == {"index": 320}
    assert server.record(0, "2-7", 0) == {"index": 87}
    server.server_close()


def test_a_search_that_is_taken_up_again_has_one_thread(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the thread of before has not yet noticed that it was ended."""
    view = StoreView(store.uri)
    view.open()
    go, at_work = threading.Event(), []
    one_shard = view.finder.found_in

    def slow(*given: Any) -> Any:
        at_work.append(threading.get_ident())
        go.wait(30)
        return one_shard(*given)

    monkeypatch.setattr(view.finder, "found_in", slow)
    server = ViewerServer([view], 0)
    question = Question(where="num_tokens > 0")
    for num_at_work, other in enumerate((question, Question(text="3-1")), 1):
        server.sequences(0, 0, 5, other)
        while len(at_work) < num_at_work:
            time.sleep(0.01)
    for other in (question, Question(text="3-1"), question):
        server.sequences(0, 0, 5, other)
    go.set()
    answer = found(server, question)
    assert numbers_of(answer) == list(range(320))
    found(server, Question(text="3-1"))
    assert len(at_work) == 2 * 8, "each shard was looked through once for each question"
    assert len(set(at_work)) <= 4
    server.server_close()


def test_a_question_that_means_nothing_is_refused(server: ViewerServer) -> None:
    with pytest.raises(UnsupportedInputError, match="knows no field"):
        server.sequences(0, 0, 5, Question(where="colour = red"))
    with pytest.raises(UnsupportedInputError, match="none of number, length"):
        Question(order="colour")  # type: ignore[arg-type]


def test_the_list_shows_what_was_asked_and_not_the_template(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    store = LogitStore.create(str(tmp_path / "store"), manifest_of(257, 8))
    files = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": TEMPLATE.encode(),
    }
    put_tokenizer(store.objects, files)
    conversations = Conversations(store, TokenTexts(tokenizer))
    prompt = "<|system|>Be good.<|end|><|user|>First?<|end|><|assistant|>Yes.<|end|><|user|>And <b>?<|end|><|assistant|>"
    for text, asked, turns in ((prompt, "First?", 2), ("no template: " + "x" * 400, "no template: ", 0)):
        ids = tokenizer.encode(text + "An answer.").ids
        found = conversations.of(np.array(ids), len(text))
        assert found.asked.startswith(asked)
        assert len(found.asked) <= 241
        assert (found.answer, found.num_turns) == ("An answer.", turns)
    first = prompt.index("Yes.")  # a token for each byte: all turns are labeled, and the last is shown
    ids = tokenizer.encode(prompt + "An answer.").ids
    segments_T = np.full(len(ids), Segment.CONTEXT, np.uint8)
    segments_T[first : first + 4] = segments_T[len(prompt) :] = Segment.ANSWER
    found = conversations.of(np.array(ids), first, segments_T)
    assert (found.asked, found.answer, found.num_turns) == ("First?", "An answer.", 2)


def test_a_file_knows_what_it_leaves_out_and_all_of_the_text_that_it_holds(
    store: LogitStore, sequences: list[LabeledSequence], tmp_path: Path
) -> None:
    """By these the page says how much is missing, and searches (browser/)."""
    page = tmp_path / "page.html"
    write_static_page(store.uri, page, max_sequences=3, selection=parse_selection("num_tokens > 28"))
    block = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    data = json.loads(block[1])
    chosen = [one for one in sequences if len(one.token_ids_T) > 28]
    (described,), (lines,), (held,) = data["overview"]["stores"], data["summaries"], data["sequences"]
    assert described["totals"]["num_sequences"] == len(chosen) < len(sequences)
    assert [one["index"] for one in lines] == [one["index"] for one in held] == [0, 1, 2]
    texts = TokenTexts(byte_level_tokenizer())
    for one, line, sequence in zip(held, lines, chosen[:3], strict=True):
        assert one["record_id"] == line["record_id"] == sequence.record_id
        whole = b"".join(map(texts.raw, sequence.token_ids_T.tolist())).decode()
        assert "".join(one["texts"]) == whole
