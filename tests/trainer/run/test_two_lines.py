"""A student from a model and a store alone, without a file; what was found is said and can be set."""

import json
import shutil

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import files_in, put_tokenizer
from tests.trainer.stores import make_store
from tests.trainer.students import tiny_student
from trainer.__main__ import main
from trainer.run.found import LEARNING_RATE

VOCABULARY = {f"t{index}": index for index in range(64)}


@pytest.fixture
def places(tmp_path):
    """The three options of the command: a tiny student with its tokenizer, 60 sequences, a folder."""
    model = WordLevel(VOCABULARY, unk_token="t0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="t1", unk_token="t0")
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_student().save_pretrained(tmp_path / "model")
    make_store(
        tmp_path / "store", (20, 20, 20), fingerprint=tokenizer_fingerprint(VOCABULARY), tokenizer_size=64
    )
    return ["--student", f"{tmp_path}/model", "--labels", f"{tmp_path}/store", "--out", f"{tmp_path}/run"]


@pytest.mark.slow
def test_a_student_without_a_file(places, tmp_path, capsys):
    steps = ["--set", "training.max_steps=3", "--set", "training.tensorboard=false"]
    assert main(["run", *places, *steps]) == 0
    out, err = capsys.readouterr()
    assert "60 sequences; data.held_out_fraction = 0.333, about 20 to evaluate on" in err
    assert "assumed: training.learning_rate = 5e-05" in err
    assert err.count("advice: ") == err.count("note: no checkpoints are saved") == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["teacher"]["num_rows"] == metrics["after"]["num_rows"]
    share = (metrics["before"]["kl"] - metrics["after"]["kl"]) / metrics["before"]["kl"]
    (line,) = (text for text in out.splitlines() if text.strip().startswith("KL(teacher, student)"))
    assert line.split()[-2:] == ["0.0000", f"{share:.0%}"]
    settings = json.loads((tmp_path / "run" / "train.json").read_text())
    assert settings["training"]["learning_rate"] == LEARNING_RATE
    assert settings["data"]["held_out_fraction"] == 0.333
    next_command = out.strip().splitlines()[-1].partition("penumbra train ")[2].split()
    assert main([*next_command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kl"] == pytest.approx(metrics["after"]["kl"], rel=1e-4)
    assert found["teacher"] == metrics["teacher"]
    assert found["calibration"]["teacher"] == metrics["calibration"]["teacher"]


@pytest.mark.slow
def test_the_teacher_stands_beside_the_student_wherever_figures_are(places, tmp_path, capsys):
    steps = ["--set", "training.max_steps=1", "--set", "training.tensorboard=false", "--quiet"]
    assert main(["run", *places, *steps]) == 0
    told = capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for name in ("cross_entropy", "accuracy", "calibration_error"):
        row = f"| {metrics['after'][name]:.4f} | {metrics['teacher'][name]:.4f} |"
        assert row in (tmp_path / "run" / "README.md").read_text()
    student = metrics["calibration"]["student"]
    assert student["calibration_error_before"] == pytest.approx(
        metrics["after"]["calibration_error"], abs=1e-5
    )
    assert student["cross_entropy"] <= metrics["after"]["cross_entropy"] + 1e-6
    assert f"divided by {student['temperature']:.2f}" in told
    assert (tmp_path / "run" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    picture = tmp_path / "pictures" / "reliability.svg"
    assert main(["eval", f"{tmp_path}/run/train.json", "--picture", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (text for text in lines if text.strip().startswith("expected calibration error"))
    known = (metrics["after"]["calibration_error"], metrics["teacher"]["calibration_error"])
    assert line.split()[-2:] == [f"{value:.4f}" for value in known]
    assert "<svg" in picture.read_text()
    with pytest.raises(SystemExit):
        main(["eval", f"{tmp_path}/run/train.json", "--picture", "reliability.pdf"])
    assert "must end in .png or .svg" in capsys.readouterr().err


@pytest.mark.slow
def test_the_tokenizer_comes_from_the_store(places, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    size = [f"student.small.{name}=8" for name in ("hidden_size", "intermediate_size")]
    small = [word for name in [*size, "student.small.num_layers=1", "student.small.num_heads=1"]
             for word in ("--set", name)]  # fmt: skip
    steps = ["--set", "training.max_steps=1", "--set", "training.tensorboard=false", "--quiet"]
    assert main(["run", *places[2:], *small, *steps]) == 2
    assert "the store keeps none; set student.tokenizer" in capsys.readouterr().err
    put_tokenizer(LogitStore.open(tmp_path / "store").objects, files_in(tmp_path / "model"))
    shutil.rmtree(tmp_path / "model")
    assert main(["run", *places[2:], *small, *steps]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "run").get_vocab() == VOCABULARY
    assert json.loads((tmp_path / "run" / "train.json").read_text())["student"]["tokenizer"] is None


def test_what_is_set_is_not_found_and_a_file_is_left_as_it_is(places, tmp_path, capsys):
    given = ["--set", "data.held_out_fraction=0.1", "--set", "training.learning_rate=1e-3"]
    assert main(["run", *places, *given, "--set", "training.precision=fp32", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert err.strip() == ""
    settings = json.loads(out)
    assert (settings["data"]["held_out_fraction"], settings["training"]["learning_rate"]) == (0.1, 1e-3)
    (tmp_path / "train.toml").write_text('[output]\nfolder = "of the file"\n')
    assert main(["run", str(tmp_path / "train.toml"), *places, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert (err, json.loads(out)["output"]["folder"]) == ("", f"{tmp_path}/run")
    assert json.loads(out)["training"]["learning_rate"] == 5e-4


def test_what_is_missing_is_told_before_a_store_is_opened(capsys):
    assert main(["run", "--labels", "nowhere"]) == 2
    assert "student is missing" in capsys.readouterr().err
