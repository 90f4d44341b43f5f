"""What a run is evaluated on, and which of its checkpoints is kept."""

import json
import shutil

import pytest

from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.store import LogitStore
from tests.trainer.run.conftest import VOCABULARY, settings
from tests.trainer.stores import make_store
from trainer.__main__ import main
from trainer.batch.collate import DistillationCollator
from trainer.hf.evaluation.evaluate import evaluation_batches
from trainer.run.config import load_config
from trainer.run.reading.datasets import collate_settings, datasets
from trainer.run.student import load_tokenizer


@pytest.mark.slow
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


def test_runs_of_any_seed_are_judged_by_the_same_records(config):
    evaluated, trained = [], []
    for seed in (0, 3):
        run = load_config(str(config), [f"data.seed={seed}"])
        tokenizer = load_tokenizer(run.student, run.data.stores)
        train_set, held_out = datasets(run, tokenizer)
        collator = DistillationCollator(collate_settings(run, tokenizer))
        (batch,) = evaluation_batches(held_out, collator, max_sequences=run.evaluation.batch_size)
        evaluated.append(batch["input_ids"].tolist())
        trained.append(next(iter(train_set)).sequence.record_id)
    assert held_out.num_sequences > run.evaluation.batch_size
    assert evaluated[0] == evaluated[1]
    assert trained[0] != trained[1]


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
@pytest.mark.filterwarnings("ignore:.*are cut off")
def test_an_evaluation_ends_where_the_students_context_does(config, capsys):
    """As the run's own, in its precision: a student says nonsense beyond it, and the teacher is judged on the
    same rows."""
    given = settings("student.small.max_positions=10", "training.max_steps=2", "training.precision=bf16")
    assert main(["run", str(config), "--json", *given]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert main(["eval", str(config), "--json", *given]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("num_rows", "kl", "cross_entropy", "accuracy"):
        assert found[name] == pytest.approx(trained["after"][name], rel=1e-5), name
    assert found["num_rows"] == found["teacher"]["num_rows"] == trained["teacher"]["num_rows"]
    assert found["teacher"] == trained["teacher"]
