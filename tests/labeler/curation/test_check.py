"""Responses that a program of the user's finds right: all of them shown once, the best kept, the rest counted."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labeler.__main__ import main
from logitstore.exchange.chat_text import renderer
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import put_tokenizer
from tests.logitstore.exchange.test_texts import CHATML, byte_tokenizer, store_of

EXAMPLE = Path(__file__).parents[3] / "benchmarks/demo_data/check_number.py"
ANSWERS = {
    ("p0", 0): "<think>\nThree fours.\n</think>\n\nIt is 12.<|e|>",
    ("p0", 1): "<think>\nNo.\n</think>\n\n13<|e|>",
    ("p0", 2): "12<|e|>",
    ("p0", 3): "<think>\n12 or so",
    ("p1", 0): "7 and no more<|e|>",
    ("p1", 1): "I cannot say.<|e|>",
    ("p2", 0): "42<|e|>",
}
PROBLEMS = [{"id": f"p{i}", "prompt": f"problem {i}", "answer": right} for i, right in enumerate((12, 8, 42))]


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogitStore:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    render = renderer(CHATML, {}, {})
    texts = [
        (render([{"role": "user", "content": f"problem {name[1]}"}], True), answer)
        for (name, _), answer in ANSWERS.items()
    ]
    base = store_of(tmp_path / "base", texts, CHATML)
    store = LogitStore.create(tmp_path / "traces", base.manifest)
    named = [
        replace(one, record_id=name, sample_index=sample, finish_reason="length" if sample == 3 else "stop")
        for one, (name, sample) in zip(base.iter_sequences(), ANSWERS, strict=True)
    ]
    store.commit_unit("u", 0, named, seconds=0.0, worker="w")
    files = {"tokenizer.json": byte_tokenizer().to_str().encode(), "chat_template.jinja": CHATML.encode()}
    put_tokenizer(store.objects, files)
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(one) + "\n" for one in PROBLEMS))
    return store


def program(folder: Path, body: str) -> str:
    """The command of a program that writes down what it is shown, and then does `body`."""
    path = folder / "program.py"
    path.write_text(
        "import json, sys, time\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        f"    open({str(folder / 'shown')!r}, 'a').write(line)\n"
        f"    {body}\n"
    )
    return shlex.join([sys.executable, str(path)])


def check(store: LogitStore, command: str, *more: str) -> int:
    folder = Path(store.uri).parent
    return main(["check", store.uri, "--out", str(folder / "kept"), "--program", command, *more])


def kept(store: LogitStore) -> list[tuple[str, int]]:
    found = LogitStore.open(Path(store.uri).parent / "kept").iter_sequences()
    return [(one.record_id, one.sample_index) for one in found]


def report(store: LogitStore) -> dict[str, Any]:
    return json.loads((Path(store.uri).parent / "kept.check.json").read_text())


def test_the_best_right_one_of_each_problem_is_kept_with_its_labels(
    traces: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = ["--records", str(tmp_path / "problems.jsonl")]
    assert check(traces, shlex.join([sys.executable, str(EXAMPLE)]), *records) == 0
    assert kept(traces) == [("p0", 2), ("p2", 0)], "of two right ones with one score the shorter"
    said = capsys.readouterr().out
    assert "7 responses to 3 problems checked, 2 kept, dropped: 1 worse; 4 wrong; 1 problems without" in said
    assert (report(traces)["num_unsolved"], report(traces)["num_dropped"]) == (1, {"worse": 1, "wrong": 4})
    theirs = {(one.record_id, one.sample_index): one for one in traces.iter_sequences()}
    for one in LogitStore.open(tmp_path / "kept").iter_sequences():
        source = theirs[one.record_id, one.sample_index]
        np.testing.assert_array_equal(one.rows.logits_NK, source.rows.logits_NK)
        np.testing.assert_array_equal(one.token_ids_T, source.token_ids_T)


def test_a_program_sees_reasoning_apart_and_the_record(traces: LogitStore, tmp_path: Path) -> None:
    command = program(tmp_path, "print(json.dumps({'keep': True, 'score': asked['sample']}), flush=True)")
    assert check(traces, command, "--records", str(tmp_path / "problems.jsonl"), "--best", "2") == 0
    shown = [json.loads(line) for line in (tmp_path / "shown").read_text().splitlines()]
    first = shown[0]
    assert (first["id"], first["sample"], first["record"]["answer"]) == ("p0", 0, 12)
    assert (first["reasoning"], first["answer"]) == ("Three fours.", "It is 12.")
    assert (shown[3]["reasoning"], shown[3]["answer"], shown[3]["finish_reason"]) == (
        "12 or so",
        "",
        "length",
    )
    assert "problem 0" in first["prompt"]
    assert kept(traces) == [("p0", 2), ("p0", 3), ("p1", 0), ("p1", 1), ("p2", 0)]


def test_time_outs_nonsense_and_ends_are_counted_and_the_rest_goes_on(
    traces: LogitStore, tmp_path: Path
) -> None:
    body = (
        "{('p0', 1): lambda: time.sleep(60), ('p0', 2): lambda: print('what?', flush=True), "
        "('p1', 0): lambda: sys.exit(3)}"
        ".get((asked['id'], asked['sample']), lambda: print(json.dumps({'keep': True}), flush=True))()"
    )
    assert check(traces, program(tmp_path, body), "--timeout-sec", "3", "--best", "9") == 0
    assert report(traces)["num_dropped"] == {"failed": 1, "malformed": 1, "timeout": 1}
    assert kept(traces) == [("p0", 0), ("p0", 3), ("p1", 1), ("p2", 0)]


def test_a_check_that_was_stopped_goes_on_and_is_done_once(
    traces: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = program(tmp_path, "print(json.dumps({'keep': True}), flush=True)")
    assert check(traces, command) == 0
    verdicts = (tmp_path / "kept.checks.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "kept.checks.jsonl").write_text("".join(verdicts[:3]) + verdicts[3][:20])
    before, shown = kept(traces), (tmp_path / "shown").read_text().splitlines()
    assert check(traces, command) == 0
    again = (tmp_path / "shown").read_text().splitlines()[len(shown) :]
    assert again == shown[3:], "what has a whole verdict is not shown again"
    assert kept(traces) == before
    assert check(traces, command, "--best", "2") == 2
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/no/such/program", "cannot be started"),
        (shlex.join([sys.executable, "-c", "pass"]), "ended 3 times in a row"),
    ],
)
def test_a_program_that_does_not_work_ends_the_check_in_words(
    traces: LogitStore, command: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(traces, command) == 2
    assert words in capsys.readouterr().err
