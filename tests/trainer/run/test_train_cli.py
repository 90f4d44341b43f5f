"""The command from configuration to a saved student that transformers loads, and what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

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
from trainer.run.config import load_config
from trainer.run.only_run import only_run
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
    assert run("training.max_steps=6", "training.save_steps=2", "training.batch_size=2") == 0
    longer = json.loads(capsys.readouterr().out)
    assert longer["num_steps"] == 6
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


def test_evaluation_on_texts_alone_has_no_teacher_and_says_so(config, tmp_path, capsys):
    """Which may train beside labels by a loss of its own, whatever loss.alpha is."""
    fingerprint = LogitStore.open(tmp_path / "store").manifest.tokenizer.fingerprint
    make_store(tmp_path / "texts", fingerprint=fingerprint, tokenizer_size=64, texts_alone=True, prefix="t")
    stores = f'data.stores=[{{uri = "{tmp_path / "store"}"}}, {{uri = "{tmp_path / "texts"}", alpha = 0}}]'
    given = settings(stores, "training.max_steps=2")
    assert main(["run", str(config), "--json", *given]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["teacher"] is None
    assert main(["eval", str(config), "--json", *given]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["teacher"] is None
    assert "texts holds texts alone" in told.err
    refused = settings(stores.replace("alpha = 0}", "alpha = 0.5}"), f"output.folder={tmp_path / 'other'}")
    assert main(["run", str(config), "--quiet", *refused]) == 2
    assert "texts holds texts alone and alpha = 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_student_is_never_replaced_without_restart(config, tmp_path, capsys):
    """Without training.save_steps it leaves no checkpoint, and it stood unguarded."""
    text = config.read_text().replace("save_steps = 25\n", "").replace("max_steps = 60", "max_steps = 2")
    config.write_text(text)
    student = tmp_path / "run" / "model.safetensors"

    def run(*words):
        return main(["train", str(config), "--quiet", "--set", "evaluation.before=false", *words])

    assert run() == 0
    weights = student.read_bytes()
    for setting, words in (
        ("loss.temperature=2", "holds a student of a run with other settings (loss.temperature: 1.0 there"),
        ("training.seed=5", "training.seed: 0 there, 5 now"),
        ("training.max_steps=1", "holds a finished student of 2 steps"),
        ("training.max_steps=9", "It left no checkpoint (training.save_steps)"),
        ("training.batch_size=2", "training.batch_size: 4 there, 2 now"),
    ):
        assert run("--set", setting) == 2
        assert words in (said := capsys.readouterr().err)
        assert "--restart" in said
    (tmp_path / "run" / "metrics.json").unlink()  # as in a run that was ended while it was done again
    assert run("--set", "loss.alpha=0.5") == 2
    (tmp_path / "run" / "train.json").unlink()
    assert run() == 2
    assert "holds a model, and no train.json says that this command made it" in capsys.readouterr().err
    assert student.read_bytes() == weights
    assert run("--restart", "--set", "training.seed=5") == 0
    assert student.read_bytes() != weights


def test_a_finished_run_over_other_ids_is_not_this_one(config, tmp_path, capsys):
    """The file has the same name and names other records. Both parts of the store count their own."""
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"r{number}\n" for number in range(40)))
    uri = tmp_path / "store"
    stores = f'data.stores=[{{uri = "{uri}", ids = "{ids}"}}, {{uri = "{uri}", without_ids = "{ids}"}}]'
    given = settings(stores, "training.max_steps=1", "training.save_steps=null", "evaluation.before=false")
    assert main(["run", str(config), "--json", *given]) == 0
    told = json.loads(capsys.readouterr().out)["stores"]
    assert [one["num_sequences"] + one["num_held_out"] for one in told] == [40, 20]
    ids.write_text("".join(f"r{number}\n" for number in range(20, 60)))
    assert main(["run", str(config), "--quiet", *given]) == 2
    assert "made otherwise than now (the contents of data.stores, or of their ids)" in capsys.readouterr().err


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
def test_labels_beyond_the_limit_are_refused_before_training(config, tmp_path, capsys):
    given = [
        "--set",
        "data.max_length=2",
        "--set",
        f'data.stores={{uri = "{tmp_path}/store", where = "prompt_length > 2"}}',
    ]
    assert main(["train", str(config), *given]) == 2
    assert "label rows for training lie beyond max_length=2" in capsys.readouterr().err


@pytest.mark.slow
def test_attention_that_is_not_there_is_named(config, capsys):
    assert main(["train", str(config), "--set", "student.attn_implementation=flash_attention_2"]) == 2
    assert "student.attn_implementation = 'flash_attention_2'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_best_checkpoint_is_saved_and_training_stops_early(config, tmp_path, capsys):
    """The learning rate is so high that the student gets worse again."""
    given = settings(
        "training.max_steps=60",
        "training.save_steps=2",
        "training.learning_rate=1.0",
        "training.schedule=constant",
        "evaluation.steps=2",
        "evaluation.best=kl",
        "evaluation.patience=3",
    )
    assert main(["train", str(config), "--json", *given]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["num_steps"] < 60
    state = json.loads(
        max(
            (tmp_path / "run" / "checkpoints").glob("*/trainer_state.json"),
            key=lambda path: int(path.parent.name.rpartition("-")[2]),
        ).read_text()
    )
    kls = [entry["eval_kl"] for entry in state["log_history"] if "eval_kl" in entry]
    assert metrics["after"]["kl"] == pytest.approx(min(kls), rel=1e-4)
    assert min(kls) < kls[-1]


@pytest.mark.slow
def test_evaluation_may_have_stores_of_its_own(config, tmp_path, capsys):
    make_store(
        tmp_path / "own",
        (9,),
        seed=8,
        prefix="own",
        fingerprint=tokenizer_fingerprint(VOCABULARY),
        tokenizer_size=64,
    )
    given = settings(
        "training.max_steps=2", "data.held_out_fraction=0", f"evaluation.stores={tmp_path / 'own'}"
    )
    assert main(["train", str(config), "--json", *given]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["after"]["num_sequences"] == 9
    assert (metrics["stores"][0]["num_sequences"], metrics["stores"][0]["num_held_out"]) == (60, 0)
    assert main(["eval", str(config), "--json", *given]) == 0
    assert json.loads(capsys.readouterr().out)["num_sequences"] == 9
    # Figures on what the store held before are not those of the store.
    shutil.rmtree(tmp_path / "own")
    make_store(
        tmp_path / "own", (7,), fingerprint=tokenizer_fingerprint(VOCABULARY), tokenizer_size=64, prefix="own"
    )
    assert main(["train", str(config), "--json", *given]) == 2
    assert "made otherwise than now (the contents of evaluation.stores, or of" in capsys.readouterr().err


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


@pytest.mark.slow
def test_a_store_that_does_not_fit_the_student_is_refused(config, tmp_path, capsys):
    make_store(tmp_path / "foreign", (10,), fingerprint="sha256:" + "0" * 64, tokenizer_size=64)
    assert main(["train", str(config), "--quiet", "--set", f"data.stores={tmp_path / 'foreign'}"]) == 2
    assert "the same id is another token" in capsys.readouterr().err
    assert main(["train", str(config), "--quiet", "--set", "loss.temperature=0.5"]) == 2
    assert "choose one from there on, label again with it" in capsys.readouterr().err
    assert main(["train", str(config), "--quiet", "--set", "data.stores=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["train", str(config), "--quiet", "--set", "data.top_k=9"]) == 2
    assert "top_k=9 must lie in 1..8" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_output_below_a_file_is_refused_in_one_line(config, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "run"
    assert main(["run", str(config), "--quiet", "--set", f"output.folder={below}"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    (line,) = [line for line in told.splitlines() if "error:" in line]
    assert line.startswith("penumbra train: error: ")
    assert str(tmp_path / "file") in line


@pytest.mark.slow
def test_ctrl_c_in_a_training_is_one_line(config, tmp_path):
    command = [sys.executable, "-P", "-m", "logitstore.common.penumbra", "train", "run", str(config)]
    command += ["--quiet", "--set", "training.max_steps=100000"]
    training = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "run" / "checkpoints").glob("checkpoint-*")):
            assert training.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        training.send_signal(signal.SIGINT)
        _, told = training.communicate(timeout=60)
    finally:
        training.kill()
    assert training.returncode == 130
    assert "Traceback" not in told
    assert "penumbra train: interrupted; the same command goes on" in told


def test_a_second_run_into_the_same_folder_is_refused_while_the_first_is_at_work(config, tmp_path, capsys):
    with only_run(tmp_path / "run"):
        assert main(["run", str(config), "--quiet"]) == 5
    assert f"another process trains into {tmp_path / 'run'}; wait" in capsys.readouterr().err
    assert not list((tmp_path / "run").iterdir())
    with only_run(tmp_path / "run"):
        pass  # the lock ended with the first


def test_dry_run_prints_every_setting(config, capsys):
    assert main(["train", str(config), "--dry-run", "--set", "data.cache_limit=20gb"]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert settings["data"]["cache_limit"] == 20 * 10**9
    assert settings["data"]["stores"][0]["weight"] == 1.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loss.alpha=1.5", "loss.alpha = 1.5"),
        ("output.folder=", "output.folder = '': it names no folder"),
        ("loss.alhpa=0.5", "loss.alhpa is not a setting"),
        ("student.model=x", "give exactly one of student.model"),
        ("student.small.hidden_size=33", "hidden_size=33 must be a multiple of num_heads=2"),
        ("data.cache_limit=many", "'many' is not a size"),
        ("alpha", "must look like section.key=value"),
        ("loss.beta=0.5 loss.divergence=total_variation", "loss: beta=0.5 means nothing to divergence"),
        ("loss.divergence=sampled", "loss.divergence = 'sampled'"),
        ("student.lora.rank=4", "remove student.lora, or start from student.model"),
        ("data.held_out_fraction=0", "leaves nothing to evaluate on; raise it, or give evaluation.stores"),
        ("evaluation.best=kl", "needs evaluation.steps (now None)"),
        ("evaluation.patience=2", "needs evaluation.best"),
        ("training.warmup_steps=3 training.warmup_ratio=0.1", "say the same thing"),
        ("student.small=null", "give exactly one of student.model"),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule(config, override, words, capsys):
    overrides = [word for setting in override.split() for word in ("--set", setting)]
    assert main(["train", str(config), *overrides]) == 2
    assert words in capsys.readouterr().err


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


def test_what_a_killed_start_left_of_its_files_is_removed(config, tmp_path):
    """They would go to the Hub with the student."""
    (tmp_path / "run").mkdir()
    left = [tmp_path / "run" / name for name in (".before.json.0a1b.part", "snapshots.npzq1_w.tmp")]
    for path in left:
        path.write_text("half")
    assert main(["run", str(config), "--quiet", *settings("training.max_steps=1")]) == 0
    assert [path for path in left if path.exists()] == []


@pytest.mark.filterwarnings("ignore:.*are cut off")
def test_an_evaluation_ends_where_the_students_context_does(config, capsys):
    """As the run's own: a student says nonsense beyond it, and the teacher is judged on the same rows."""
    given = settings("student.small.max_positions=10", "training.max_steps=2")
    assert main(["run", str(config), "--json", *given]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert main(["eval", str(config), "--json", *given]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("num_rows", "kl", "cross_entropy", "accuracy"):
        assert found[name] == pytest.approx(trained["after"][name], rel=1e-5), name
    assert found["num_rows"] == found["teacher"]["num_rows"] == trained["teacher"]["num_rows"]
    assert found["teacher"] == trained["teacher"]
