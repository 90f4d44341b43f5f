"""Settings of a run that reach far: trackers, compiling, several processes, answers, text with bad records."""

import json
import os
import re
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM

from tests.trainer.hf.large.processes import deepspeed_environment, run_command
from tests.trainer.run.conftest import settings
from trainer.__main__ import main
from trainer.run import packages

pytestmark = pytest.mark.slow
SHORT = ("training.max_steps=4", "training.save_steps=2", "evaluation.before=false")


def test_a_tracker_gets_the_figures_and_needs_no_network(config, tmp_path, capsys, monkeypatch):
    """W&B, offline: its file of the run has the names and values of what was logged."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    given = settings(*SHORT, 'training.report_to=["wandb"]', "training.run_name=a-name", "evaluation.steps=2")
    assert main(["run", str(config), "--json", *given]) == 0
    metrics = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert metrics["num_steps"] == 4
    import wandb

    wandb.teardown()  # finish() returns before the file is written; this waits for the process that writes it
    (run,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    written = run.read_bytes()
    for name in (b"train/distillation", b"train/cross_entropy", b"eval/kl", b"a-name"):
        assert name in written
    assert f"{metrics['history'][-1]['distillation']}".encode() in written


def test_a_tracker_that_is_not_installed_is_named(config, capsys):
    assert main(["run", str(config), "--quiet", *settings(*SHORT, 'training.report_to=["trackio"]')]) == 2
    assert "training.report_to = 'trackio' needs the package trackio" in capsys.readouterr().err


def test_the_package_that_saves_integers_is_asked_for_before_training(config, tmp_path, capsys, monkeypatch):
    """Its absence was found when the student was to be saved."""
    found = packages.find_spec
    monkeypatch.setattr(
        packages, "find_spec", lambda name: None if name == "compressed_tensors" else found(name)
    )
    assert main(["run", str(config), "--quiet", *settings(*SHORT, "student.quantize=int8")]) == 2
    assert "student.quantize = 'int8' needs the package compressed-tensors" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.timeout(300)
def test_a_compiled_student_learns_the_same(config, tmp_path, capsys):
    assert main(["run", str(config), "--json", *settings(*SHORT)]) == 0
    plain = json.loads(capsys.readouterr().out)
    compiled = settings(*SHORT, "training.compile=true", f"output.folder={tmp_path / 'compiled'}")
    assert main(["run", str(config), "--json", *compiled]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["after"]["kl"] == pytest.approx(plain["after"]["kl"], rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.fsdp={}", "fsdp"),
        (
            "training.deepspeed={zero_optimization = {stage = 2}}",
            "training.deepspeed needs the package deepspeed",
        ),
    ],
)
def test_sharding_that_cannot_be_is_refused_in_words(config, tmp_path, capsys, setting, words):
    assert main(["run", str(config), "--quiet", *settings(*SHORT, setting)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_answers_to_held_out_prompts_are_in_the_log(config, tmp_path, capsys):
    given = settings(*SHORT, "evaluation.steps=2", "evaluation.samples=2", "evaluation.sample_tokens=5")
    assert main(["run", str(config), *given]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 0, 2, 2, 4, 4]
    first, second = lines[0]["record_id"], lines[1]["record_id"]
    assert [line["record_id"] for line in lines] == [first, second] * 3
    assert all(0 < len(line["answer"].split()) <= 5 for line in lines)
    assert lines[0]["answer"] != lines[4]["answer"]
    said = capsys.readouterr().err
    assert f"step 4, answer to {second}: {lines[5]['answer']!r}" in said
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    texts = events.Tensors(f"answer to {first}/text_summary")
    assert [event.step for event in texts] == [0, 2, 4]
    assert lines[4]["answer"].encode() in texts[-1].tensor_proto.string_val[0]


def test_bad_records_of_a_text_are_refused_or_dropped_and_counted(config, tmp_path, capsys):
    records = [{"text": "t2 t3 t4"}, {"other": "t2"}, {"text": "t5 t6 t7"}]
    lines = [*(json.dumps(record) for record in records), "{broken"]
    (tmp_path / "text.jsonl").write_text("\n".join(lines) + "\n")
    text = f'uri = "{tmp_path / "text.jsonl"}", kind = "text"'
    assert main(["run", str(config), "--quiet", *settings(*SHORT, f"data.texts=[{{{text}}}]")]) == 2
    assert "text.jsonl record 2" in capsys.readouterr().err
    given = settings(*SHORT, f'data.texts=[{{{text}, bad_records = "drop"}}]')
    assert main(["run", str(config), "--json", *given]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"2 records of .*text.jsonl are left out.*record 2", err)
    metrics = json.loads(out)
    assert metrics["stores"][-1]["num_sequences"] == 2
    (tmp_path / "text.jsonl").write_text("{broken\n")
    anew = settings(
        *SHORT, f'data.texts=[{{{text}, bad_records = "drop"}}]', f"output.folder={tmp_path / 'b'}"
    )
    assert main(["run", str(config), "--quiet", *anew]) == 2
    assert "no record of" in capsys.readouterr().err


ZERO_2 = """training.deepspeed={zero_optimization = {stage = 2}, train_micro_batch_size_per_gpu = "auto",
gradient_accumulation_steps = "auto", gradient_clipping = "auto", zero_force_ds_cpu_optimizer = false}"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("way", "sharding"),
    [("ddp", []), ("fsdp", ["training.fsdp={}"]), ("deepspeed", [ZERO_2.replace("\n", " ")])],
)
def test_two_processes_print_one_log_whose_rows_add_up(config, tmp_path, capsys, way, sharding):
    """Started as torchrun starts them, and one process with the batch of both."""
    common = (
        "training.max_steps=3",
        "training.logging_steps=1",
        "training.optimizer=adamw_torch",
        "evaluation.before=false",
    )
    assert main(["run", str(config), "--json", *settings(*common, "training.batch_size=4")]) == 0
    expected = json.loads(capsys.readouterr().out)
    given = settings(*common, "training.batch_size=2", f"output.folder={tmp_path / 'two'}", *sharding)
    command = [sys.executable, "-m", "tests.trainer.hf.large.command", way, "run", str(config), *given]
    environment = deepspeed_environment() if way == "deepspeed" else {}
    outputs = run_command(command, environment=environment)
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    for name in ("num_rows", "loss", "distillation", "cross_entropy"):
        ours = [entry[name] for entry in metrics["history"]]
        assert ours == pytest.approx([entry[name] for entry in expected["history"]], rel=2e-3), name
    assert metrics["after"]["kl"] == pytest.approx(expected["after"]["kl"], rel=2e-3)
    said = "".join(outputs)
    assert [said.count(f"step {step}/3:") for step in (1, 2, 3)] == [1, 1, 1]
    assert said.count("student saved in") == 1
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert student.config.vocab_size == 64


def test_a_tracker_that_is_not_set_up_is_named(config, tmp_path):
    """W&B without a key, and nobody to ask for one; in a process of its own, as W&B remembers its mode."""
    pytest.importorskip("wandb")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_DIR": str(tmp_path)}
    given = ["run", str(config), "--quiet", *settings(*SHORT, 'training.report_to=["wandb"]')]
    ended = subprocess.run(
        [sys.executable, "-m", "trainer", *given],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert ended.returncode == 2
    assert "training.report_to = 'wandb': " in ended.stderr
    assert "WANDB_MODE=offline" in ended.stderr
    assert "Traceback" not in ended.stderr
