"""Prompts that repeat others, or an evaluation set's, are left out; each with its partner and score."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import labeler.curation.sift as sift_module
from benchmarks.labels.curation import DATA, planted_texts, score
from benchmarks.labels.planted_seeds import find_planted, recall_and_precision
from labeler.__main__ import main
from labeler.curation.minhash import MinHashTexts
from labeler.curation.settings import DedupeSettings
from logitstore.contamination.cosine import CosineTexts

QUESTIONS = [
    "What is the capital of France?",
    "What is the capital of Germany?",
    "Explain how a bicycle stays upright while it is moving.",
    "Write a short poem about the sea in winter.",
    "How many prime numbers are there below one hundred?",
    "Translate the sentence 'the cat sleeps on the sofa' into Spanish.",
    "Why do leaves change their colour in autumn?",
    "List three differences between a list and a tuple in Python.",
]


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompts(texts: list[str]) -> list[dict[str, Any]]:
    return [{"id": f"r{place}", "prompt": text} for place, text in enumerate(texts)]


def test_planted_repeats_are_found_with_their_partners(tmp_path: Path) -> None:
    planted = [
        "what is the capital of FRANCE",  # letters: another case and no mark
        "Explain how a bicycle stays upright while it is moving!!",
        "Write a short poem about the sea during winter.",  # meaning
    ]
    source = write(tmp_path / "in.jsonl", prompts(QUESTIONS + planted))
    out = tmp_path / "out.jsonl"
    assert main(["dedupe", source, "--out", str(out), "--cosine", "0.9"]) == 0
    assert read(out) == prompts(QUESTIONS), "the others are kept as they are, in their order"
    dropped = read(tmp_path / "out.dropped.jsonl")
    assert [(one["id"], one["partner_id"], one["method"]) for one in dropped] == [
        ("r8", "r0", "minhash"),
        ("r9", "r2", "minhash"),
        ("r10", "r3", "cosine"),
    ]
    assert [one["score"] for one in dropped[:2]] == [1.0, 1.0]
    assert 0.9 <= dropped[2]["score"] < 1
    assert dropped[0]["record"] == {"id": "r8", "prompt": planted[0]}, "nothing is lost"
    report = json.loads((tmp_path / "out.sift.json").read_text())
    assert (report["num_read"], report["num_kept"]) == (11, 8)
    assert report["num_dropped"] == {"minhash": 2, "cosine": 1}


def test_what_is_planted_among_the_seeds_of_a_recipe_is_found(tmp_path: Path) -> None:
    """The figures of the labeler's page: neither step drops what shall stay, nor what the other one shall."""
    found = find_planted(DATA, tmp_path)
    assert recall_and_precision(found, "dedupe") == (0.8, 1.0)
    assert recall_and_precision(found, "decontaminate") == (0.9, 1.0)
    kept = {one.plant: one.num_planted - sum(one.num_dropped.values()) for one in found}
    assert (kept["seed"], kept["something else"]) == (20, 5)
    assert kept["case and marks"] == kept["evaluation, word for word"] == 0


def test_questions_about_two_countries_are_not_repeats(tmp_path: Path) -> None:
    """The mean of a language model's own embeddings took these for the same (0.945)."""
    source = write(tmp_path / "in.jsonl", prompts(QUESTIONS[:2]))
    assert main(["dedupe", source, "--out", str(tmp_path / "out.jsonl")]) == 0
    assert len(read(tmp_path / "out.jsonl")) == 2


def test_a_partner_is_always_a_record_that_was_kept(tmp_path: Path) -> None:
    """a ~ b and b ~ c, but a is not near c: c stays, since b, its only neighbour, is gone."""
    words = [f"word{number:02d}" for number in range(40)]
    a, b, c = " ".join(words[:30]), " ".join(words[3:33]), " ".join(words[6:36])
    source = write(tmp_path / "in.jsonl", prompts([a, b, c]))
    arguments = [
        "dedupe",
        source,
        "--out",
        str(tmp_path / "out.jsonl"),
        "--by",
        "minhash",
        "--jaccard",
        "0.75",
    ]
    assert main(arguments) == 0
    assert [one["id"] for one in read(tmp_path / "out.jsonl")] == ["r0", "r2"]


