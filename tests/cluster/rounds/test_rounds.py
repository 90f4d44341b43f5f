"""`penumbra cluster rounds`: whole rounds with a real student, interrupted at every step."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.__main__ import main
from cluster.errors import JobRefusedError
from cluster.rounds.config import load_rounds
from cluster.rounds.documents import answer_job, score_job, training_run
from cluster.rounds.ledger import Ledger, only_writer, read_ledger, write_ledger
from cluster.rounds.running import last_student, report_rows, run_rounds, support_rows
from cluster.rounds.steps import StepFailedError, run_command
from logitstore.common.config_file import ConfigError
from logitstore.store import LogitStore
from tests.cluster.rounds.rounds_here import (
    BYTES,
    ROOT,
    DyingCommand,
    here,
    killed,
    label,
    outcome,
    rounds_file,
)
from tests.killing import run_killed


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that can answer, the teacher's own text, and the files of a job and a run."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("begun")
    torch.manual_seed(0)
    sizes = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(sizes).save_pretrained(folder / "student")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "student" / name).write_bytes((BYTES / name).read_bytes())
    prompts = [{"uid": str(i), "prompt": f"question {i}?", "response": f"answer {i}"} for i in range(12)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
    job = f"""
[teacher]
engine = "fake"
[input]
uri = "{folder}/prompts.jsonl"
kind = "KIND"
id = "uid"
[labels]
mode = "MODE"
top_k = 8
[sampling]
max_tokens = 12
seed = 3
[filters]
empty = "keep"
[output]
uri = "{folder}/store"
unit_size = 6
codebook_units = 0
"""
    (folder / "teacher-text.toml").write_text(job.replace("KIND", "prompt_response").replace("MODE", "score"))
    (folder / "job.toml").write_text(job.replace("KIND", "prompt").replace("MODE", "generate"))
    label(str(folder / "teacher-text.toml"))
    (folder / "train.toml").write_text(f"""
