"""The card of a published store: what it says, and that its example runs."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from huggingface_hub import DatasetCard

from logitstore.manifest.fields import STUDENT_PROMPTS
from logitstore.objects.opening import Objects
from logitstore.publishing.card import CardSettings, Contents, dataset_card
from logitstore.publishing.publish import publish_store
from logitstore.records import LabelRows
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_sequence


def test_the_hub_reads_the_card_and_its_example_runs(store: LogitStore, tmp_path: Path) -> None:
    out = tmp_path / "public"
    publish_store(store, Objects(out), CardSettings("me/labels"))
    card = DatasetCard.load(out / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["size_categories"], data["viewer"]) == ("apache-2.0", ["n<1K"], False)
    for fact in ("teacher, revision main", "8 entries", "| 1, 2, 4 |", "`apache-2.0`", "1, left out here"):
        assert fact in card.text, fact
    assert ran_example(card.text, "me/labels", out) == ["18", "teacher", "record-0", "(12,)", "(11,", "8)"]


@pytest.mark.slow
def test_datasets_reads_what_is_published(store: LogitStore, tmp_path: Path) -> None:
    """It took the index for data too, whose columns are others."""
    out = tmp_path / "public"
    publish_store(store, Objects(out), CardSettings())
    loaded: Any = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    expected = [one.record_id for one in LogitStore.open(out)]
    assert [name for block in loaded for name in block["record_id"]] == expected


def texts_store(place: Path) -> LogitStore:
    """Two sequences of what a teacher wrote, without label rows."""
    manifest = make_manifest(top_k=1)
    labels = dataclasses.replace(manifest.labels, support="none", temperatures=(1.0,))
    store = LogitStore.create(
        place, dataclasses.replace(manifest, labels=labels, features=labels.support_features)
    )
    sequences = []
    for number in range(2):
        whole = make_sequence(f"record-{number}", top_k=1)
        arrays = {one.name: getattr(whole.rows, one.name)[:0] for one in dataclasses.fields(whole.rows)}
        for name in ("logsumexp_NM", "log_tail_mass_NM"):
            arrays[name] = arrays[name][:, :1]
        rows = LabelRows(**arrays)
        sequences.append(dataclasses.replace(whole, rows=rows, loss_mask_N=whole.loss_mask_N[:0]))
    store.commit_unit("u", 0, sequences, seconds=0, worker="w")
    return store


def ran_example(card: str, repository: str, out: Path) -> list[str]:
    """Words that the card's example prints for the folder in place of the Hub."""
    (code,) = re.findall(r"```python\n(.+?)```", card, re.DOTALL)
    assert f'"hf://datasets/{repository}"' in code
    code = code.replace(f"hf://datasets/{repository}", str(out))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_the_card_of_a_store_of_texts_speaks_of_no_distribution(tmp_path: Path) -> None:
    store = texts_store(tmp_path / "texts")
    publish_store(store, Objects(tmp_path / "public"), CardSettings())
    card = (tmp_path / "public/README.md").read_text()
    for said in ("# Texts of teacher", "nothing of its distribution", "`loss.alpha = 0`", "a token |"):
        assert said in card, said
    for wrong in (
        "likeliest",
        "| K |",
        "exact mass",
        "Label rows",
        "Values",
        "logits_NK",
        "- logits",
        "a label row",
    ):
        assert wrong not in card, wrong
    assert ran_example(card, "OWNER/NAME", tmp_path / "public") == ["2", "teacher", "record-0", "(12,)"]


def test_the_card_of_given_entries_does_not_call_them_likeliest(tmp_path: Path) -> None:
    manifest = make_manifest()
    labels = dataclasses.replace(manifest.labels, support="given")
    given = dataclasses.replace(manifest, labels=labels, features=labels.support_features)
    card = dataset_card(given, Contents.of([], 0), CardSettings())
    assert "Up to 8 tokens that were named beforehand" in card
    assert "| K | 8 given entries a position |" in card
    assert "The 8 likeliest tokens" not in card


def test_the_card_says_that_students_see_another_prompt(tmp_path: Path) -> None:
    for manifest in (make_manifest(), texts_store(tmp_path / "texts").manifest):
        own = dataclasses.replace(manifest, features=(*manifest.features, STUDENT_PROMPTS))
        said = [dataset_card(one, Contents.of([], 0), CardSettings()) for one in (manifest, own)]
        assert ["`sequence.for_student()`" in card for card in said] == [False, True]


@pytest.mark.parametrize(
    ("licence", "expected"),
    [("", "unknown"), ("Apache License, Version 2.0", "other"), ("llama3.1", "llama3.1")],
)
def test_licences_that_the_hub_does_not_know_are_named_beside(
    licence: str, expected: str, tmp_path: Path
) -> None:
    store = LogitStore.create(tmp_path / "store", make_manifest(model='a "quoted": teacher | x'))
    store.commit_unit("u", 0, [make_sequence("a")], seconds=0, worker="w")
    publish_store(store, Objects(tmp_path / "public"), CardSettings(licence=licence))
    data = DatasetCard.load(tmp_path / "public/README.md").data.to_dict()
    assert data["license"] == expected
    assert data.get("license_name") == (licence if expected == "other" else None)
    assert data["pretty_name"] == 'Labels of a "quoted": teacher | x'


def test_a_name_of_any_characters_is_one_line_that_yaml_reads() -> None:
    manifest = make_manifest(model='org/模型😀 "q" \\ \x7f\u2028é\n---\nevil: 1')
    card = dataset_card(manifest, Contents.of([], 0), CardSettings(licence="Mine 😀"))
    data = yaml.safe_load(card.split("---\n")[1])
    title = 'Labels of org/模型😀 "q" \\ \x7f é --- evil: 1'
    assert (data["pretty_name"], data["license_name"]) == (title, "Mine 😀")
    assert f"\n# {title}\n" in card