@pytest.mark.parametrize("way", ["minhash", "cosine"])
def test_the_size_of_blocks_changes_nothing(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{question} {ending}" for ending in ("", "Please.", "Thank you") for question in QUESTIONS]
    source = write(tmp_path / "in.jsonl", prompts(texts))
    kept = []
    for size in (1, 5, 512):
        monkeypatch.setattr(sift_module, "BLOCK_RECORDS", size)
        out = tmp_path / f"out-{size}.jsonl"
        assert main(["dedupe", source, "--out", str(out), "--by", way, "--cosine", "0.9"]) == 0
        kept.append((read(out), read(tmp_path / f"out-{size}.dropped.jsonl")))
    assert kept[0] == kept[1] == kept[2]
    assert len(QUESTIONS) <= len(kept[0][0]) < len(texts)


class KilledError(BaseException):
    pass


def test_a_pass_that_was_killed_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sift_module, "BLOCK_RECORDS", 4)
    texts = [f"{question} {ending}" for ending in ("", "Please.", "Thank you") for question in QUESTIONS]
    source = write(tmp_path / "in.jsonl", prompts(texts))
    arguments = ["dedupe", source, "--cosine", "0.9", "--out"]
    assert main([*arguments, str(tmp_path / "whole.jsonl")]) == 0
    out = tmp_path / "out.jsonl"
    real, calls = sift_module._write_report, 0

    def killed_at_third(*given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise KilledError
        real(*given)

    monkeypatch.setattr(sift_module, "_write_report", killed_at_third)
    for _ in range(10):
        try:
            assert main([*arguments, str(out)]) == 0
            break
        except KilledError:
            pass
    monkeypatch.setattr(sift_module, "_write_report", real)
    assert main([*arguments, str(out)]) == 0
    assert calls > 4
    assert read(out) == read(tmp_path / "whole.jsonl")
    assert read(tmp_path / "out.dropped.jsonl") == read(tmp_path / "whole.dropped.jsonl")
    counts = [json.loads((tmp_path / f"{name}.sift.json").read_text()) for name in ("out", "whole")]
    assert counts[0] == counts[1]
    assert not list(tmp_path.glob("*.part"))


def test_a_finished_pass_is_not_done_again_and_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", prompts(QUESTIONS))
    out = tmp_path / "out.jsonl"
    arguments = ["dedupe", source, "--by", "minhash", "--out", str(out)]
    assert main(arguments) == 0
    out.write_text("mine\n")
    assert main(arguments) == 0
    assert out.read_text() == "mine\n", "finished: nothing is done"
    assert main([*arguments, "--jaccard", "0.5"]) == 2
    assert "was made with jaccard = 0.8, now it is 0.5" in capsys.readouterr().err
    assert main([*arguments, "--restart"]) == 0
    assert len(read(out)) == len(QUESTIONS)
    (tmp_path / "out.sift.json").unlink()
    assert main(arguments) == 2
    assert "was not made by this command" in capsys.readouterr().err


def test_what_cannot_be_read_is_counted_and_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a question"}\n{"prompt": 3}\nbroken\n{"other": "x"}\n')
    assert main(["dedupe", str(source), "--by", "minhash", "--out", str(tmp_path / "out.jsonl")]) == 0
    assert "4 records read, 1 kept, 3 dropped (3 that could not be read)" in capsys.readouterr().out
    dropped = read(tmp_path / "out.dropped.jsonl")
    assert [one["place"] for one in dropped] == ["in.jsonl:2", "in.jsonl:3", "in.jsonl:4"]
    assert "name the field with --field" in dropped[2]["reason"]


@pytest.mark.parametrize(
    "record",
    [
        {"question": "Why is the sky blue on a clear day?"},
        {"instruction": "Why is the sky blue", "input": "on a clear day?"},
        {"problem": "Why is the sky blue on a clear day?"},
        {"query": "Why is the sky blue on a clear day?"},
        {"conversation": [{"role": "user", "content": "Why is the sky blue on a clear day?"}]},
        {"turns": ["Why is the sky blue", "on a clear day?"]},
        {
            "messages": [
                {"role": "system", "content": "You are a pirate who answers in rhymes only."},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Why is the sky blue on a clear day?"}],
                },
                {"role": "assistant", "content": "Because of scattering."},
            ]
        },
        {"conversations": [{"from": "human", "value": "Why is the sky blue on a clear day?"}]},
    ],
    ids=lambda record: next(iter(record)),
)
def test_the_text_is_the_users_words_in_every_shape(record: dict[str, Any], tmp_path: Path) -> None:
    records = [{"prompt": "Why is the sky blue on a clear day?"}, record]
    source = write(tmp_path / "in.jsonl", records)
    assert main(["dedupe", source, "--by", "minhash", "--out", str(tmp_path / "out.jsonl")]) == 0
    assert len(read(tmp_path / "out.jsonl")) == 1


