"""Student and teacher on the same questions: answers kept, scores paired, gap and routing as defined."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from logitstore.store import LogitStore
from tests.logitstore.exchange.test_texts import THINKING, store_of
from tests.logitstore.random_labels import make_manifest
from tests.trainer.parity.models import byte_model
from tests.trainer.students import tiny_student
from trainer.__main__ import main
from trainer.parity.answering import Compared, Said, Work
from trainer.parity.arguments import tasks_of
from trainer.parity.contamination import _Found
from trainer.parity.figures.gap import gap_of, routing_of
from trainer.parity.figures.report import in_words, interval_in_words, write_results
from trainer.parity.models.answer_book import AnswerBook
from trainer.parity.records import Pair, Scored, Scores
from trainer.run.only_run import only_run


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """Options: two tiny models that differ, ten questions of words that they know, a folder."""
    words = Tokenizer(WordLevel({f"t{index}": index for index in range(64)}, unk_token="t0"))
    words.pre_tokenizer = Whitespace()  # type: ignore[assignment]  # the library's own way to set it
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t1", unk_token="t0")
    for seed, name in enumerate(("teacher", "student")):
        tokenizer.save_pretrained(tmp_path / name)
        tiny_student(seed=seed).save_pretrained(tmp_path / name)
    write_questions(tmp_path / "q.jsonl", range(2, 12))
    return [
        "parity", "--student", f"{tmp_path}/student", "--teacher", f"{tmp_path}/teacher",
        "--tasks", f"{tmp_path}/q.jsonl", "--match", "contains", "--max-tokens", "6",
        "--out", f"{tmp_path}/out",
    ]  # fmt: skip


def test_figures_are_not_written_into_a_store(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LogitStore.create(tmp_path / "out", make_manifest())
    before = sorted((tmp_path / "out").iterdir())
    assert main([*places, "--unchecked"]) == 2
    assert "is a store of labels, whose folder holds nothing else" in capsys.readouterr().err
    assert sorted((tmp_path / "out").iterdir()) == before


def test_two_comparisons_do_not_write_one_file_of_answers(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their lines would run into one another, and neither could be gone on with."""
    with only_run(tmp_path / "out"):
        assert main([*places, "--unchecked"]) != 0
    assert f"another process writes into {tmp_path / 'out'}; wait until it ends, or choose another --out" in (
        capsys.readouterr().err
    )
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("tasks", ["qestions.jsonl", "gsm8k=qestions.jsonl"])
def test_a_file_that_is_not_here_is_said_before_anything_is_asked(
    places: list[str], tasks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was taken for a task of lm-eval, which is not installed."""
    assert main([*places, "--unchecked", "--tasks", tasks]) == 2
    assert "'qestions.jsonl' is no file here; correct the path" in capsys.readouterr().err


def test_a_comma_may_stand_in_the_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a, b.jsonl").write_text("")
    assert tasks_of("a, b.jsonl") == ("a, b.jsonl",)
    assert tasks_of("a.jsonl,gsm8k") == ("a.jsonl", "gsm8k")


def test_a_list_of_tasks_may_be_longer_than_the_name_of_a_file() -> None:
    """It was looked for as one file, and the system refuses a name of more than 255 bytes."""
    names = tuple(f"mmlu_task_of_number_{number}" for number in range(40))
    assert tasks_of(",".join(names)) == names


def test_no_task_is_refused(places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*places, "--unchecked", "--tasks", ","]) == 2
    assert "--tasks names nothing; give files of questions, or tasks of lm-eval" in capsys.readouterr().err


def test_a_task_of_a_long_name_is_no_file_here(places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*places, "--unchecked", "--tasks", "q" * 300 + ".jsonl"]) == 2
    assert ".jsonl' is no file here; correct the path" in capsys.readouterr().err


@pytest.mark.slow
def test_both_answer_and_are_not_asked_again(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(places) == 2
    assert "give --labels STORE, or --unchecked" in capsys.readouterr().err
    assert main([*places, "--unchecked"]) == 0
    out, err = capsys.readouterr()
    assert "contamination was not checked" in out
    assert "student: 10 of 10 answered" in err
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert len(items) == 10
    for item in items:
        for role in ("teacher", "student"):
            assert item[role]["score"] == float(item["reference"] in item[role]["output"].split())
        assert 0 < item["student"]["confidence"] < 1
    (gap,) = json.loads((tmp_path / "out" / "parity.json").read_text())["gaps"].values()
    difference = [item["teacher"]["score"] - item["student"]["score"] for item in items]
    assert gap["gap"] == pytest.approx(sum(difference) / 10)
    assert (tmp_path / "out" / "routing.png").read_bytes().startswith(b"\x89PNG")
    book = tmp_path / "out" / "answers.jsonl"
    answers = book.read_bytes()
    assert answers.count(b"\n") == 20
    book.write_bytes(answers[:-30])  # as if killed while writing
    assert main([*places, "--unchecked", "--json"]) == 0
    assert book.read_bytes() == answers
    assert json.loads(capsys.readouterr().out)["gaps"][f"{tmp_path}/q.jsonl"] == gap


def test_figures_of_an_earlier_comparison_do_not_stay(places: list[str], tmp_path: Path) -> None:
    """The curve would pass for one of this comparison, which has none."""
    scored = Scored("a", "", "", "", 1.0, None)
    options: Any = SimpleNamespace(out=tmp_path, seed=0, student="s", teacher="t", match="exact", judge=None)
    said = Said({}, {}, 0, 0)
    (tmp_path / "routing.png").write_text("earlier")
    found = Compared({"q": Scores([scored])}, {"q": Scores([scored])}, {})
    record = write_results(options, Work({}, [], [], None), said, said, found)
    assert record["routing"] == {}
    assert not (tmp_path / "routing.png").exists()


def test_a_cut_line_is_dropped(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path / "book.jsonl")
    book.add("a", {"text": "x"})
    book.close()
    with (tmp_path / "book.jsonl").open("a") as file:
        file.write('{"key": "b", "te')
    book = AnswerBook(tmp_path / "book.jsonl")
    assert (book["a"], "b" in book) == ({"text": "x"}, False)
    assert (tmp_path / "book.jsonl").read_bytes().count(b"\n") == 1


def pairs_of(scores: list[tuple[float, float, float]]) -> list[Pair]:
    found = []
    for number, (teacher, student, sure) in enumerate(scores):
        name = str(number)
        found.append(
            Pair(
                name, "", "", Scored(name, "", "", "", teacher, None), Scored(name, "", "", "", student, sure)
            )
        )
    return found


def test_gap_and_routing() -> None:
    pairs = pairs_of([(1, 0, 0.1), (1, 0, 0.2), (1, 1, 0.8), (0, 1, 0.9)] * 25)
    gap = gap_of(pairs, seed=3)
    assert (gap.teacher, gap.student, gap.gap) == (0.75, 0.5, 0.25)
    # The differences 1, 1, 0, -1 have a standard deviation of 0.829 each, so their mean of 0.0829.
    assert gap.low == pytest.approx(0.25 - 1.96 * 0.0829, abs=0.02)
    assert gap.high == pytest.approx(0.25 + 1.96 * 0.0829, abs=0.02)
    assert gap_of(pairs, seed=3) == gap
    routing = routing_of(pairs)
    assert routing is not None
    assert routing.share == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert routing.quality == pytest.approx((0.5, 0.75, 1.0, 1.0, 0.75))
    assert routing.enough() == 1
    assert routing.threshold[1] == 0.2


@pytest.mark.parametrize("number", [1, 50])
def test_items_that_are_all_alike_tell_no_interval(number: int) -> None:
    """Resampled they are alike again: an interval from +0.0000 to +0.0000 looked like certainty."""
    gap = gap_of(pairs_of([(0, 0, 0.5)] * number), seed=0)
    words = interval_in_words(gap)
    assert "no interval" in words
    assert ("only item" in words) == (number == 1)
    assert interval_in_words(gap_of(pairs_of([(1, 0, 0.1), (1, 1, 0.8)] * 9), seed=0)).startswith("95% ")


def test_a_score_below_zero_can_be_come_near_to() -> None:
    """Such as a mean log-probability."""
    pairs = pairs_of([(-1, -3, 0.1), (-1, -1.05, 0.8)])
    gap = gap_of(pairs, seed=0)
    routing = routing_of(pairs)
    assert routing is not None
    assert routing.enough() == 1
    record = {
        "contamination": None, "emptied": ["other.jsonl"], "num_cut_prompts": {"student": 0},
        "num_cut_answers": {"student": 3}, "num_empty_answers": {"student": 2},
        "num_changed_texts": {"judge": 1}, "gaps": {"a": asdict(gap), "b": asdict(replace(gap, higher_is_better=False))},
        "routing": {"a": routing.to_dict()},
    }  # fmt: skip
    told = in_words(record, Path("out")).splitlines()
    assert "other.jsonl: nothing is left to ask" in told
    assert any(line.startswith("student: 3 answers were cut off") for line in told)
    assert "student: 2 answers are empty" in told
    assert any(line.startswith("judge: its tokenizer drops or changes parts of 1 texts") for line in told)
    assert "50% of requests to the teacher, those with a confidence below 0.8, come within 5%" in told[6]
    assert told[7].startswith("b: 2 items, lower is better; teacher -1.0000, student -2.0250, gap +1.0250")


def write_questions(path: Path, numbers: range, answer: str = "t{}") -> str:
    lines = [{"question": f"t{n} t{n + 1} t{n + 2}", "answer": answer.format(n)} for n in numbers]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.slow
def test_a_judge_is_loaded_once_and_its_name_checked_first(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_questions(tmp_path / "other.jsonl", range(20, 24))
    judged = [*places, "--unchecked", "--match", "judge", "--tasks", f"{tmp_path}/q.jsonl,{other}"]
    assert main([*judged, "--judge", f"{tmp_path}/nowhere"]) == 2
    assert f"--judge = '{tmp_path}/nowhere' is no folder here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    loaded: list[str] = []
    load = AutoModelForCausalLM.from_pretrained

    def spy(name: str, **settings: Any) -> Any:
        loaded.append(Path(name).name)
        return load(name, **settings)

    monkeypatch.setattr("trainer.parity.models.model.AutoModelForCausalLM.from_pretrained", spy)
    shutil.copytree(tmp_path / "teacher", tmp_path / "judge")
    assert main([*judged, "--judge", f"{tmp_path}/judge", "--json"]) == 0
    assert loaded == ["teacher", "student", "judge"]
    record = json.loads(capsys.readouterr().out)
    assert sorted(gap["num_items"] for gap in record["gaps"].values()) == [4, 10]


def test_answers_that_leave_nothing_to_compare_are_refused_first(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_questions(tmp_path / "q.jsonl", range(2, 4), "?!")
    assert main([*places, "--unchecked"]) == 2
    assert f"{tmp_path}/q.jsonl, line 1: of the answer '?!' nothing is left" in capsys.readouterr().err
    assert main([*places[:-2], "--tasks", ",", "--out", f"{tmp_path}/out", "--unchecked"]) == 2
    assert "--tasks names nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_met_whole_is_said(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training store holds all questions of one file; what is left is asked of the teacher's store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    met = [(f"a question of {number} that the student has met", " yes<|e|>") for number in range(3)]
    store_of(tmp_path / "trained", met, None)
    asked = [("another question that nobody trained on", " It is 7.<|e|>")]
    store_of(tmp_path / "labels", asked, None)
    lines = [{"question": question, "answer": "7"} for question, _ in met]
    (tmp_path / "met.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "new.jsonl").write_text(json.dumps({"question": asked[0][0], "answer": "7"}) + "\n")
    student = byte_model(tmp_path / "bytes")
    given = [
        "parity", "--student", student, "--teacher", f"{tmp_path}/labels", "--match", "contains",
        "--labels", f"{tmp_path}/trained", "--max-tokens", "4", "--out", f"{tmp_path}/out",
    ]  # fmt: skip
    assert main([*given, "--tasks", f"{tmp_path}/met.jsonl"]) == 2
    assert "all 3 items share 13 words in a row" in capsys.readouterr().err
    assert main([*given, "--tasks", f"{tmp_path}/met.jsonl,{tmp_path}/new.jsonl"]) == 0
    told = capsys.readouterr().out
    assert "contamination: 3 items share" in told
    assert f"{tmp_path}/met.jsonl: nothing is left to ask" in told
    assert f"{tmp_path}/new.jsonl: 1 items; teacher 1.0000" in told
    assert "student: 1 answers were cut off before their end" in told


def test_reasoning_is_no_part_of_an_answer(places: list[str], tmp_path: Path) -> None:
    """A model that is still thinking when it is cut off has said nothing."""
    byte_model(tmp_path / "student", template=THINKING)
    assert main([*places, "--unchecked", "--quiet"]) == 0
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert {item["student"]["output"] for item in items} == {""}
    assert all(item["teacher"]["output"] for item in items)


def test_questions_met_in_training_are_found() -> None:
    shared = "how many clips did the shop sell in the months of april and may together"
    found = _Found({"a": (f"Natalia asks {shared}",), "b": (f"And {shared}",), "c": ("something else " * 8,)})
    found.compare(["a prompt of its own that nobody else has", f"Please tell me {shared} and why"])
    assert (found.num_prompts, sorted(found.all_met())) == (2, ["a", "b"])
