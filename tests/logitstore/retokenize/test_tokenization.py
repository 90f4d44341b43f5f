"""Tokenizers as tables, and what their families do with spaces."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from logitstore.__main__ import main
from logitstore.decoding.tokens import TokenTexts
from logitstore.errors import UnsupportedInputError
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.retokenize.report import Report
from logitstore.retokenize.store_mapping import retokenize_store
from logitstore.retokenize.tokenization import NO_ID, equal_ids, load_tokenization
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.logitstore.retokenize.tokenizers_made import byte_level, label_texts, sentence_piece


def word_piece(folder: Path) -> str:
    tokens = ["[UNK]", "the", "cat", "##s", "s", "."]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken("[UNK]", special=True)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def after_special(folder: Path, scheme: Literal["always", "first"]) -> str:
    """A SentencePiece tokenizer with a special token and its own rule for the space before a text."""
    path = sentence_piece(folder, [" s", " a", "at"])
    tokenizer = Tokenizer.from_file(f"{path}/tokenizer.json")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_special_tokens([AddedToken("<turn>", special=True)])
    tokenizer.save(f"{path}/tokenizer.json")
    return path


def mapped(store: LogitStore, out: Path, teacher: str, student: str) -> tuple[LogitStore, Report]:
    """By the tokenizers in these folders."""
    left, right = load_tokenization(teacher), load_tokenization(student)
    return retokenize_store(store, str(out), teacher=left, student=right)


def test_the_bytes_of_all_ids_are_those_of_each(tmp_path: Path) -> None:
    odd = byte_level(tmp_path / "byte", ["ca", "cat"], special=["<Ġend>"], shuffle=3)
    tokenizer = Tokenizer.from_file(f"{odd}/tokenizer.json")
    tokenizer.add_tokens([AddedToken("数 学", special=False), AddedToken("Ġcat", special=False)])
    raw = json.loads(tokenizer.to_str())
    raw["model"]["vocab"]["日Ġ本"] = 600  # characters of no byte, inside the model's own vocabulary
    (tmp_path / "byte" / "tokenizer.json").write_text(json.dumps(raw))
    for path in (odd, sentence_piece(tmp_path / "pieces", [" s", "at"]), word_piece(tmp_path / "words")):
        made = Tokenizer.from_file(f"{path}/tokenizer.json")
        texts, vocabulary = TokenTexts(made), made.get_vocab()
        found = texts.raw_of_all(vocabulary)
        assert list(found) == sorted(vocabulary.values())
        assert found == {token_id: texts.raw(token_id) for token_id in vocabulary.values()}
    assert load_tokenization(odd).bytes_by_id[600] == "日 本".encode()


@pytest.mark.parametrize(
    "vocabulary",
    [
        {},
        {"b": 1, "a": 0, '"': 2, "\n": 3, "\u2028": 5, "é😀": 4, "\\n": 10, ", ": 9},
        {"later": 2, "b": 1, "a": 1, "c": 1},
    ],
)
def test_a_fingerprint_is_of_each_id_and_token_in_order(vocabulary: dict[str, int]) -> None:
    digest = hashlib.sha256()
    for token, token_id in sorted(vocabulary.items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{token_id}\t{json.dumps(token)}\n".encode())
    assert tokenizer_fingerprint(vocabulary) == f"sha256:{digest.hexdigest()}"


def test_of_equal_bytes_the_smallest_id_stands_for_them_and_a_fallback_last(tmp_path: Path) -> None:
    teacher = byte_level(tmp_path / "teacher", ["ca"], shuffle=1)
    student = sentence_piece(tmp_path / "pieces", ["ca"])
    tokenizer = Tokenizer.from_file(f"{student}/tokenizer.json")
    tokenizer.add_tokens([AddedToken(" c", special=False), AddedToken("é", special=False)])
    tokenizer.save(f"{student}/tokenizer.json")
    left, right = load_tokenization(teacher), load_tokenization(student)
    there = equal_ids(left, right, {})
    ids = {raw: token_id for token_id, raw in left.bytes_by_id.items()}
    assert there[ids[b"c"]] == tokenizer.token_to_id("c")  # and not <0x63>
    assert there[ids[b"\xc3"]] == tokenizer.token_to_id("<0xC3>")
    assert there[ids[b" "]] == tokenizer.token_to_id("▁")
    back = equal_ids(right, left, {})
    assert back[tokenizer.token_to_id("c")] == ids[b"c"]
    assert back[tokenizer.token_to_id("<0x63>")] == NO_ID
    used = there[there != NO_ID]
    assert len(set(used.tolist())) == len(used)


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_a_space_after_a_special_token_is_the_tokenizers_own_only_where_it_puts_one(
    tmp_path: Path, scheme: Literal["always", "first"]
) -> None:
    teacher = after_special(tmp_path / "teacher", scheme)
    student = byte_level(tmp_path / "student", ["at"], special=["<turn>"])
    labels = label_texts(str(tmp_path / "store"), teacher, [("sat<turn> at", "sa")], top_k=20)
    (source,) = labels.store.iter_sequences()
    pieces = [labels.tokenizer.id_to_token(token_id) for token_id in source.token_ids_T.tolist()]
    assert pieces[:5] == ["▁s", "at", "<turn>", "▁a", "t"]
    target, _ = mapped(labels.store, tmp_path / "out", teacher, student)
    (found,) = target.iter_sequences()
    tokenizer = Tokenizer.from_file(f"{student}/tokenizer.json")
    prompt = tokenizer.decode(found.token_ids_T[: found.prompt_length].tolist(), skip_special_tokens=False)
    assert prompt == ("sat<turn>at" if scheme == "always" else "sat<turn> at")


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_a_student_puts_its_space_where_its_tokenizer_would(
    tmp_path: Path, scheme: Literal["always", "first"]
) -> None:
    teacher = byte_level(tmp_path / "teacher", ["at"], special=["<turn>"])
    student = after_special(tmp_path / "student", scheme)
    labels = label_texts(str(tmp_path / "store"), teacher, [("sat<turn>at", "sat at")], top_k=20)
    target, report = mapped(labels.store, tmp_path / "out", teacher, student)
    (found,) = target.iter_sequences()
    tokenizer = Tokenizer.from_file(f"{student}/tokenizer.json")
    pieces = [tokenizer.id_to_token(token_id) for token_id in found.token_ids_T.tolist()]
    # As the tokenizer itself writes the whole: a response after text goes on it, and begins nothing.
    assert found.token_ids_T.tolist() == tokenizer.encode("sat<turn>atsat at").ids
    inner = ["at"] if scheme == "first" else ["▁a", "t"]
    assert pieces == ["▁s", "at", "<turn>", *inner, "s", "at", "▁a", "t"]
    assert found.loss_mask_N.tolist() == [True, True, True]
    assert report.num_rejects == 0
    assert not verify_store(target).errors


def metaspace(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)


def prepending(tokenizer: Tokenizer) -> None:
    """As Llama 2's has it: by normalizers."""
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore[list-item]


