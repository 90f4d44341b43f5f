"""What adapters name and the student does not have is refused; peft left it out, or died of it."""

import json

import pytest
import torch

from tests.trainer.run.conftest import settings, write_config
from tests.trainer.students import tiny_student, tiny_trainer, weights
from trainer.__main__ import main
from trainer.errors import GuardError

peft = pytest.importorskip("peft")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"target_modules": ["q_proj", "w_q"]}, "target_modules.* names w_q, as no module of Llama.* q_proj"),
        ({"modules_to_save": ["head", "nope"]}, r"modules_to_save \(in a configuration.* names nope, as no"),
        ({"trainable_token_indices": [3, 64]}, r"trainable_tokens\) has \[64\].* ids are 0 to 63; correct"),
        ({"trainable_token_indices": [-1]}, r"has \[-1\], but"),
    ],
)
def test_names_that_the_student_does_not_have_are_refused(small_store, tmp_path, given, words):
    adapters = peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **given})
    with pytest.raises(GuardError, match=words):
        tiny_trainer(small_store, tmp_path, trainer={"peft_config": adapters})


@pytest.mark.parametrize(
    "given",
    [
        {"target_modules": "all-linear", "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["self_attn.q_proj", "down_proj"], "trainable_token_indices": [0, 63]},
        {"target_modules": r".*layers\.0.*_proj"},
    ],
)
def test_names_that_it_has_are_taken(small_store, tmp_path, given):
    adapters = peft.LoraConfig(r=2, task_type="CAUSAL_LM", **given)
    tiny_trainer(small_store, tmp_path, trainer={"peft_config": adapters})


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig"])
def test_soft_prompts_which_move_every_token_are_refused(small_store, tmp_path, kind):
    """They ended in an IndexError."""
    adapters = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(GuardError, match="logits at 20 places for 16 tokens: it adds some of its own"):
        tiny_trainer(small_store, tmp_path, trainer={"peft_config": adapters}, fused=False)


@pytest.mark.slow
def test_adapters_of_other_kinds_learn(small_store, tmp_path):
    for adapters in (
        peft.LoraConfig(r=2, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM"),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ):
        trainer = tiny_trainer(
            small_store,
            tmp_path,
            trainer={"peft_config": adapters},
            optim="adamw_torch",
            learning_rate=0.05,
            max_steps=8,
        )
        before = trainer.evaluate()["eval_kl"]
        trainer.train()
        assert trainer.evaluate()["eval_kl"] < before


@pytest.mark.slow
def test_the_command_refuses_them_too(tmp_path, capsys):
    config = write_config(tmp_path)
    tiny_student().save_pretrained(tmp_path / "begin")
    given = settings(
        "student.small=null", f"student.model={tmp_path / 'begin'}", 'student.lora.modules_to_save=["nope"]'
    )
    assert main(["run", str(config), "--quiet", *given]) == 2
    assert "student.lora.modules_to_save) names nope" in capsys.readouterr().err


def test_weights_of_adapters_are_those_of_the_seed(small_store, tmp_path):
    """They were those of the process: runs of different seeds began alike, and one run twice did not."""
    adapters = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")

    def begun(seed):
        torch.rand(seed + 7)  # whatever was drawn before
        return weights(
            tiny_trainer(small_store, tmp_path, trainer={"peft_config": adapters}, seed=seed).model
        )

    assert torch.equal(begun(3), begun(3))
    assert not torch.equal(begun(3), begun(4))


def saved_to_merge(tmp_path, *, tied):
    model = tiny_student()
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(tmp_path / "begin")
    return [
        *("student.small=null", f"student.model={tmp_path / 'begin'}", "student.lora.merge=true"),
        *("loss.fused=false", "training.max_steps=6", "training.save_steps=null", "evaluation.snapshots=0"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapted",
    [
        'student.lora.target_modules=["q_proj", "lm_head"]',
        'student.lora.target_modules=["q_proj", "embed_tokens"]',
    ],
)
def test_adapters_that_cannot_be_merged_are_refused_before_training(tmp_path, capsys, adapted):
    """The student that was saved was another than the one that was trained: KL 3.0 in place of 1.5."""
    config = write_config(tmp_path)
    given = settings(*saved_to_merge(tmp_path, tied=True), adapted)
    assert main(["run", str(config), "--quiet", *given]) == 2
    assert "has adapters, and the head of LlamaForCausalLM is its embedding" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tied", "adapted"),
    [
        (False, 'student.lora.target_modules=["q_proj", "lm_head", "embed_tokens"]'),
        (True, 'student.lora.modules_to_save=["lm_head"]'),
        (True, "student.lora.trainable_tokens=[1, 2, 3]"),
    ],
)
def test_the_merged_student_is_the_one_that_was_trained(tmp_path, capsys, tied, adapted):
    config = write_config(tmp_path)
    given = settings(*saved_to_merge(tmp_path, tied=tied), adapted)
    assert main(["run", str(config), "--json", *given]) == 0
    trained = json.loads(capsys.readouterr().out)["after"]["kl"]
    assert main(["eval", str(config), "--json", *settings("loss.fused=false")]) == 0
    assert json.loads(capsys.readouterr().out)["kl"] == pytest.approx(trained, rel=1e-5)


def test_adapters_with_a_loss_of_their_own_are_refused(small_store, tmp_path):
    """It was left out without a word, as the model computes no loss here."""
    adapters = peft.AdaLoraConfig(r=2, init_r=4, target_modules=["q_proj"], total_step=9)
    with pytest.raises(GuardError, match="AdaLoRA adds a loss that keeps its parts orthogonal"):
        tiny_trainer(small_store, tmp_path, model=peft.get_peft_model(tiny_student(), adapters))