[student]
model = "{folder}/student"
[data]
stores = ["{folder}/store"]
held_out_fraction = 0.2
num_splits = 2
[loss]
alpha = 1.0
[training]
max_steps = 4
batch_size = 4
learning_rate = 1e-2
save_steps = 2
[output]
folder = "{folder}/unused"
""")
    return folder


@pytest.fixture(scope="module")
def unbroken(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ledger]:
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run_rounds(*load_rounds(rounds_file(begun, folder)), command=here)


@pytest.mark.slow
def test_two_rounds_label_what_the_student_wrote_and_train_on_it(
    begun: Path, unbroken: tuple[Path, Ledger]
) -> None:
    folder, ledger = unbroken
    assert list(ledger.steps) == [
        *(f"1/{name}" for name in ("answer", "texts", "score", "measure", "train")),
        *(f"2/{name}" for name in ("answer", "texts", "score", "measure", "train")),
        "2/last",
    ]
    assert ledger.ended == "all 2 rounds are done"
    first, second, last = report_rows(ledger)
    assert (first.name, second.name, last.name) == ("round 1", "round 2", "last student")
    assert None not in (first.own_kl, second.own_kl)
    for share in (first.outside, first.own_shared, first.teacher_shared, last.teacher_shared):
        assert 0 < (share or 0) < 1
    assert last.own_kl is last.own_shared is last.outside is None
    # The mass outside the stored entries, as the evaluation has it, is the last of those by K.
    own = ledger.steps["2/measure"]["outside"]["own"]
    by_k = support_rows(ledger)
    assert [k for k, _, _ in by_k] == [1, 2, 4, 8]
    assert own["8"] == pytest.approx(second.outside, abs=1e-4)
    for column in (1, 2):
        masses = [row[column] or 0.0 for row in by_k]
        assert masses == sorted(masses, reverse=True)
    # The figures are those of the student that wrote the text: evaluated again, they are the same.
    own = str(folder / "rounds" / "round-2" / "own.json")
    student = str(folder / "rounds" / "round-1" / "student")
    again = json.loads(here(["trainer", "eval", own, "--model", student, "--json", "--quiet"]))
    assert again["kl"] == pytest.approx(second.own_kl, rel=1e-6)
    assert again["acceptance_at_least"] == pytest.approx(second.own_shared, rel=1e-6)
    assert again["num_sequences"] == 12
    _, documents = load_rounds(rounds_file(begun, folder))
    student = last_student(ledger, documents)
    assert student.endswith("round-2/student")
    weights = {Path(place, "model.safetensors").read_bytes() for place in (student, str(begun / "student"))}
    assert len(weights) == 2
    trained = json.loads(Path(student, "train.json").read_text())
    assert trained["loss"]["beta"] == 0.5
    stores = [store["uri"].split("/")[-2:] for store in trained["data"]["stores"]]
    assert stores[1:] == [["round-1", "scores"], ["round-2", "scores"]]
    # What is scored is what the student wrote, token by token.
    places = folder / "rounds" / "round-2"
    answers = {one.record_id: one for one in LogitStore.open(places / "answers").iter_sequences()}
    scores = list(LogitStore.open(places / "scores").iter_sequences())
    assert len(scores) == len(answers) == 12
    for one in scores:
        assert one.token_ids_T.tolist() == answers[one.record_id].token_ids_T.tolist()
        assert one.label_start == one.prompt_length == answers[one.record_id].prompt_length


@pytest.mark.slow
def test_rounds_killed_at_every_step_end_as_unbroken_ones(
    begun: Path, unbroken: tuple[Path, Ledger], tmp_path: Path
) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    command = DyingCommand(deaths)
    while killed(lambda: run_rounds(*load_rounds(rounds_file(begun, tmp_path)), command=command)):
        assert command.deaths() <= 5 + 2 * 3, "it died twice at the same place"
    assert command.deaths() == 5 + 2 * 3
    ledger = read_ledger(tmp_path / "rounds")
    assert ledger is not None
    mine, theirs = outcome(tmp_path, ledger), outcome(*unbroken)
    assert mine == theirs

    # And again: nothing is left to do.
    def nothing(arguments: Sequence[str]) -> str:
        raise AssertionError(arguments)

    again = run_rounds(*load_rounds(rounds_file(begun, tmp_path)), command=nothing)
    assert again.steps == ledger.steps


@pytest.mark.slow
def test_rounds_killed_at_every_change_end_as_unbroken_ones(
    begun: Path, unbroken: tuple[Path, Ledger], tmp_path: Path
) -> None:
    """At every change of their own: a step puts there what it left in the unbroken ones, or says what it said."""
    theirs, whole = unbroken
    root = tmp_path / "root"

    def step_again(arguments: Sequence[str]) -> str:
        if "--dry-run" in arguments:
            return ""
        package, verb, file = arguments[0], arguments[1], Path(arguments[2])
        number = file.parent.name.removeprefix("round-")
        if verb == "eval":
            student = Path(arguments[arguments.index("--model") + 1]).parent.name
            name = "2/last" if student == "round-2" else f"{number}/measure"
            return json.dumps(whole.steps[name][file.stem])
        made = {"answer": "answers", "score": "scores", "train": "student"}[file.stem]
        place = file.with_name(made)
        if not place.is_symlink():
            place.symlink_to(theirs / "rounds" / f"round-{number}" / made)
        return (
            json.dumps({"num_steps": whole.steps[f"{number}/train"]["steps"]}) if package == "trainer" else ""
        )

    def main_of_rounds(_: Sequence[str]) -> int:
        run_rounds(*load_rounds(rounds_file(begun, root)), command=step_again)
        return 0

    def left() -> dict[str, Any]:
        """All but what holds the folder's name."""
        ledger = read_ledger(root / "rounds")
        assert ledger is not None
        steps = {name: {**step, "digest": "", "student": ""} for name, step in ledger.steps.items()}
        files = {
            str(path.relative_to(root)): path.read_text().replace(str(root), "")
            for path in sorted(root.rglob("*.json*"))
            if path.name != "rounds.json"
        }
        return {**outcome(root, ledger), "steps": steps, "files": files}

    root.mkdir()
    status, num_changes, printed = run_killed(main_of_rounds, [], root, None)
    assert (status, num_changes > 40) == (0, True), printed
    expected = left()
    assert outcome(root, read_ledger(root / "rounds") or whole) == outcome(*unbroken)
    for kill_at in sorted({*np.linspace(0, num_changes - 1, 20).astype(int).tolist()}):
        shutil.rmtree(root)
        root.mkdir()
        assert run_killed(main_of_rounds, [], root, kill_at)[0] is None
        status, _, printed = run_killed(main_of_rounds, [], root, None)
        assert status == 0, f"{kill_at}: {printed}"
        assert left() == expected, kill_at


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "ended", "last"),
    [
        ("kl_below = 1000.0", "at most stop.kl_below", "1/measure"),
        ("gain_below = 0.999", "less than stop.gain_below", "2/measure"),
    ],
)
def test_rounds_stop_by_the_kl_on_own_text(
    begun: Path, unbroken: tuple[Path, Ledger], tmp_path: Path, stop: str, ended: str, last: str
) -> None:
    """Rounds that came as far as `last` without a rule, and go on with one: nothing more is trained."""
    folder, whole = unbroken
    names = list(whole.steps)[: list(whole.steps).index(last) + 1]
    begun_with = whole.settings | {"rounds.folder": f"{tmp_path}/rounds"}
    (tmp_path / "rounds").mkdir()
    for number in ("1", "2"):
        (tmp_path / "rounds" / f"round-{number}").symlink_to(folder / "rounds" / f"round-{number}")
    write_ledger(tmp_path / "rounds", Ledger(begun_with, {name: whole.steps[name] for name in names}))
    seen: list[Sequence[str]] = []

    def evaluate(arguments: Sequence[str]) -> str:
        seen.append(arguments)
        return json.dumps({"kl": 1.0})

    ledger = run_rounds(*load_rounds(rounds_file(begun, tmp_path, count=3, stop=stop)), command=evaluate)
    assert ended in ledger.ended
    assert [name for name in ledger.steps if not name.endswith("/last")] == names
    assert all(arguments[:2] == ["trainer", "eval"] for arguments in seen)