@pytest.mark.parametrize("make", [metaspace, prepending])
def test_a_response_has_no_space_of_the_tokenizers_own_after_its_prompt(
    tmp_path: Path, make: Callable[[Tokenizer], None]
) -> None:
    """The student saw a space, or one more, between prompt and response, that nobody had written."""
    teacher = byte_level(tmp_path / "teacher", ["at"])
    student = sentence_piece(tmp_path / "student", ["at"])
    tokenizer = Tokenizer.from_file(f"{student}/tokenizer.json")
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    make(tokenizer)
    tokenizer.save(f"{student}/tokenizer.json")
    texts = [("sat", "at cat"), ("sat", " at cat"), ("sat ", "at")]
    labels = label_texts(str(tmp_path / "store"), teacher, texts, top_k=20)
    target, report = mapped(labels.store, tmp_path / "out", teacher, student)
    for found, (prompt, response) in zip(target.iter_sequences(), texts, strict=True):
        pieces = [str(tokenizer.id_to_token(token_id)) for token_id in found.token_ids_T.tolist()]
        assert "".join(pieces) == f"▁{prompt}{response}".replace(" ", "▁")
        assert found.loss_mask_N[0]
    assert report.num_rejects == 0


def test_a_byte_level_student_puts_its_space_at_the_beginning_alone(tmp_path: Path) -> None:
    teacher = byte_level(tmp_path / "teacher", ["at"])
    student = byte_level(tmp_path / "student", ["at"])
    tokenizer = Tokenizer.from_file(f"{student}/tokenizer.json")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save(f"{student}/tokenizer.json")
    labels = label_texts(str(tmp_path / "store"), teacher, [("sat", "at")], top_k=20)
    target, _ = mapped(labels.store, tmp_path / "out", teacher, student)
    (found,) = target.iter_sequences()
    assert tokenizer.decode(found.token_ids_T.tolist()) == " satat"