def test_questions_of_an_evaluation_set_are_left_out(tmp_path: Path) -> None:
    evaluation = [
        {
            "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May."
        },
        {"question": "How many prime numbers are there below one hundred?"},
        {"question": "Yes or no?"},
    ]
    contaminated = [
        "Solve: natalia sold clips to 48 of her friends, in April and then she sold half as many in May!",
        "Answer this with care. How many prime numbers are there below one hundred? Think.",
        "How many prime numbers lie below one hundred?",
        "Yes or no?",
    ]
    clean = ["Natalia likes clips.", "Answer yes or no? Is water wet?", "Name the largest planet."]
    source = write(tmp_path / "in.jsonl", prompts(contaminated + clean))
    against = write(tmp_path / "eval.jsonl", evaluation)
    out = tmp_path / "out.jsonl"
    assert main(["decontaminate", source, "--against", against, "--out", str(out), "--cosine", "0.85"]) == 0
    assert [one["prompt"] for one in read(out)] == clean
    dropped = read(tmp_path / "out.dropped.jsonl")
    assert [one["method"] for one in dropped] == ["ngram", "ngram", "cosine", "ngram"]
    assert [one["partner"].rpartition(":")[2] for one in dropped] == ["1", "2", "2", "3"]


def test_an_evaluation_set_that_cannot_be_read_whole_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", prompts(QUESTIONS))
    (tmp_path / "eval.jsonl").write_text('{"question": "What is 1 + 1?"}\nbroken\n')
    out = tmp_path / "out.jsonl"
    assert main(["decontaminate", source, "--against", str(tmp_path / "eval.jsonl"), "--out", str(out)]) == 2
    assert "an evaluation set must be read whole" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--by", "letters"], "by.0 = 'letters'"),
        (["--jaccard", "0"], "argument --jaccard: '0' must be a number in (0, 1]"),
        (["--cosine", "1.5"], "argument --cosine: '1.5' must be a number in (0, 1]"),
    ],
)
def test_wrong_values_are_refused_in_words(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", prompts(QUESTIONS))
    try:
        status: int | str | None = main(["dedupe", source, "--out", str(tmp_path / "out.jsonl"), *arguments])
    except SystemExit as refused:  # by what parses the arguments
        status = refused.code
    assert status == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("way", "package"), [("minhash", "datasketch"), ("cosine", "wordllama")])
def test_a_missing_package_names_its_own_extra(
    way: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "labeler.curation.minhash", raising=False)
    source = write(tmp_path / "in.jsonl", prompts(QUESTIONS))
    assert main(["dedupe", source, "--by", way, "--out", str(tmp_path / "out.jsonl")]) == 2
    assert f"needs the package {package!r}" in (told := capsys.readouterr().err)
    assert "pip install '.[curate]'" in told


