"""Stores as text: what other trainers read is what the teacher saw and wrote, with nothing made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.utils.chat_template_utils import render_jinja_template

from logitstore.__main__ import main
from logitstore.common.store_warning import StoreWarning
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.chat_text import PromptParser, reasoning_apart, renderer
from logitstore.exchange.merge import merge_stores
from logitstore.exchange.mix import mix_stores
from logitstore.exchange.texts import TextForm, export_texts, render_of
from logitstore.manifest.fields import SEGMENTS, STUDENT_PROMPTS, LabelSpec
from logitstore.records import LabeledSequence, Segment
from logitstore.rows.where import parse_selection
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import copy_tokenizer, put_tokenizer
from tests.trainer.stores import label_rows, manifest

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|s|>system\nBe kind.<|e|>\n{% endif %}"
    "<|s|>{{ m.role }}\n{{ m.content | trim }}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)
THINKING = CHATML.replace("<|s|>assistant\n{% endif %}", "<|s|>assistant\n<think>\n{% endif %}")
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{{ '[I]' + m.content + '[/I]' if m.role == 'user' else m.content + '<|e|>' }}{% endfor %}"
)
USER, SYSTEM = {"role": "user", "content": "Why?"}, {"role": "system", "content": "Be short."}
ANSWER, NEXT = {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?\nNow?"}


@pytest.mark.parametrize("template", [CHATML, THINKING, NO_SYSTEM])
@pytest.mark.parametrize(
    "messages", [[USER], [USER, ANSWER, NEXT], [SYSTEM, USER], [SYSTEM, USER, ANSWER, NEXT]]
)
def test_messages_come_back_from_their_prompt(template: str, messages: list[dict[str, str]]) -> None:
    render = renderer(template, {"bos_token": "<|b|>"}, {})
    parser = PromptParser(render)
    if template == NO_SYSTEM and SYSTEM in messages:
        with pytest.raises(UnsupportedInputError, match="refuses"):
            render(messages, True)
        return
    assert parser.messages(render(messages, True)) == messages


def test_a_prompt_of_another_template_gives_none() -> None:
    parser = PromptParser(renderer(CHATML, {}, {}))
    assert parser.messages("plain text") is None
    assert parser.messages("<|s|>tool\nx<|e|>\n<|s|>assistant\n") is None
    padded = renderer(CHATML, {}, {})([USER], True).replace("Why?", " Why? ")
    assert parser.messages(padded) is None, "the template trims, so these contents are not the ones given"


@pytest.mark.parametrize(
    ("prompt", "answer", "wanted"),
    [
        ("", "Yes.", (None, "Yes.")),
        ("", "<think>\nHm.\n</think>\n\nYes.", ("Hm.", "Yes.")),
        ("x<think>\n", "Hm.\n</think>\n\nYes.", ("Hm.", "Yes.")),
        ("x<think>\n", "Hm. Hm.", ("Hm. Hm.", "")),
    ],
)
def test_reasoning_is_apart(prompt: str, answer: str, wanted: tuple[str | None, str]) -> None:
    assert reasoning_apart(prompt, answer) == wanted


def byte_tokenizer() -> Tokenizer:
    """Every byte a token; the markers of the templates are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|s|>", "<|e|>")])
    return tokenizer


SPEC = LabelSpec(
    vocab_size=258, top_k=4, temperatures=(1.0, 2.0, 4.0), value_kind="logit_f16", mode="generate",
    positions="response",
)  # fmt: skip


def store_of(folder: Path, texts: Sequence[tuple[str, str]], template: str | None) -> LogitStore:
    """A store of (prompt, response) texts that keeps their tokenizer."""
    tokenizer = byte_tokenizer()
    store = LogitStore.create(folder, manifest(SPEC))
    sequences = []
    for number, (prompt, response) in enumerate(texts):
        prompt_ids, response_ids = tokenizer.encode(prompt).ids, tokenizer.encode(response).ids
        logits_NV = np.random.default_rng(number).normal(size=(len(response_ids), SPEC.vocab_size))
        sequences.append(
            LabeledSequence(
                record_id=f"r{number}",
                sample_index=0,
                token_ids_T=np.array(prompt_ids + response_ids, dtype=np.int32),
                prompt_length=len(prompt_ids),
                label_start=len(prompt_ids),
                rows=label_rows(logits_NV, np.array(response_ids), SPEC.top_k),
                loss_mask_N=np.ones(len(response_ids), dtype=bool),
                finish_reason="stop",
            )
        )
    store.commit_unit("unit-0", 0, sequences, seconds=0.0, worker="test")
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    put_tokenizer(store.objects, files | ({"chat_template.jinja": template.encode()} if template else {}))
    return store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogitStore:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    render = renderer(THINKING, {}, {})
    texts = [
        (render([USER], True), "Hm.\n</think>\n\nSo. 为什么<|e|>"),
        (render([SYSTEM, USER, ANSWER, NEXT], True), "Never closed"),
        ("Not of the template", " at all"),
    ]
    return store_of(tmp_path / "store", texts, THINKING)