def test_spaces_that_stand_before_words_alone_are_kept(tmp_path: Path) -> None:
    """T5 and XLM-R of transformers: their splitter drops the spaces, and each word begins with one."""
    teacher = byte_level(tmp_path / "teacher", ["at"])
    student = sentence_piece(tmp_path / "student", ["at"])
    tokenizer = Tokenizer.from_file(f"{student}/tokenizer.json")
    tokenizer.normalizer = None  # type: ignore[assignment]
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.save(f"{student}/tokenizer.json")
    labels = label_texts(str(tmp_path / "store"), teacher, [("sat", "cat at")], top_k=20)
    target, report = mapped(labels.store, tmp_path / "out", teacher, student)
    assert report.num_rejects == 0
    (found,) = target.iter_sequences()
    assert tokenizer.decode(found.token_ids_T.tolist()).endswith("cat at")
    assert found.loss_mask_N.any()


@pytest.mark.parametrize("num_more", [-1, 5])
def test_the_teachers_logits_may_be_fewer_or_more_than_its_tokens(tmp_path: Path, num_more: int) -> None:
    plain = byte_level(tmp_path / "plain", [])
    teacher = byte_level(tmp_path / "teacher", [], special=["<pad>"])
    labels = label_texts(str(tmp_path / "labeled"), plain, [("ca", "cab")], top_k=20)
    manifest = labels.store.manifest
    loaded = load_tokenization(teacher)
    store = LogitStore.create(
        str(tmp_path / "store"),
        dataclasses.replace(
            manifest,
            tokenizer=loaded.info,
            labels=dataclasses.replace(manifest.labels, vocab_size=loaded.vocab_size + num_more),
            config={"teacher": {"model": teacher}},
        ),
    )
    store.commit_unit("u", 0, list(labels.store.iter_sequences()), seconds=0.0, worker="test")
    student = byte_level(tmp_path / "student", ["ab"], special=["<pad>"])
    out = tmp_path / "out"
    assert main(["retokenize", store.uri, str(out), "--tokenizer", student]) == 0
    target = LogitStore.open(out)
    assert target.manifest.labels.num_outcomes == loaded.vocab_size + num_more
    (found,) = target.iter_sequences()
    assert found.loss_mask_N.tolist() == [True, True]
    assert not verify_store(target).errors


def word_ends(folder: Path) -> str:
    """A BPE whose words end with a mark, as GPT-1's."""
    tokens = [*"acehst", *(f"{letter}</w>" for letter in "acehst"), "<end>"]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_tokens_of_words_are_refused_beside_tokens_of_another_kind(tmp_path: Path) -> None:
    """Of marked ends the student got the marks as text, in every word."""
    kinds = {"WordPiece": word_piece(tmp_path / "words"), "BPEDecoder": word_ends(tmp_path / "ends")}
    spelled = byte_level(tmp_path / "byte", ["ca"])
    for kind, words in kinds.items():
        for teacher, student in ((words, spelled), (spelled, words)):
            name = f"{kind}-{Path(teacher).name}"
            labels = label_texts(str(tmp_path / f"store-{name}"), teacher, [("the", "cat")], top_k=3)
            with pytest.raises(UnsupportedInputError, match=f"is of the kind of {kind}"):
                mapped(labels.store, tmp_path / f"out-{name}", teacher, student)
            assert not (tmp_path / f"out-{name}").exists()


def test_words_with_marked_ends_go_to_others_of_their_kind(tmp_path: Path) -> None:
    ends = word_ends(tmp_path / "ends")
    labels = label_texts(str(tmp_path / "store"), ends, [("the", "cat sat")], top_k=13, tail="<end>")
    target, report = mapped(labels.store, tmp_path / "out", ends, ends)
    assert report.num_kept == report.num_rows == 7
    (source,), (found,) = labels.store.iter_sequences(), target.iter_sequences()
    assert found.token_ids_T.tolist() == source.token_ids_T.tolist()
    assert [load_tokenization(ends).bytes_by_id[one] for one in found.token_ids_T.tolist()[-4:]] == [
        b"s", b"a", b"t ", b"<end>",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "vocab_size", "rule"),
    [
        ({"vocab_size": -3}, None, "vocab_size -3, which must be a number above 0"),
        ({"vocab_size": "many"}, None, "vocab_size 'many'"),
        ({"vocab_size": 9_000_000}, None, "says 9,000,000 logits; a store holds labels of at most 1,048,576"),
        ({}, 9_000_000, "--vocab-size says 9,000,000 logits"),
        ({"vocab_size": 9_000_000}, 100, "--vocab-size is 100, but the tokenizer"),
    ],
)
def test_a_width_that_no_store_has_is_refused(
    tmp_path: Path, config: dict[str, object], vocab_size: int | None, rule: str
) -> None:
    path = byte_level(tmp_path / "student", [])
    (tmp_path / "student" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedInputError, match=rule):
        load_tokenization(path, vocab_size=vocab_size)


def test_a_tokenizer_without_tokens_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedInputError, match="has no tokens"):
        load_tokenization(str(tmp_path))
