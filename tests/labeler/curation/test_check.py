"""Responses that a program of the user's finds right: all of them shown once, the best kept, the rest counted."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeler.__main__ import main
from logitstore.exchange.chat_text import renderer
from logitstore.manifest.fields import SEGMENTS
from logitstore.records import LabeledSequence, Segment
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

TOKENIZER = {"tokenizer.json": byte_tokenizer().to_str().encode(), "chat_template.jinja": CHATML.encode()}


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
    put_tokenizer(store.objects, TOKENIZER)
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(one) + "\n" for one in PROBLEMS))
    return store


def program(folder: Path, body: str) -> str:
    """The command of a program that writes down what it is shown, and then does `body`."""
    path = folder / "program.py"
    path.write_text(
        "import json, os, sys, time\n"
        "def say(**said):\n"
        "    print(json.dumps({'id': asked['id'], 'sample': asked['sample'], **said}), flush=True)\n"
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


@pytest.mark.parametrize("kind", [None, Segment.ANSWER, Segment.REASONING])
def test_weights_of_reasoning_are_named_where_there_is_some(
    traces: LogitStore, kind: Segment | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_segments(one: LabeledSequence, kind: Segment) -> LabeledSequence:
        segments_T = np.full(len(one.token_ids_T), Segment.CONTEXT, np.uint8)
        segments_T[one.prompt_length :] = kind
        return replace(one, segments_T=segments_T)

    store = traces
    if kind is not None:
        labels = replace(traces.manifest.labels, extra_columns=(SEGMENTS,))
        store = LogitStore.create(
            tmp_path / "marked",
            replace(traces.manifest, labels=labels, features=(*traces.manifest.features, SEGMENTS)),
        )
        marked = [with_segments(one, kind) for one in traces.iter_sequences()]
        store.commit_unit("u", 0, marked, seconds=0.0, worker="w")
        put_tokenizer(store.objects, TOKENIZER)
    assert check(store, program(tmp_path, "say(keep=True)")) == 0
    assert ("data.segments" in capsys.readouterr().out) == (kind is Segment.REASONING)


def test_a_program_sees_reasoning_apart_and_the_record(traces: LogitStore, tmp_path: Path) -> None:
    command = program(tmp_path, "say(keep=True, score=asked['sample'])")
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
        ".get((asked['id'], asked['sample']), lambda: say(keep=True))()"
    )
    assert check(traces, program(tmp_path, body), "--timeout-sec", "3", "--best", "9") == 0
    assert report(traces)["num_dropped"] == {"failed": 1, "malformed": 1, "timeout": 1}
    assert kept(traces) == [("p0", 0), ("p0", 3), ("p1", 1), ("p2", 0)]
    assert report(traces)["num_restarts"] == 5, "a time-out once, nonsense and an end twice each"


@pytest.mark.parametrize(
    "further",
    ["print(json.dumps({'keep': True}), flush=True)", "say(keep=True)", "print('seen', flush=True)"],
    ids=["a verdict without a name", "a second verdict", "a word"],
)
def test_a_line_too_many_is_no_verdict_on_another_response(
    traces: LogitStore, tmp_path: Path, further: str
) -> None:
    body = f"say(keep=(asked['id'], asked['sample']) == ('p0', 2)); time.sleep(0.05); {further}"
    assert check(traces, program(tmp_path, body), "--best", "9") == 0
    assert kept(traces) == [("p0", 2)]
    assert report(traces)["num_dropped"] == {"wrong": 6}
    assert report(traces)["num_restarts"] > 0


def test_what_a_program_missed_by_its_own_fault_is_asked_again(
    traces: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = program(tmp_path, f"os.path.exists({str(tmp_path / 'ready')!r}) or sys.exit(3); say(keep=True)")
    assert check(traces, command) == 2
    assert "exit status 3" in capsys.readouterr().err
    (tmp_path / "ready").touch()
    assert check(traces, command, "--quiet") == 0
    assert kept(traces) == [("p0", 2), ("p1", 0), ("p2", 0)], "not one of those that failed is lost"


def test_a_response_at_which_a_program_ended_once_is_not_lost(traces: LogitStore, tmp_path: Path) -> None:
    once = tmp_path / "once"
    body = f"os.path.exists({str(once)!r}) or (open({str(once)!r}, 'w'), sys.exit(3)); say(keep=True)"
    assert check(traces, program(tmp_path, body), "--best", "9") == 0
    assert len(kept(traces)) == 7
    assert (report(traces)["num_restarts"], report(traces)["num_dropped"]) == (1, {})
    assert check(traces, program(tmp_path, body), "--best", "9") == 0
    assert report(traces)["num_restarts"] == 1, "a check that is done says what it said"


@pytest.mark.parametrize("what", ["program", "records"])
def test_verdicts_of_another_program_or_other_records_do_not_count(
    traces: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    problems = tmp_path / "problems.jsonl"
    given = ["--records", str(problems)]
    assert check(traces, program(tmp_path, "say(keep=True)"), *given) == 0
    if what == "program":
        program(tmp_path, "say(keep=False)")
    else:
        problems.write_text(problems.read_text().replace("42", "43"))
    assert check(traces, shlex.join([sys.executable, str(tmp_path / "program.py")]), *given) == 2
    assert f"with other {what} (" in capsys.readouterr().err


def test_what_cannot_be_is_refused_before_the_program_is_asked(
    traces: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tmp_path / "asked"
    command = shlex.join(["touch", str(asked)])
    with pytest.raises(SystemExit, match="2"):
        check(traces, command, "--timeout-sec", "nan")
    assert "--timeout-sec: 'nan' must be a finite number above 0" in capsys.readouterr().err
    (tmp_path / "kept").write_text("")
    assert check(traces, command) == 2
    assert "kept is a file" in capsys.readouterr().err
    assert check(traces, command, "--out", traces.uri) == 2
    assert "is the store itself" in capsys.readouterr().err
    assert not asked.exists()


def test_a_program_that_does_not_read_is_timed_out(
    traces: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [{**one, "more": "x" * 200_000} for one in PROBLEMS]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(one) + "\n" for one in long))
    command = shlex.join([sys.executable, "-c", "import time; time.sleep(600)"])
    records = ["--records", str(tmp_path / "problems.jsonl")]
    assert check(traces, command, "--timeout-sec", "0.2", *records) == 2
    assert "no response of 7 is right" in capsys.readouterr().err
    assert (tmp_path / "kept.checks.jsonl").read_text().count('"timeout"') == 7


def test_what_a_program_started_is_ended_with_it(traces: LogitStore, tmp_path: Path) -> None:
    started = tmp_path / "started"
    command = shlex.join(["sh", "-c", f"sleep 600 & echo $! >> {started}; cat > /dev/null"])
    assert check(traces, command, "--timeout-sec", "0.3") == 2
    numbers = [int(line) for line in started.read_text().split()]
    assert numbers
    deadline = time.monotonic() + 20
    while any(is_running(number) for number in numbers):  # A kill takes effect a moment later.
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process_id: int) -> bool:
    """Whether it is there and no mere entry that nobody has asked for."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "line",
    [
        "say(keep=True, score=10**400)",
        "say(keep=True, score=float('nan'))",
        "say(keep=True, score='1')",
        "say(keep=1)",
        "sys.stdout.buffer.write(b'\\xff\\n'); sys.stdout.flush()",
        "print('[' * 100_000, flush=True)",
        "print('x' * 2_000_000, flush=True)",
        "print(json.dumps({'id': asked['id'], 'sample': False, 'keep': True}), flush=True)",
    ],
)
def test_no_output_is_a_traceback(traces: LogitStore, tmp_path: Path, line: str) -> None:
    body = f"exec({line!r}) if asked['id'] == 'p2' else say(keep=True, reason='half \\ud800 a pair')"
    assert check(traces, program(tmp_path, body)) == 0
    assert report(traces)["num_dropped"] == {"malformed": 1, "worse": 4}