def test_conversations_are_read_by_datasets(
    store: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", store.uri, "--to", "messages", str(tmp_path / "out.jsonl")]) == 0
    out, err = capsys.readouterr()
    assert "2 sequences to" in out
    assert "1 sequences are left out" in err
    rows = load("json", tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == ["r0", "r1"]
    answer = {"role": "assistant", "content": "So. 为什么", "reasoning_content": "Hm."}
    assert without_none(rows[0]["messages"]) == [USER, answer]
    cut = {"role": "assistant", "content": "", "reasoning_content": "Never closed"}
    assert without_none(rows[1]["messages"]) == [SYSTEM, USER, ANSWER, NEXT, cut]


@pytest.mark.parametrize("told_by", ["segments", "loss mask"])
def test_a_conversation_with_all_turns_labeled_is_taken_apart(
    told_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was all that follows the first prompt, other turns and their markers included."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    render = renderer(CHATML, {}, {})
    thought = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nSo."}
    prompt, whole = render([USER], True), render([USER, thought, NEXT, ANSWER], False).removesuffix("\n")
    base = store_of(tmp_path / "base", [(prompt, whole.removeprefix(prompt))], CHATML)
    (one,) = base.iter_sequences()
    counts_T = np.zeros(len(one.token_ids_T), bool)
    second = len(byte_tokenizer().encode(render([USER, thought, NEXT], True)).ids)
    counts_T[one.prompt_length : len(byte_tokenizer().encode(render([USER, thought], False)).ids) - 1] = True
    counts_T[second:] = True
    segments_T = np.where(counts_T, Segment.ANSWER, Segment.CONTEXT).astype(np.uint8)
    one = replace(one, loss_mask_N=counts_T[one.label_start :])
    spec, features = base.manifest.labels, base.manifest.features
    config = base.manifest.config | {"labels": {"turns": "all"}}
    if told_by == "segments":
        one = replace(one, segments_T=segments_T)
        spec, features = replace(spec, extra_columns=(SEGMENTS,)), (*features, SEGMENTS)
    store = LogitStore.create(
        tmp_path / "all", replace(base.manifest, labels=spec, features=features, config=config)
    )
    store.commit_unit("u", 0, [one], seconds=0.0, worker="w")
    files = {"tokenizer.json": byte_tokenizer().to_str().encode(), "chat_template.jinja": CHATML.encode()}
    put_tokenizer(store.objects, files)
    merged = merge_stores([store], str(tmp_path / "merged"))
    mixed = mix_stores((store, merged), str(tmp_path / "mixed"))
    first = {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}
    for number, made in enumerate((store, merged, mixed)):
        texts = tmp_path / f"{number}.jsonl"
        assert export_texts(made, texts, "messages") == (1, 0)
        messages = without_none(load("json", texts)[0]["messages"])
        assert messages == [USER, first, NEXT, ANSWER]
        assert export_texts(made, texts, "prompt-completion") == (1, 0)
        (pair,) = load("json", texts)
        assert (pair["prompt"], pair["completion"]) == (render([USER, thought, NEXT], True), "So.")


@pytest.mark.parametrize("config", [{"labels": {"turns": "last"}}, {"retokenize": {}}])
def test_a_hole_in_a_loss_mask_is_no_new_answer(config: dict[str, Any], tmp_path: Path) -> None:
    """Rows that do not count do not tell turns apart where one answer is labeled."""
    base = store_of(tmp_path / "base", [(renderer(CHATML, {}, {})([USER], True), "Twenty-one.")], CHATML)
    (one,) = base.iter_sequences()
    mask_N = one.loss_mask_N.copy()
    mask_N[3:5] = False
    store = LogitStore.create(
        tmp_path / "holes", replace(base.manifest, config=base.manifest.config | config)
    )
    store.commit_unit("u", 0, [replace(one, loss_mask_N=mask_N)], seconds=0.0, worker="w")
    put_tokenizer(store.objects, {"tokenizer.json": byte_tokenizer().to_str().encode()})
    assert export_texts(store, tmp_path / "p.jsonl", "prompt-completion") == (1, 0)
    (pair,) = load("json", tmp_path / "p.jsonl")
    assert pair["completion"] == "Twenty-one."


def with_own_prompts(folder: Path, store: LogitStore, prompts: Sequence[str | None]) -> LogitStore:
    """The store again, with prompts of the students' own."""
    spec = replace(store.manifest.labels, extra_columns=(STUDENT_PROMPTS,))
    made = LogitStore.create(folder, replace(store.manifest, labels=spec, features=(STUDENT_PROMPTS,)))
    tokenizer = byte_tokenizer()
    ids = [None if text is None else np.array(tokenizer.encode(text).ids, np.int32) for text in prompts]
    sequences = [
        replace(one, student_prompt_ids=own) for one, own in zip(store.iter_sequences(), ids, strict=True)
    ]
    made.commit_unit("unit-0", 0, sequences, seconds=0.0, worker="test")
    files = {"tokenizer.json": tokenizer.to_str().encode(), "chat_template.jinja": CHATML.encode()}
    put_tokenizer(made.objects, files)
    return made


def test_texts_have_the_prompts_that_students_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the teacher may see, a solution say, went into the texts that students train on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    render = renderer(CHATML, {}, {})
    hinted = {"role": "user", "content": "Why? (Because it rains.)"}
    base = store_of(tmp_path / "base", [(render([one], True), "So.<|e|>") for one in (hinted, NEXT)], CHATML)
    store = with_own_prompts(tmp_path / "own", base, [render([SYSTEM, USER], True), None])
    assert export_texts(store, tmp_path / "m.jsonl", "messages") == (2, 0)
    rows = load("json", tmp_path / "m.jsonl")
    assert [row["messages"] for row in rows] == [[SYSTEM, USER, ANSWER], [NEXT, ANSWER]]
    assert export_texts(store, tmp_path / "p.jsonl", "prompt-completion") == (2, 0)
    pairs = load("json", tmp_path / "p.jsonl")
    assert [one["prompt"] for one in pairs] == [render([SYSTEM, USER], True), render([NEXT], True)]
    assert [one["completion"] for one in pairs] == ["So.", "So."]


def test_rows_at_given_ids_have_the_same_texts(store: LogitStore, tmp_path: Path) -> None:
    """No prefix of their entries can be read, and none is needed."""
    mixed = mix_stores((store, store), str(tmp_path / "mixed"))
    for form in get_args(TextForm):
        export_texts(store, tmp_path / "top.jsonl", form)
        export_texts(mixed, tmp_path / "given.jsonl", form)
        assert (tmp_path / "given.jsonl").read_text() == (tmp_path / "top.jsonl").read_text()


def test_a_tools_turn_is_no_part_of_the_users_words() -> None:
    """All of a tool's turn, markers too, was taken for one message of the user, since it renders the same."""
    parser = PromptParser(renderer(CHATML, {}, {}))
    tool = {"role": "tool", "content": "21"}
    assert parser.messages(renderer(CHATML, {}, {})([USER, ANSWER, tool], True)) is None
    assert parser.messages(renderer(CHATML, {}, {})([USER, ANSWER, NEXT], True)) == [USER, ANSWER, NEXT]


def test_pairs_are_word_for_word(store: LogitStore, tmp_path: Path) -> None:
    assert export_texts(store, tmp_path / "out.jsonl", "prompt-completion") == (3, 0)
    rows = load("json", tmp_path / "out.jsonl")
    assert rows[0]["prompt"] == renderer(THINKING, {}, {})([USER], True)
    assert rows[0]["completion"] == "Hm.\n</think>\n\nSo. 为什么"
    assert (rows[2]["prompt"], rows[2]["completion"]) == ("Not of the template", " at all")


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_tables_of_labels_are_read_by_datasets(store: LogitStore, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"out.{form}"
    assert main(["export", store.uri, "--to", form, str(path)]) == 0
    rows = load(form, path)
    first = next(store.iter_sequences())
    assert rows[0]["token_ids"] == first.token_ids_T.tolist()
    assert np.allclose(np.array(rows[0]["top_logits"]), first.rows.logits_NK)


def test_what_cannot_be_told_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = store_of(tmp_path / "store", [("plain", " text")], CHATML)
    with pytest.raises(UnsupportedInputError, match="none is a prompt by the chat template"):
        export_texts(store, tmp_path / "out.jsonl", "messages")
    without = store_of(tmp_path / "without", [("plain", " text")], None)
    with pytest.raises(UnsupportedInputError, match="keeps no chat template"):
        export_texts(without, tmp_path / "out.jsonl", "messages")
    bare = LogitStore.create(tmp_path / "bare", manifest(SPEC))
    with pytest.raises(UnsupportedInputError, match="text needs a tokenizer"):
        export_texts(bare, tmp_path / "out.jsonl", "prompt-completion")
    assert not (tmp_path / "out.jsonl").exists()


def load(form: str, path: Path) -> list[dict[str, Any]]:
    import datasets

    found = datasets.load_dataset(
        form, data_files=str(path), split="train", cache_dir=str(path.parent / "hf")
    )
    return [dict(row) for row in found]


def without_none(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in message.items() if value is not None} for message in messages]


def test_a_sample_and_a_record_of_its_name_are_told_of(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", [("Why?", "So."), ("Why?", "So."), ("Why?", "So.")], None)
    sequences = [
        replace(one, record_id=name, sample_index=sample)
        for one, (name, sample) in zip(store.iter_sequences(), [("a", 0), ("a", 1), ("a#1", 0)], strict=True)
    ]
    made = LogitStore.create(tmp_path / "made", store.manifest)
    made.commit_unit("u", 0, sequences, seconds=0.0, worker="w")
    copy_tokenizer(store.objects, made.objects)
    with pytest.raises(UnsupportedInputError, match="would both have the id 'a#1'"):
        export_texts(made, tmp_path / "p.jsonl", "prompt-completion")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []
    chosen = parse_selection("record_id != 'a#1'")
    assert export_texts(made, tmp_path / "p.jsonl", "prompt-completion", selection=chosen) == (2, 0)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}<|s|>{{ m.content }}{% endfor %}",
        "{% if tools is not none %}{{ tools | length }} tools{% endif %}{{ messages[0].content }}<|s|>",
        "{% if documents is none %}none{% endif %}{{ messages | tojson(indent=1) }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    ],
)
def test_a_template_gives_what_it_gives_in_transformers(template: str) -> None:
    """Those that end a loop were called damaged, and `tools` that nobody gave were not none."""
    messages = [SYSTEM, USER, {"role": "assistant", "content": "Größe 😀"}]
    theirs, _ = render_jinja_template([messages], chat_template=template)
    assert renderer(template, {}, {})(messages, False) == theirs[0]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ('{{ "a" * (10 ** 14) }}', "MemoryError"),
        ("{{ 2.0 ** 100000 }}", "out of range"),
        ("{{ 10 ** 9999 }}", "is none .*digits"),
    ],
)
def test_a_template_that_ends_as_programs_do_is_refused(template: str, says: str) -> None:
    """It is anybody's program: the page of a store that kept such a one could not be opened."""
    with pytest.raises(UnsupportedInputError, match=says):
        renderer(template, {}, {})([USER], True)