@pytest.mark.slow
def test_other_settings_are_refused_and_more_rounds_are_not(
    begun: Path, unbroken: tuple[Path, Ledger]
) -> None:
    folder, ledger = unbroken
    file, documents = load_rounds(rounds_file(begun, folder, "beta = 1.0"))
    with pytest.raises(JobRefusedError, match=r"rounds\.beta: 0\.5 there, 1\.0 here"):
        run_rounds(file, documents, command=here)
    changed = documents.model_copy(
        update={"train": {**documents.train, "training": {**documents.train["training"], "max_steps": 7}}}
    )
    file, _ = load_rounds(rounds_file(begun, folder))
    with pytest.raises(JobRefusedError, match="max_steps"):
        run_rounds(file, changed, command=here)
    seen: list[Sequence[str]] = []

    def note(arguments: Sequence[str]) -> str:
        seen.append(arguments)
        raise KeyboardInterrupt

    file, documents = load_rounds(rounds_file(begun, folder, count=3))
    with pytest.raises(KeyboardInterrupt):
        run_rounds(file, documents, command=note)
    assert "round-3/answer.json" in seen[0][2]
    assert read_ledger(folder / "rounds") is not None
    assert ledger.steps.keys() <= (read_ledger(folder / "rounds") or ledger).steps.keys()


