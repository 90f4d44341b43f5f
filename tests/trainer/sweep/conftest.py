"""What sweeps of a tiny student are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from tests.trainer.stores import make_store
from tests.trainer.students import tiny_student

VOCABULARY = {f"t{index}": index for index in range(64)}


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    model = WordLevel(VOCABULARY, unk_token="t0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="t1", unk_token="t0")
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_student().save_pretrained(tmp_path / "model")
    make_store(tmp_path / "store", (20, 20), fingerprint=tokenizer_fingerprint(VOCABULARY), tokenizer_size=64)
    sets = ["training.max_steps=2", "training.tensorboard=false"]
    places = ["--student", f"{tmp_path}/model", "--labels", f"{tmp_path}/store", "--out", f"{tmp_path}/sweep"]
    return [*places, *(word for text in sets for word in ("--set", text))]