def test_a_record_of_any_values_is_shown(traces: LogitStore, tmp_path: Path) -> None:
    rows = [{**one, "asked": datetime(2026, 1, 2), "nothing": float("nan"), "raw": b"x"} for one in PROBLEMS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "problems.parquet")
    command = program(tmp_path, "say(keep=True)")
    assert check(traces, command, "--records", str(tmp_path / "problems.parquet")) == 0
    shown = json.loads((tmp_path / "shown").read_text().splitlines()[0])["record"]
    assert (shown["asked"], shown["nothing"], shown["answer"]) == ("2026-01-02 00:00:00", None, 12)


def test_records_are_found_for_parts_and_by_dotted_ids(traces: LogitStore, tmp_path: Path) -> None:
    store = LogitStore.create(tmp_path / "parts", traces.manifest)
    names = {"p0": "p0#turn-2", "p1": "p1#text-1", "p2": "p2"}
    parts = [replace(one, record_id=names[one.record_id]) for one in traces.iter_sequences()]
    store.commit_unit("u", 0, parts, seconds=0.0, worker="w")
    put_tokenizer(store.objects, TOKENIZER)
    nested = [{"meta": {"id": one["id"]}, "answer": one["answer"]} for one in PROBLEMS]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(one) + "\n" for one in nested))
    command = program(tmp_path, "say(keep=asked['record']['answer'] == 12)")
    records = ["--records", str(tmp_path / "problems.jsonl"), "--id", "meta.id"]
    assert check(store, command, *records, "--best", "9") == 0
    assert kept(store) == [("p0#turn-2", sample) for sample in range(4)]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (PROBLEMS[:2], "1 of 3 problems of"),
        ([{**one, "id": f"{one['id']}x"} for one in PROBLEMS], "3 of 3 problems of"),
        ([*PROBLEMS, {**PROBLEMS[0], "answer": 13}], "two records of the id 'p0' that differ"),
        ([{"name": "p0"}], "no record with the field 'id'"),
    ],
)
def test_a_problem_without_a_record_is_refused(
    traces: LogitStore,
    tmp_path: Path,
    records: list[dict[str, Any]],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    assert check(traces, program(tmp_path, "say(keep=True)"), "--records", str(path)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "shown").exists()


def test_a_check_that_was_stopped_goes_on_and_is_done_once(
    traces: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = program(tmp_path, "say(keep=True)")
    assert check(traces, command) == 0
    verdicts = (tmp_path / "kept.checks.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "kept.checks.jsonl").write_text("".join(verdicts[:3]) + verdicts[3][:20])
    before, shown = kept(traces), (tmp_path / "shown").read_text().splitlines()
    assert check(traces, command) == 0
    again = (tmp_path / "shown").read_text().splitlines()[len(shown) :]
    assert again == shown[3:], "what has a whole verdict is not shown again"
    assert kept(traces) == before
    assert check(traces, command, "--best", "2") == 2
    assert "choose another place" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/no/such/program", "cannot be started"),
        (shlex.join([sys.executable, "-c", "pass"]), "no verdict for 3 problems in a row"),
        ("echo 'half", "close its quotes"),
    ],
)
def test_a_program_that_does_not_work_ends_the_check_in_words(
    traces: LogitStore, command: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(traces, command) == 2
    assert words in capsys.readouterr().err
