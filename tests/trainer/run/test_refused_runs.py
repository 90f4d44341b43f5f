"""What a training run refuses, in one line, before it trains; and what a run at work or a killed one leaves to the next."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.trainer.run.conftest import settings
from tests.trainer.stores import make_store
from trainer.__main__ import main
from trainer.run.only_run import only_run


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
    assert main(["eval", str(config)]) == 0
    assert "has not finished, so the student there is of an earlier one" in capsys.readouterr().err
    (tmp_path / "run" / "train.json").unlink()
    assert run() == 2
    assert "holds a model, and no train.json says that this command made it" in capsys.readouterr().err
    assert student.read_bytes() == weights
    assert run("--restart", "--set", "training.seed=5") == 0
    assert student.read_bytes() != weights


@pytest.mark.slow
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
    assert f"another process writes into {tmp_path / 'run'}; wait" in capsys.readouterr().err
    assert not list((tmp_path / "run").iterdir())
    with only_run(tmp_path / "run"):
        pass  # the lock ended with the first


@pytest.mark.parametrize("place", ["store", "store/student"])
@pytest.mark.parametrize(
    "command", [["run"], ["sweep", "--over", "training.seed=1,2"]], ids=lambda words: words[0]
)
def test_a_student_is_not_written_into_a_store(command, place, config, tmp_path, capsys):
    """It lay between the shards, and its model card over what a published store says of itself."""
    before = set((tmp_path / "store").rglob("*"))
    sets = ["--set", f"output.folder={tmp_path / place}"]
    assert main([command[0], str(config), *command[1:], *sets, "--quiet"]) == 2
    assert "a store of labels, whose folder holds nothing else" in capsys.readouterr().err
    assert set((tmp_path / "store").rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ('data.stores=[{uri="a",weight=1e300}]', "weight 1e+300 of a must lie in 0..10,000"),
        ("loss.alpha=1.5", "loss.alpha = 1.5"),
        ("output.folder=", "output.folder = '': it names no folder"),
        ("loss.alhpa=0.5", "loss.alhpa is not a setting"),
        ("student.model=x", "give exactly one of student.model"),
        ("student.small.hidden_size=33", "hidden_size=33 must be a multiple of num_heads=2"),
        ("data.cache_limit=many", "'many' is not a size"),
        ("data.cache_limit=1.5", "data.cache_limit = 1.5: 1.5 is not a size"),
        ("data.cache_limit=[1]", "data.cache_limit = [1]: [1] is not a size"),
        (f"data.cache_limit={'9' * 400}gb", "data: cache_limit has 1359 bits"),
        ("loss.preset=['hinton']", "loss.preset = ['hinton']: "),
        ("alpha", "must look like section.key=value"),
        ("loss.beta=0.5 loss.divergence=total_variation", "loss: beta=0.5 means nothing to divergence"),
        ("loss.divergence=sampled", "loss.divergence = 'sampled'"),
        ("student.lora.rank=4", "remove student.lora, or start from student.model"),
        ("data.held_out_fraction=0", "leaves nothing to evaluate on; raise it, or give evaluation.stores"),
        ("evaluation.best=kl", "needs evaluation.steps (now None)"),
        ("evaluation.patience=2", "needs evaluation.best"),
        ("training.warmup_steps=3 training.warmup_ratio=0.1", "say the same thing"),
        ("student.small=null", "give exactly one of student.model"),
        ("training.report_to=wandb", "'wandb': it should be a list; ['wandb'] is one of it alone"),
        ("student.small=3", "student.small = 3: it should be a table"),
        ("training.schedule_args=3", "training.schedule_args = 3: it should be a table"),
        ("training.fsdp={}", "shards the student among processes, and this is one alone; start several by"),
        ("training.seed=-1", "training.seed = -1: Input should be greater than or equal to 0"),
        (f"training.seed={10**23}", f"training.seed = {10**23}: Input should be less than 4294967296"),
        ("data.texts=some.jsonl", "data.texts = 'some.jsonl': it should be a list"),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule(config, override, words, capsys):
    overrides = [word for setting in override.split() for word in ("--set", setting)]
    assert main(["train", str(config), *overrides]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_killed_start_left_of_its_files_is_removed(config, tmp_path):
    """They would go to the Hub with the student."""
    (tmp_path / "run").mkdir()
    left = [tmp_path / "run" / name for name in (".before.json.0a1b2c3d.part", "snapshots.npzq1_w.tmp")]
    for path in left:
        path.write_text("half")
    assert main(["run", str(config), "--quiet", *settings("training.max_steps=1")]) == 0
    assert [path for path in left if path.exists()] == []


@pytest.mark.parametrize("command", [["run"], ["sweep", "--over", "loss.alpha=0.5,1"]])
def test_a_wrong_name_is_told_before_torch_is_imported(command, tmp_path):
    """torch and transformers take seconds, and most of a minute on a busy machine."""
    make_store(tmp_path / "store")
    words = [*command, "--student", "./nowhere", "--labels", f"{tmp_path}/store", "--out", f"{tmp_path}/out"]
    code = f"import sys; from trainer.__main__ import main; print(main({words}), 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert "student.model = './nowhere' is no folder here; correct the path" in done.stderr
    assert done.stdout == "2 False\n"


def test_a_disk_without_room_for_the_student_is_refused_before_it_is_evaluated(config, capsys, monkeypatch):
    """No checkpoint is asked for, so that the end would have been the first save."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    given = settings("training.save_steps=null", "training.max_steps=1")
    assert main(["run", str(config), "--quiet", *given]) == 2
    said = capsys.readouterr().err
    assert "the student at the end 49.5 kB, and" in said
    assert "has 10.0 kB free: the student has no room; make room, or choose another output_dir" in said
    assert not (config.parent / "run" / "before.json").exists()


@pytest.mark.slow
def test_what_a_restart_removes_is_room(config, tmp_path, capsys, monkeypatch):
    """A run that had filled its disk could not be begun anew there."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    old = tmp_path / "run" / "checkpoints" / "checkpoint-50" / "optimizer.pt"
    old.parent.mkdir(parents=True)
    given = settings("training.save_steps=null", "training.max_steps=1", "evaluation.before=false")
    for num_bytes, status in ((35_000, 2), (45_000, 0)):
        old.write_bytes(b"0" * num_bytes)
        assert main(["run", str(config), "--quiet", "--restart", *given]) == status
        assert ("has 45.0 kB free without what is removed" in capsys.readouterr().err) == bool(status)
