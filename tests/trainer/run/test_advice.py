"""Advice before a run: each thing once, nothing about what is in order."""

from pathlib import Path

from logitstore.store import LogitStore
from logitstore.tokenizer_objects import put_tokenizer
from tests.trainer.stores import make_store
from trainer.data.sources import HeldOut, Source
from trainer.run.advice import FEW_SEQUENCES, advice_on, notes_on_texts


def test_few_sequences_are_told_with_their_number(tmp_path: Path) -> None:
    make_store(tmp_path / "few")
    make_store(tmp_path / "many", (250, 250), lengths=(6, 8), prefix="m")
    (line,) = advice_on([Source(str(tmp_path / "few"))])
    assert line.startswith("40 sequences are few: below about 500 ")
    assert FEW_SEQUENCES == 500
    assert advice_on([Source(str(tmp_path / "many"))]) == ()
    kept = Source(str(tmp_path / "many"), held_out=HeldOut(0.2))
    assert 350 < sum(kept.lengths) < 450
    assert len(advice_on([kept])) == 1, "what is held out does not train"
    assert advice_on([Source(str(tmp_path / "few")), Source(str(tmp_path / "many"))]) == ()


def test_a_licence_is_told_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_store(tmp_path / name, (250, 250), lengths=(6, 8))
        put_tokenizer(LogitStore.open(tmp_path / name).objects, {"tokenizer.json": b"{}"}, "gemma")
    sources = [Source(str(tmp_path / name)) for name in ("one", "two")]
    assert advice_on(sources) == (
        "the teacher's licence is gemma: see that it allows to train other models on its output",
    )


def test_stores_of_texts_alone_are_told_by_name(tmp_path: Path) -> None:
    make_store(tmp_path / "labels")
    make_store(tmp_path / "texts", texts_alone=True, prefix="t")
    (line,) = notes_on_texts([Source(str(tmp_path / "labels")), Source(str(tmp_path / "texts"))])
    assert line.startswith(f"{tmp_path / 'texts'} holds texts alone")