@pytest.mark.slow
def test_text_of_another_teacher_is_refused(begun: Path, tmp_path: Path) -> None:
    store = LogitStore.open(begun / "store")
    other = replace(store.manifest, teacher=replace(store.manifest.teacher, fingerprint="fake:other"))
    foreign = LogitStore.create(tmp_path / "foreign", other)
    foreign.commit_unit("unit", 0, list(store.iter_sequences()), seconds=0.0, worker="test")
    file, documents = load_rounds(rounds_file(begun, tmp_path))
    stores = {**documents.train, "data": {**documents.train["data"], "stores": [foreign.uri]}}
    with pytest.raises(JobRefusedError, match="one teacher labels all text"):
        run_rounds(file, documents.model_copy(update={"train": stores}), command=here)


def test_two_processes_do_not_work_at_the_same_rounds(tmp_path: Path) -> None:
    with (
        only_writer(tmp_path),
        pytest.raises(JobRefusedError, match="another process"),
        only_writer(tmp_path),
    ):
        pass


def test_a_step_dies_with_its_rounds() -> None:
    code = (
        "from cluster.rounds.steps import run_command\n"
        "run_command(['timeit', '-n', '1', '-r', '1', 'import time; print(\"up\", flush=True); time.sleep(600)'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    (child,) = found
    while b"timeit" not in Path(f"/proc/{child}/cmdline").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while Path(f"/proc/{child}/cmdline").exists() and time.monotonic() < deadline:
        if not Path(f"/proc/{child}/cmdline").read_bytes():
            return  # a zombie that init will reap
        time.sleep(0.05)
    assert not Path(f"/proc/{child}/cmdline").exists()


def test_a_command_that_fails_is_named() -> None:
    with pytest.raises(StepFailedError, match=r"json\.tool nowhere` ended with status"):
        run_command(["json.tool", "nowhere"])


def test_files_that_do_not_fit_are_refused(begun: Path, tmp_path: Path) -> None:
    path = tmp_path / "rounds.toml"
    base = f'[rounds]\nfolder = "x"\njob = "{begun}/job.toml"\n'
    path.write_text(base + 'train = "train.toml"\ncounts = 2\n')
    with pytest.raises(ConfigError, match=r"rounds\.counts is not a setting; did you mean rounds\.count"):
        load_rounds(str(path))
    path.write_text(base + 'train = "train.toml"\n')
    for student, rule in (
        ("[student.small]\n", "can answer"),
        ('[student]\nmodel = "m"\n[student.lora]\n', "merge"),
    ):
        (tmp_path / "train.toml").write_text(student)
        with pytest.raises(ConfigError, match=rule):
            load_rounds(str(path))


def test_documents_of_the_steps(begun: Path, tmp_path: Path) -> None:
    more = ('answer_set = ["teacher.dtype=float32"]', "own_weight = 2.0")
    file, documents = load_rounds(rounds_file(begun, tmp_path, *more))
    job = answer_job(documents, file.rounds, student="s", seed_step=2, out="o")
    assert job["teacher"] == {"engine": "fake", "model": "s", "dtype": "float32"}
    assert (job["sampling"]["seed"], job["labels"]["top_k"], job["output"]["uri"]) == (5, 1, "o")
    scores = score_job(documents, file.rounds, answers="a.jsonl", out="o", own_prompts=False)
    assert scores["labels"] == {"mode": "score", "positions": "response", "top_k": 8}
    assert scores["teacher"] == {"engine": "fake"}
    run = training_run(documents, file.rounds, student="s", scores=["x"], out="o")
    assert run["data"]["stores"][-1] == {"uri": "x", "weight": 2.0}
    assert run["student"]["tokenizer"] == documents.train["student"]["model"]


@pytest.mark.slow
def test_the_command_prints_the_report(
    begun: Path, unbroken: tuple[Path, Ledger], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, ledger = unbroken
    path = rounds_file(begun, folder)
    assert main(["rounds", path]) == 0
    said = capsys.readouterr().out
    assert f"{ledger.steps['1/measure']['own']['kl']:.4f}" in said
    assert "ended: all 2 rounds are done" in said
    assert main(["rounds", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["student"].endswith("round-2/student")
