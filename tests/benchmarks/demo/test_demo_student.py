"""The demo's student: which layers it keeps of its teacher, and when it is made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.__main__ import main
from benchmarks.demo.demo import training
from benchmarks.demo.layer_choice import demo_texts, influences, most_influential
from tests.trainer.parity.models import VOCAB_SIZE, WITH_START, byte_model
from trainer.run.config import load_config, resolved

TEXTS = [[5, 9, 200, 31, 7], [8, 8, 17]]


def teacher_of(num_layers: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        num_hidden_layers=num_layers,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def silence(layer: Any) -> None:
    """What goes in comes out."""
    torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    torch.nn.init.zeros_(layer.mlp.down_proj.weight)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Four layers, of which the second and the last do nothing."""
    folder = tmp_path / "teacher"
    byte_model(folder, template=WITH_START)
    model = teacher_of(4)
    silence(model.model.layers[1])
    silence(model.model.layers[3])
    model.save_pretrained(folder)
    return folder


def test_the_influence_of_a_layer_is_the_turn_of_what_runs_through_it() -> None:
    model = teacher_of(3)
    wanted = torch.zeros(2)
    for token_ids in TEXTS:
        # The last of these has gone through the final norm, so that it tells nothing of the last layer.
        states = model.model(input_ids=torch.tensor([token_ids]), output_hidden_states=True).hidden_states
        for place in range(2):
            wanted[place] += (1 - torch.cosine_similarity(states[place], states[place + 1], dim=-1)).sum()
    hooks = dict(model.model.layers[0]._forward_hooks)
    found = influences(model, TEXTS)
    assert model.model.layers[0]._forward_hooks == hooks
    assert found[:2] == pytest.approx((wanted / 8).tolist(), rel=1e-4)
    silence(model.model.layers[2])
    assert influences(model, TEXTS)[2] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_layers_that_do_nothing_go_first(teacher: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    assert len(demo_texts(tokenizer)) == 8
    assert most_influential(model, tokenizer, 2) == (0, 2)
    with pytest.raises(ValueError, match="5 layers cannot be kept of a teacher with 4"):
        most_influential(model, tokenizer, 5)


def test_the_student_is_half_of_its_teacher_and_made_anew_only_where_it_is_another(
    teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / ".demo" / "start"
    make = ["student", "--teacher", str(teacher), "--out", str(out)]

    def made() -> tuple[list[int], int]:
        assert main(make) == 0
        return json.loads((out / "config.json").read_text())["layers_of_teacher"], out.stat().st_ino

    kept, first = made()
    assert kept == [0, 2]
    whole: Any = AutoModelForCausalLM.from_pretrained(teacher)
    student: Any = AutoModelForCausalLM.from_pretrained(out)
    assert len(student.model.layers) == 2
    for place, layer in enumerate(kept):
        of_both = (student.model.layers[place], whole.model.layers[layer])
        own, teachers = (one.mlp.down_proj.weight for one in of_both)
        assert torch.equal(own, teachers)
    ids = torch.tensor([TEXTS[0]])
    assert torch.allclose(student(ids).logits, whole(ids).logits, atol=1e-5), "the others did nothing"
    assert made() == ([0, 2], first)
    config = json.loads((out / "config.json").read_text())
    del config["layers_of_teacher"]  # as an earlier version left it
    (out / "config.json").write_text(json.dumps(config))
    kept, second = made()
    assert (kept, second != first) == ([0, 2], True)
    make += ["--layers", "0,1,3"]
    kept, third = made()
    assert (kept, third != second) == ([0, 1, 3], True)
    assert made() == ([0, 1, 3], third)


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_no_folder_of_others_is_replaced(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished student, or a folder of anything, was removed without a word."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert main([part, "--out", str(tmp_path / "mine")]) == 2
    assert "holds something, and all of it would be replaced" in capsys.readouterr().err
    assert (tmp_path / "mine" / "config.json").read_text() == "{}"


def test_a_student_that_an_earlier_version_trained_is_replaced(tmp_path: Path) -> None:
    file = Path(__file__).parents[3] / "configs" / "demo-train.toml"
    places = [f"output.folder={tmp_path}", "loss.alpha=0"]
    plain = [str(file), "--set", places[0], "--set", places[1]]
    assert training(file, places) == plain
    config = load_config(str(file), places)
    (tmp_path / "train.json").write_text(json.dumps(resolved(config)))
    assert training(file, places) == plain, "the same settings"
    (tmp_path / "train.json").write_text(json.dumps(resolved(load_config(str(file), places[:1]))))
    assert training(file, places) == [*plain, "--restart"]
