"""`verify --decontaminate`: of planted prompts each is named, no other is, and the store's answers do not count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from logitstore.__main__ import main
from logitstore.exchange.chat_text import renderer
from logitstore.rows.where import read_ids
from logitstore.store import LogitStore
from tests.logitstore.exchange.test_texts import CHATML, store_of, with_own_prompts

SECRET = (
    "A farmer has seventeen sheep and all but nine run away before the storm reaches his old wooden barn; "
    "how many sheep are left?"
)
OTHERS = ("Why is the sky blue?", "Name three rivers of Norway.", "How does a lock on a canal work?")
SHORT = "What is 17 times 3?"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A store of chats, of which two have an evaluation question, and the evaluation set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    render = renderer(CHATML, {}, {})
    prompts = [
        OTHERS[0],
        f"Please help me. {SECRET}",
        OTHERS[1],
        SHORT.upper(),
        f"{OTHERS[2]} And then: {SHORT}",
    ]
    chats = [(render([{"role": "user", "content": text}], True), f"{SECRET}<|e|>") for text in prompts]
    store = store_of(tmp_path / "store", chats, CHATML)
    evaluation = tmp_path / "eval.jsonl"
    evaluation.write_text("".join(json.dumps({"question": text}) + "\n" for text in (SECRET, SHORT)))
    return store.uri, str(evaluation)


def test_planted_prompts_are_named(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, evaluation = files
    found = tmp_path / "found.jsonl"
    command = ["verify", uri, "--decontaminate", evaluation, "--by", "ngram", "--found", str(found)]
    assert main(command) == 1
    said = capsys.readouterr().out.splitlines()
    named = [line.split(":")[1].strip() for line in said if "[contaminated]" in line]
    assert named == ["record 'r1'", "record 'r3'"]
    assert "5 prompts compared with evaluation sets, 2 near one of their texts" in said
    lines = [json.loads(line) for line in found.read_text().splitlines()]
    assert [(one["id"], one["method"], one["partner"]) for one in lines] == [
        ("r1", "ngram", f"{evaluation}:1"), ("r3", "ngram", f"{evaluation}:2")
    ]  # fmt: skip
    assert lines[0]["partner_text"] == SECRET
    assert read_ids(tmp_path / "found.ids") == {"r1", "r3"}

    cleaned = str(tmp_path / "clean")
    assert main(["merge", uri, "--out", cleaned, "--without-ids", str(tmp_path / "found.ids")]) == 0
    capsys.readouterr()
    assert main(["verify", cleaned, "--decontaminate", evaluation, "--by", "ngram", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["num_prompts_compared"], summary["num_contaminated"], summary["ok"]) == (3, 0, True)


def test_a_students_own_prompt_is_compared_too(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher's may hide it among documents; a record that is near by both counts once."""
    render = renderer(CHATML, {}, {})
    own = [None, SECRET, f"Say. {SECRET}", OTHERS[0], None]
    prompts = [None if text is None else render([{"role": "user", "content": text}], True) for text in own]
    store = with_own_prompts(tmp_path / "own", LogitStore.open(files[0]), prompts)
    assert main(["verify", store.uri, "--decontaminate", files[1], "--by", "ngram", "--quick"]) == 1
    said = capsys.readouterr().out
    assert [f"record 'r{i}'" in said for i in range(5)] == [False, True, True, True, False]
    assert "5 prompts compared with evaluation sets, 3 near one of their texts" in said


def test_a_question_in_other_words_is_found_by_meaning(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wordllama")
    evaluation = tmp_path / "reworded.jsonl"
    evaluation.write_text(json.dumps({"question": "Please name three Norwegian rivers in Norway"}) + "\n")
    command = ["verify", files[0], "--decontaminate", str(evaluation), "--cosine", "0.75", "--quick"]
    assert main([*command, "--by", "ngram"]) == 0
    assert main(command) == 1
    out = capsys.readouterr().out
    assert out.count("[contaminated]") == 1
    assert "record 'r2'" in out
    assert "cosine" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--found", "x.jsonl"], "belongs to --decontaminate"),
        (["--decontaminate", "EVAL", "--by", "magic"], "must be ngram, cosine"),
        (["--decontaminate", "EVAL", "--found", "x.txt"], "must end in .jsonl"),
        (["--decontaminate", "EVAL", "--found", "none/x.jsonl"], "none is no folder; make it"),
        (["--decontaminate", "no/such/file.jsonl"], "no/such/file.jsonl"),
        (["--decontaminate", "EVAL", "--eval-field", "nothing"], "must be read whole"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    files: tuple[str, str], options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [files[1] if option == "EVAL" else option for option in options]
    assert main(["verify", files[0], *given]) == 2
    assert words in capsys.readouterr().err


def test_what_was_found_never_replaces_an_evaluation_set(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It was emptied where nothing was found."""
    before = Path(files[1]).read_bytes()
    for named in (files[1], str(Path(files[1]).parent / "*.jsonl")):
        command = ["verify", files[0], "--decontaminate", named, "--by", "ngram", "--found", files[1]]
        assert main(command) == 2
        assert "is a file of the input, which would be replaced" in capsys.readouterr().err
        assert Path(files[1]).read_bytes() == before


def test_the_field_of_an_evaluation_set_is_named_by_an_option_that_exists(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    for text in ('{"other": "x"}\n', ""):
        other.write_text(text)
        assert main(["verify", files[0], "--decontaminate", str(other)]) == 2
        said = capsys.readouterr().err
        assert "--eval-field (of `store verify`)" in said
        assert " --field" not in said


def test_a_damaged_store_is_not_compared(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    shard = next(Path(files[0].removeprefix("file://")).rglob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-9])
    assert main(["verify", files[0], "--decontaminate", files[1], "--by", "ngram"]) == 1
    said = capsys.readouterr().out
    assert "[not_compared]" in said
    assert "prompts compared" not in said
