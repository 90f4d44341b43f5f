"""A configuration of a tiny student, with its tokenizer and its store."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from tests.trainer.stores import make_store

VOCABULARY = {f"t{index}": index for index in range(64)}


def write_config(tmp_path):
    """A configuration file, its tokenizer and its store."""
    model = WordLevel(VOCABULARY, unk_token="t0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="t1", unk_token="t0")
    tokenizer.save_pretrained(tmp_path / "teacher")
    make_store(
        tmp_path / "store", (20, 20, 20), fingerprint=tokenizer_fingerprint(VOCABULARY), tokenizer_size=64
    )
    path = tmp_path / "train.toml"
    path.write_text(f"""
[student]
tokenizer = "{tmp_path / "teacher"}"
[student.small]
hidden_size = 32
intermediate_size = 64
num_layers = 1
num_heads = 2
[data]
stores = "{tmp_path / "store"}"
held_out_fraction = 0.25
[loss]
alpha = 0.9
[training]
max_steps = 60
batch_size = 4
learning_rate = 2e-2
save_steps = 25
[output]
folder = "{tmp_path / "run"}"
""")
    return path


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


def settings(*overrides):
    return [word for override in overrides for word in ("--set", override)]
