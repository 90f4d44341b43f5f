"""The command from configuration to a saved student that transformers loads."""

import json
import math
import os
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitstore.common.config_file import ConfigError
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.store import LogitStore
from tests.trainer.run.conftest import VOCABULARY, settings
from tests.trainer.stores import make_store
from trainer.__main__ import main
from trainer.hf.token_means import TokenMeans
from trainer.run.config import load_config
from trainer.run.settings.data import parse_bytes


@pytest.mark.slow
def test_train_saves_a_better_student_and_says_so(config, tmp_path, capsys):
    assert main(["train", str(config), "--quiet"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["after"]["kl"] < 0.6 * metrics["before"]["kl"]
    assert metrics["num_steps"] == 60
    assert [entry["step"] for entry in metrics["history"]][-1] == 60
    assert metrics["alignment_nll"]["+0"] < min(
        metrics["alignment_nll"]["-1"], metrics["alignment_nll"]["+1"]
    )
    assert f"{metrics['after']['kl']:.4f}" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert model.config.vocab_size == 64
    assert AutoTokenizer.from_pretrained(tmp_path / "run").get_vocab() == VOCABULARY
    card = (tmp_path / "run" / "README.md").read_text()
    assert metrics["stores"][0]["digest"] in card
    assert "tests/random" in card
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    # The saved configuration is a configuration, and evaluation gives the figures of the run.
    assert main(["eval", str(tmp_path / "run" / "train.json"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert again.pop("teacher") == pytest.approx(metrics["teacher"])
    assert again.pop("calibration").keys() == metrics["calibration"].keys()
    assert again == pytest.approx(metrics["after"], rel=1e-4)
    # A finished run is not run again; what it found is said again.
    written = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["after"] == metrics["after"]
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_settings_only(config, tmp_path, capsys):
    def run(*overrides):
        given = [word for override in overrides for word in ("--set", override)]
        return main(["train", str(config), "--json", *given])

    few = ("training.max_steps=4", "training.save_steps=2", "evaluation.before=false")
    assert run(*few) == 0
    first = json.loads(capsys.readouterr().out)
    # Its checkpoint is not passed off as the result of other settings.
    assert run(*few, "loss.temperature=2.0", "data.seed=3") == 2
    said = capsys.readouterr().err
    assert "data.seed: 0 there, 3 now; loss.temperature: 1.0 there, 2.0 now" in said
    assert "Restore these" in said
    assert json.loads((tmp_path / "run" / "train.json").read_text())["loss"]["temperature"] == 1.0
    # How far and how it trains may change.
    longer = ("training.max_steps=6", "training.save_steps=2", "training.batch_size=2")
    given = [word for override in longer for word in ("--set", override)]
    assert main(["train", str(config), *given]) == 0
    assert f"going on from {tmp_path}/run/checkpoints/checkpoint-4\n" in capsys.readouterr().err
    longer = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert longer["num_steps"] == 6
    assert 0 < longer["num_tokens"] < first["num_tokens"], "of its own two steps of half the batch"
    assert longer["history"][0] == first["history"][0]
    # Begun anew, nothing of it is left to go on from.
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / "checkpoint-6").exists()
    restarted = ("training.max_steps=2", "training.save_steps=2", "evaluation.before=false", "data.seed=3")
    given = [word for override in restarted for word in ("--set", override)]
    assert main(["train", str(config), "--json", "--restart", *given]) == 0
    assert json.loads(capsys.readouterr().out)["num_steps"] == 2
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-2"]


@pytest.mark.slow
def test_stores_have_losses_of_their_own_which_a_run_keeps(config, tmp_path, capsys):
    make_store(
        tmp_path / "other", (9,), seed=5, fingerprint=tokenizer_fingerprint(VOCABULARY), tokenizer_size=64
    )

    def run(alpha, *words):
        stores = (
            f'[{{uri = "{tmp_path / "store"}"}}, {{uri = "{tmp_path / "other"}", {alpha}temperature = 2.0}}]'
        )
        given = (f"data.stores={stores}", "training.save_steps=2", "evaluation.before=null", *words)
        return main(["train", str(config), "--json", *(word for one in given for word in ("--set", one))])

    assert run("", "training.max_steps=2", "evaluation.max_sequences=null") == 2
    assert "evaluation.before = None: Input should be a valid boolean" in capsys.readouterr().err
    few = ("training.max_steps=2", "evaluation.max_sequences=null", "evaluation.before=false")
    assert run("alpha = 0.3, ", *few) == 0
    settings = json.loads((tmp_path / "run" / "train.json").read_text())
    assert settings["evaluation"]["max_sequences"] is None
    assert [store["alpha"] for store in settings["data"]["stores"]] == [None, 0.3]
    capsys.readouterr()
    assert run("alpha = 0.4, ", *few, "training.max_steps=4") == 2
    assert "alpha and temperature of data.stores: [(None, None), (0.3, 2.0)] there" in capsys.readouterr().err
    assert run("alpha = 0.3, ", *few, "training.max_steps=3") == 0
    assert run("alpha = 0.3, ", *few, "loss.alpha=0") == 2
    assert "loss.alpha = 0 reads no labels of a teacher" in capsys.readouterr().err


@pytest.mark.slow
def test_a_quantised_student_is_saved_as_integers_and_evaluates_as_it_trained(config, tmp_path, capsys):
    words = ("student.quantize=int4", "training.max_steps=20")
    assert main(["train", str(config), "--json", *(word for one in words for word in ("--set", one))]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["after"]["kl"] < metrics["before"]["kl"]
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert {value.dtype for name, value in saved.items() if name.endswith("weight_packed")} == {torch.int32}
    assert main(["eval", str(tmp_path / "run" / "train.json"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert again["kl"] == pytest.approx(metrics["after"]["kl"], rel=1e-3)
    assert (
        main(["train", str(config), "--set", "student.quantize=int4", "--set", "training.deepspeed={}"]) == 2
    )
    assert "student.quantize rounds whole weights" in capsys.readouterr().err


@pytest.mark.slow
def test_plain_text_is_learned_beside_labels(config, tmp_path, capsys):
    """What only the text says, that every token is the last, is learned; the labels are as ever."""
    lines = [{"text": f"t{number}"} for number in range(2, 62)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(folder, *words):
        given = (f"output.folder={tmp_path / folder}", "evaluation.before=false", *words)
        return main(["train", str(config), "--json", *(word for one in given for word in ("--set", one))])

    text = f'data.texts=[{{uri = "{tmp_path / "text.jsonl"}", kind = "text"}}]'
    assert run("mixed", text) == 0
    mixed = json.loads(capsys.readouterr().out)
    assert mixed["stores"][1]["teacher"] == "none (plain text)"
    assert [store["num_sequences"] for store in mixed["stores"]][1] == 60
    assert mixed["stores"][1]["num_held_out"] == 0
    assert run("labels") == 0
    alone = json.loads(capsys.readouterr().out)
    assert mixed["after"]["num_rows"] == alone["after"]["num_rows"], "text is not evaluated on"
    loss = {}
    for name in ("mixed", "labels"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        ids = torch.tensor([[number, 1] for number in range(2, 62)])
        loss[name] = model(input_ids=ids, labels=ids).loss.item()
    assert loss["mixed"] < 0.5 * loss["labels"]
    assert "Student of tests/random\n" in (tmp_path / "mixed" / "README.md").read_text()
    # Other text is another run; a record of another kind is named.
    (tmp_path / "text.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert run("mixed", text) == 2
    assert "the contents of data.stores" in capsys.readouterr().err
    assert run("other", text.replace('"text"', '"messages"')) == 2
    assert (
        "record 1 has messages = 'None': kind = 'messages' needs a list of messages"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_what_is_saved_can_be_read_by_others_and_is_no_pickle(config, tmp_path):
    given = ["--set", "training.max_steps=2", "--set", "training.save_steps=1"]
    before = os.umask(0o027)
    try:
        assert main(["train", str(config), "--quiet", *given]) == 0
    finally:
        os.umask(before)
    weights = sorted((tmp_path / "run").rglob("*.safetensors"))
    assert [path.parent.name for path in weights] == ["checkpoint-1", "checkpoint-2", "run"]
    assert {path.stat().st_mode & 0o777 for path in weights} == {0o640}
    assert not list((tmp_path / "run").rglob("training_args.bin"))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packing_is_settled_by_the_students_attention(config, tmp_path, attention, capsys):
    """One step over all sequences of an epoch: as many rows as they fill, or one for each."""
    few = (
        f"student.attn_implementation={attention}",
        "training.max_steps=1",
        "training.batch_size=64",
        "evaluation.before=false",
    )
    packed = ("data.pack_length=48", f"output.folder={tmp_path / 'packed'}")
    losses = []
    for overrides in (few, few + packed):
        given = [word for override in overrides for word in ("--set", override)]
        assert main(["train", str(config), "--json", *given]) == 0
        losses.append([entry["loss"] for entry in json.loads(capsys.readouterr().out)["history"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.slow
def test_a_store_may_be_read_in_part(config, tmp_path, capsys):
    store = tmp_path / "store"
    few = ("--set", "training.max_steps=1", "--set", "evaluation.before=false", "--json")
    numbers = []
    for where in ("num_tokens >= 0", "num_tokens < 12"):
        stores = f'data.stores={{uri = "{store}", where = "{where}"}}'
        assert main(["train", str(config), *few, "--set", stores, "--restart"]) == 0
        (told,) = json.loads(capsys.readouterr().out)["stores"]
        numbers.append(told["num_sequences"] + told["num_held_out"])
    lengths = [len(sequence.token_ids_T) for sequence in LogitStore.open(str(store)).iter_sequences()]
    assert numbers == [60, sum(length < 12 for length in lengths)]
    stores = f'data.stores={{uri = "{store}", where = "length < 12"}}'
    assert main(["train", str(config), *few, "--set", stores]) == 2
    assert "knows no field 'length'" in capsys.readouterr().err
    stores = f'data.stores={{uri = "{store}", where = "num_tokens < 1"}}'
    assert main(["train", str(config), *few, "--set", stores]) == 2
    assert "`where` selects none" in capsys.readouterr().err


@pytest.mark.slow
def test_optimizer_schedule_and_warm_up_reach_the_trainer(config, capsys):
    given = settings(
        "training.max_steps=8",
        "training.logging_steps=1",
        "training.optimizer=sgd",
        "training.schedule=warmup_stable_decay",
        "training.schedule_args={num_decay_steps = 4}",
        "training.warmup_ratio=0.25",
        "training.learning_rate=0.1",
        "evaluation.before=false",
    )
    assert main(["train", str(config), "--json", *given]) == 0
    rates = [entry["learning_rate"] for entry in json.loads(capsys.readouterr().out)["history"]]
    assert rates[:4] == pytest.approx([0.0, 0.05, 0.1, 0.1])
    assert rates[-1] < 0.1


@pytest.mark.slow
def test_adapters_may_be_merged_into_the_saved_student(config, tmp_path, capsys):
    pytest.importorskip("peft")
    assert main(["train", str(config), "--quiet", *settings("training.max_steps=2")]) == 0
    capsys.readouterr()
    adapted = settings(
        f"student.model={tmp_path / 'run'}",
        "student.small=null",
        "student.lora={rank = 2, merge = true}",
        "training.max_steps=8",
        f"output.folder={tmp_path / 'merged'}",
    )
    assert main(["train", str(config), "--json", *adapted]) == 0
    after = json.loads(capsys.readouterr().out)["after"]
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.vocab_size == 64
    assert main(["eval", str(config), "--json", *adapted]) == 0
    assert json.loads(capsys.readouterr().out)["kl"] == pytest.approx(after["kl"], rel=1e-4)


@pytest.mark.slow
def test_half_precision_is_tried_without_a_gpu_too(config, capsys):
    given = ["--set", "training.max_steps=2", "--set", "training.precision=bf16"]
    assert main(["train", str(config), "--json", *given]) == 0
    assert json.loads(capsys.readouterr().out)["num_steps"] == 2


def test_dry_run_prints_every_setting(config, capsys):
    assert main(["train", str(config), "--dry-run", "--set", "data.cache_limit=20gb"]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert settings["data"]["cache_limit"] == 20 * 10**9
    assert settings["data"]["stores"][0]["weight"] == 1.0


def test_secrets_are_not_in_the_saved_settings(config):
    from trainer.run.config import resolved

    store = (
        '{uri = "s3://b/s", storage_options = {key = "AKIA", client_kwargs = {endpoint_url = "http://x"}}}'
    )
    options = resolved(load_config(str(config), [f"data.stores={store}"]))["data"]["stores"][0][
        "storage_options"
    ]
    assert options == {"key": "***", "client_kwargs": {"endpoint_url": "http://x"}}


def test_sizes():
    assert [parse_bytes(size) for size in (None, 7, "5", "1.5kb", "2 MiB", "3g")] == [
        None, 7, 5, 1500, 2 * 2**20, 3 * 10**9,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no training file at"):
        load_config("/nowhere/train.toml")


@pytest.mark.slow
def test_stdout_is_the_metrics_alone_and_stderr_tells_the_steps(config, capsys):
    few = ["--set", "training.max_steps=4", "--set", "training.logging_steps=2"]
    assert main(["train", str(config), *few, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["num_steps"] == 4
    assert "Writing model shards" not in told.err
    assert main(["train", str(config), *few]) == 0
    assert "finished before: nothing is trained" in capsys.readouterr().err
    assert main(["eval", str(config), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["train", str(config), *few, "--restart"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 1/4", "step 2/4", "step 4/4"]
    assert re.search(r"loss \d+\.\d{3}, distillation \d+\.\d{3}, .*top-1 agreement \d+\.\d%", lines[-1])


@pytest.mark.slow
def test_figures_that_are_not_finite_are_null_in_json(config, tmp_path, monkeypatch):
    """Python's Infinity is no JSON: jq and browsers read nothing of such a file."""
    monkeypatch.setattr(TokenMeans, "take", lambda self: {"student_mass": math.inf})
    assert main(["run", str(config), "--quiet", *settings("training.max_steps=1")]) == 0
    text = (tmp_path / "run" / "metrics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["history"][0]["student_mass"] is None
