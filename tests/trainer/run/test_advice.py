"""Advice before a run: each thing once, nothing about what is in order."""

import re
from dataclasses import replace
from pathlib import Path

import torch

from logitstore.manifest.fields import GIVEN_ENTRIES, RETOKENIZED, Retokenized, TokenizerInfo
from logitstore.rows.where import parse_selection
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import put_tokenizer
from tests.trainer.stores import label_spec, make_store, manifest
from tests.trainer.students import tiny_student
from trainer.data.sources import HeldOut, Source
from trainer.run.advice import (
    FEW_SEQUENCES,
    advice_on,
    notes_on_held_out,
    notes_on_run,
    notes_on_temperatures,
)
from trainer.run.config import load_config
from trainer.run.teacher_size import teacher_parameters


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


def test_answers_that_were_cut_off_are_told_with_the_choice_that_leaves_them_out(tmp_path: Path) -> None:
    make_store(tmp_path / "some", (250, 250), lengths=(6, 8), cut_every=6)
    assert advice_on([Source(str(tmp_path / "some"))]) == ()
    make_store(tmp_path / "many", (250, 250), lengths=(6, 8), cut_every=4)
    (line,) = advice_on([Source(str(tmp_path / "many"))])
    assert line.startswith("125 of 500 answers (25%) were cut off at the labeler's limit of tokens")
    found = re.search(r'where = "(.+?)"', line)
    assert found is not None
    ended = Source(str(tmp_path / "many"), selection=parse_selection(found[1]))
    assert sum(ended.lengths) == 375
    assert "cut off" not in " ".join(advice_on([ended]))


def test_a_teacher_that_is_no_larger_is_told_with_both_sizes(tmp_path: Path) -> None:
    teacher = tiny_student()
    num_parameters = sum(parameter.numel() for parameter in teacher.parameters())
    make_store(tmp_path / "store", (250, 250), lengths=(6, 8))
    source = Source(str(tmp_path / "store"))
    assert advice_on([source], 10**9) == (), "nothing is known of its teacher"
    teacher.config.save_pretrained(tmp_path / "teacher")
    put_tokenizer(source.objects, {"config.json": (tmp_path / "teacher/config.json").read_bytes()})
    assert teacher_parameters(source) == num_parameters
    assert advice_on([source], num_parameters - 1) == ()
    (line,) = advice_on([source], num_parameters)
    assert (
        f"has {num_parameters:,} parameters and the student {num_parameters:,}: a teacher that is no" in line
    )


def test_an_unknown_architecture_has_no_size(tmp_path: Path) -> None:
    make_store(tmp_path / "store", (4,))
    source = Source(str(tmp_path / "store"))
    put_tokenizer(source.objects, {"config.json": b'{"model_type": "of_next_year"}'})
    assert teacher_parameters(source) is None


def test_a_run_without_checkpoints_is_told_how_to_have_them(config: Path) -> None:
    (line,) = notes_on_run(load_config(str(config), ["training.save_steps=null"]))
    assert "a run that is killed or interrupted begins anew" in line
    found = re.search(r"--set (\S+)", line)
    assert found is not None
    assert notes_on_run(load_config(str(config), ["training.save_steps=null", found[1]])) == ()


def test_weights_that_lose_small_changes_are_told_how_not_to(config: Path) -> None:
    (line,) = notes_on_run(load_config(str(config), ["student.dtype=bfloat16"]))
    assert "changes below half of that are lost" in line
    assert torch.tensor(1.0, dtype=torch.bfloat16) + 1 / 300 == 1
    settings = [found.rstrip(",") for found in re.findall(r"--set (\S+)", line)]
    assert len(settings) == 2
    assert notes_on_run(load_config(str(config), ["student.dtype=bfloat16", *settings])) == ()


def test_a_temperature_between_those_of_a_store_is_said_to_be_interpolated(
    config: Path, tmp_path: Path
) -> None:
    sources = [Source(str(tmp_path / "store"))]

    def notes(*overrides: str) -> tuple[str, ...]:
        return notes_on_temperatures(load_config(str(config), overrides), sources)

    for exact in ("loss.temperature=2", "loss.temperature=9", "loss.alpha=0", "loss.tail=renormalize"):
        given = () if "temperature" in exact else ("loss.temperature=1.25",)
        assert notes(*given, exact) == (), exact
    (line,) = notes("loss.temperature=1.25")
    assert "stores T = 1, 2, 4, and for T = 1.25 the mass outside the 8 stored ids is interpolated" in line
    own = f'data.stores=[{{uri = "{tmp_path / "store"}", temperature = 3}}]'
    assert "for T = 3 the mass" in notes(own)[0]


def test_stores_of_texts_alone_are_told_by_name(tmp_path: Path) -> None:
    make_store(tmp_path / "labels")
    make_store(tmp_path / "texts", texts_alone=True, prefix="t")
    (line,) = notes_on_held_out([Source(str(tmp_path / "labels")), Source(str(tmp_path / "texts"))])
    assert line.startswith(f"{tmp_path / 'texts'} holds texts alone")


def test_stores_of_given_ids_are_told_by_name(tmp_path: Path) -> None:
    head = manifest(replace(label_spec(), support="given"))
    LogitStore.create(tmp_path / "given", replace(head, features=(GIVEN_ENTRIES,)))
    (line,) = notes_on_held_out([Source(str(tmp_path / "given"))])
    assert line.startswith(f"{tmp_path / 'given'} has its rows at given ids, so that agreement is with the")


def test_stores_mapped_to_another_tokenizer_are_told_by_name(tmp_path: Path) -> None:
    origin = Retokenized(("0" * 32,), TokenizerInfo("other", 64), merged_spans=False)
    head = manifest(replace(label_spec(), teacher_vocab_size=64))
    LogitStore.create(tmp_path / "mapped", replace(head, features=(RETOKENIZED,), retokenized=origin))
    (line,) = notes_on_held_out([Source(str(tmp_path / "mapped"))])
    assert line.startswith(f"{tmp_path / 'mapped'} was mapped to another tokenizer, in which the teacher's")
