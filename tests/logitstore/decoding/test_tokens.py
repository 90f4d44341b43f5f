"""Token texts: streams of bytes, partial characters, control characters, three kinds of tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.decoding.tokens import TokenTexts, load_token_texts, piece_text, stream_texts, visible

tokenizers = pytest.importorskip("tokenizers")


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp"))), st.data())
def test_any_cut_of_a_text_into_tokens_joins_to_the_text(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert "".join(stream_texts(pieces)) == text


def test_a_character_stands_at_the_token_that_completes_it() -> None:
    assert stream_texts([b"a", b"\xe4\xbd", b"\xa0b"]) == ["a", "", "你b"]


def test_bytes_that_never_become_a_character_are_escaped() -> None:
    assert stream_texts([b"\xe4", b"a"]) == ["", "\\xe4a"]
    assert stream_texts([b"a", b"\xe4\xbd"]) == ["a", "\\xe4\\xbd"]
    # What ends in the middle of a character because it was cut there is no such case.
    assert stream_texts([b"a", b"\xe4\xbd"], is_whole=False) == ["a", ""]


def test_a_piece_alone_shows_its_loose_bytes() -> None:
    assert piece_text(b"ok\xe4\xbd") == "ok⟨E4 BD⟩"
    assert piece_text("你".encode()) == "你"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a\\u202eb"),
        ("\x00\x1b[2J", "\\u0000\\u001b[2J"),
        ("\n\t é 👩‍🚀", "\n\t é 👩‍🚀"),
        ("\u2028", "\\u2028"),
    ],
)
def test_control_and_direction_characters_are_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


def byte_level_tokenizer() -> Any:
    """Byte-level BPE whose every token is a byte, as a text unknown to a real one falls apart."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|Ġend|>"])
    return made


def test_byte_level_tokens_of_any_script_join_to_the_text(tmp_path: Path) -> None:
    text = "naïve 你好 🙂 עברית <b>&amp;</b>\n"
    made = byte_level_tokenizer()
    made.save(str(tmp_path / "tokenizer.json"))
    texts = load_token_texts(str(tmp_path))
    ids = made.encode(text).ids
    assert len(ids) == len(text.encode())
    assert "".join(texts.sequence(ids)) == text
    # A special token's text is itself, not an alphabet of bytes.
    assert texts.piece(made.token_to_id("<|Ġend|>")) == "<|Ġend|>"


def test_byte_fallback_tokens_are_bytes_and_the_metaspace_is_a_space() -> None:
    vocab = {"▁hi": 0, "<0xE4>": 1, "<0xBD>": 2, "<0xA0>": 3, "<unk>": 4}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    texts = TokenTexts(made)
    assert texts.sequence([0, 1, 2, 3]) == [" hi", "", "", "你"]
    assert texts.piece(1) == "⟨E4⟩"


def test_ids_without_a_tokenizer_and_outside_its_vocabulary_are_shown_as_ids() -> None:
    assert TokenTexts().sequence([7, 8]) == ["⟨7⟩", "⟨8⟩"]
    assert TokenTexts(byte_level_tokenizer()).piece(99_999) == "⟨99999⟩"


def test_a_missing_tokenizer_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="leave --tokenizer out"):
        load_token_texts(str(tmp_path))