@pytest.mark.parametrize(
    "config", [b"[1]", b"{", b'{"chat_template": [1, {"name": "default"}]}', b"[" * 99_999]
)
def test_a_damaged_file_of_a_tokenizer_names_no_template(config: bytes, tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", [("Why?", "So.")], None)
    made = LogitStore.create(tmp_path / "made", store.manifest)
    put_tokenizer(made.objects, {"tokenizer_config.json": config})
    with pytest.raises(UnsupportedInputError, match="keeps no chat template"):
        render_of(made)


def test_what_is_no_character_or_no_token_is_counted(tmp_path: Path) -> None:
    base = store_of(tmp_path / "base", [("Why?", "So é"), ("Why?", "So."), ("Why?", "No.")], None)
    cut, whole, odd = base.iter_sequences()
    cut = replace(cut, token_ids_T=cut.token_ids_T[:-1], finish_reason="length")
    unknown = odd.token_ids_T.copy()
    unknown[-1] = 257 + 1
    spec = replace(SPEC, vocab_size=300)
    store = LogitStore.create(tmp_path / "store", manifest(spec))
    store.commit_unit("u", 0, [cut, whole, replace(odd, token_ids_T=unknown)], seconds=0.0, worker="test")
    copy_tokenizer(base.objects, store.objects)
    with pytest.warns(StoreWarning, match="2 sequences hold bytes that are no characters"):
        assert export_texts(store, tmp_path / "p.jsonl", "prompt-completion") == (3, 0)
    assert [row["completion"] for row in load("json", tmp_path / "p.jsonl")] == [
        "So \ufffd",
        "So.",
        "No⟨258⟩",
    ]