@pytest.mark.parametrize(
    ("method", "least_recall"), [("minhash", {"case and marks": 1.0}), ("cosine", {"paraphrase": 0.6})]
)
def test_default_thresholds_find_what_was_planted(method: str, least_recall: dict[str, float]) -> None:
    """By `penumbra bench curation`: 30 prompts with repeats of three kinds and one that asks something else."""
    base, planted = planted_texts()
    defaults = DedupeSettings()
    threshold = defaults.jaccard if method == "minhash" else defaults.cosine
    near = MinHashTexts(threshold) if method == "minhash" else CosineTexts(threshold)
    found = score(near, base, planted, threshold)
    assert found.precision == 1.0, "what asks for something else stays"
    for plant, least in least_recall.items():
        assert found.recall[plant] >= least  # type: ignore[index]


@pytest.mark.parametrize("form", ["lines", "array"])
def test_what_json_has_no_form_for_is_written_as_json(form: str, tmp_path: Path) -> None:
    """Numbers without end were written as Infinity; half a character in an array was a traceback."""
    half = '{"prompt": "half \\ud800 one", "id": "b"}'
    records = ['{"prompt": "a question", "x": [1e400, {"y": NaN}], "z": 1.5}', half, "7"]
    source = tmp_path / "in.json"
    source.write_text("\n".join(records) if form == "lines" else f"[{', '.join(records)}]")
    assert main(["dedupe", str(source), "--out", str(tmp_path / "out.jsonl"), "--by", "minhash"]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    def strict(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]

    assert strict(tmp_path / "out.jsonl") == [{"prompt": "a question", "x": [None, {"y": None}], "z": 1.5}]
    first, second = strict(tmp_path / "out.dropped.jsonl")
    assert (first["method"], first["text"], first["record"]) == ("unreadable", half, None)
    assert "has \\ud800, half of a character" in first["reason"]
    assert second["text"] == "7"


def test_a_row_of_a_table_is_kept_without_the_fields_that_only_other_rows_have(tmp_path: Path) -> None:
    """In JSON lines an argument of another row's call would be one that is null."""
    records = [
        {"prompt": QUESTIONS[0], "calls": [{"city": "Rome"}]},
        {"prompt": QUESTIONS[3], "calls": [{"year": 1999}]},
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "in.parquet")
    out = tmp_path / "out.jsonl"
    assert main(["dedupe", str(tmp_path / "in.parquet"), "--by", "minhash", "--out", str(out)]) == 0
    assert read(out) == records


@pytest.mark.parametrize("name", ["out.jsonl.part", "out.dropped.jsonl.part"])
def test_a_part_that_lost_its_end_is_not_filled_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """As a crash of the machine leaves it, where the counts reached the disk and the records did not."""
    monkeypatch.setattr(sift_module, "BLOCK_RECORDS", 4)
    source = write(tmp_path / "in.jsonl", prompts([*QUESTIONS[:2], *QUESTIONS]))
    command = ["dedupe", source, "--by", "minhash", "--out", str(tmp_path / "out.jsonl")]
    real = sift_module._write_report

    def killed_after(*given: Any) -> None:
        real(*given)
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(sift_module, "_write_report", killed_after)
        with pytest.raises(KilledError):
            main(command)
    with open(tmp_path / name, "r+b") as part:
        part.truncate(5)
    assert main(command) == 2
    assert "bytes which it was counted to have" in capsys.readouterr().err
    assert main([*command, "--restart"]) == 0
    assert len(read(tmp_path / "out.jsonl")) == len(QUESTIONS)


@pytest.mark.parametrize("out", ["in.jsonl", "in.dropped.jsonl"])
def test_no_file_that_is_read_is_replaced_not_even_when_begun_anew(tmp_path, capsys, out):
    """The advice was to give --restart, which replaced the prompts by those of them that were kept."""
    lines = "".join(json.dumps({"prompt": "What is the sum of two and two?"}) + "\n" for _ in range(3))
    (tmp_path / out).write_text(lines)
    for command in (
        ["dedupe", "--by", "minhash"],
        ["decontaminate", "--by", "ngram", "--against", str(tmp_path / out)],
    ):
        arguments = [
            command[0],
            str(tmp_path / out),
            *command[1:],
            "--out",
            str(tmp_path / "in.jsonl"),
            "--restart",
        ]
        assert main(arguments) == 2
        assert "is a file of the input, which would be replaced" in capsys.readouterr().err
    assert (tmp_path / out).read_text() == lines
