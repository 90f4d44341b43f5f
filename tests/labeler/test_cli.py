"""What the command refuses before anything starts, and what it shows."""

import json
import os
import signal
import subprocess
import sys

import pytest

import logitstore
from labeler.__main__ import main
from labeler.job.driver_lease import acquire
from labeler.prompting.prompts import PromptBuilder
from logitstore.objects.opening import Objects
from tests.killing import run_killed
from tests.labeler.jobs import overrides_for, write_records


@pytest.fixture
def no_ray(monkeypatch):
    """Fails the test if the command gets as far as Ray."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("Ray was started")

    import labeler.on_ray.runtime

    monkeypatch.setattr(labeler.on_ray.runtime, "ray_for", refuse)
    monkeypatch.setenv("PENUMBRA_TRACEBACK", "1")


def run(tmp_path, *overrides, flags=()):
    sets = [part for override in overrides_for(tmp_path, *overrides) for part in ("--set", override)]
    return main(["run", *sets, *flags])


def error_of(capsys):
    return capsys.readouterr().err


@pytest.fixture
def folder(tmp_path):
    write_records(tmp_path / "in.jsonl", 20)
    return tmp_path


@pytest.mark.usefixtures("no_ray")
class TestRefused:
    def test_a_wrong_value(self, folder, capsys):
        assert run(folder, "workers.replicas=none") == 2
        assert "workers.replicas = 'none'" in error_of(capsys)

    def test_an_input_that_is_not_there(self, folder, capsys):
        assert run(folder, f"input.uri='{folder}/missing/*.jsonl'") == 2
        message = error_of(capsys)
        assert "missing/*.jsonl matches no file" in message
        assert "give a path" in message

    def test_a_model_that_is_not_there(self, folder, capsys, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert run(folder, "teacher.engine=vllm", f"teacher.model='{folder}'") == 2
        assert "folder without config.json" in error_of(capsys)

    def test_a_store_in_a_folder_with_other_things(self, folder, capsys):
        assert run(folder, f"output.uri='{folder}'") == 2
        message = error_of(capsys)
        assert "other things in it, such as 'in.jsonl'" in message
        assert "empty folder" in message

    def test_a_store_that_would_lie_in_a_file(self, folder, capsys):
        (folder / "labels").touch()
        assert run(folder, f"output.uri='{folder}/labels'") == 2
        assert "is a file" in error_of(capsys)

    def test_a_store_of_a_files_name(self, folder, capsys):
        assert run(folder, f"output.uri='{folder}/in.jsonl'") == 2
        assert "makes a file of a store" in error_of(capsys)

    def test_more_entries_than_the_vocabulary_has(self, folder, capsys):
        assert run(folder, "labels.top_k=1000") == 2
        assert "above the teacher's vocabulary of 512" in error_of(capsys)

    def test_too_many_bad_records(self, folder, capsys):
        assert run(folder, "input.fields.prompt=q") == 2
        message = error_of(capsys)
        assert "20 of 20 records cannot be labeled" in message
        assert "field 'q' is missing" in message
        rejects = (folder / "store" / "rejects.jsonl").read_text().splitlines()
        assert len(rejects) == 20
        assert json.loads(rejects[4])["line"] == 5

    def test_the_settings_may_be_corrected_as_long_as_nothing_is_labeled(self, folder, capsys):
        assert run(folder, "input.fields.prompt=q") == 2
        with pytest.raises(AssertionError, match="Ray was started"):
            run(folder)

    def test_a_store_that_another_driver_has(self, folder, capsys, monkeypatch):
        monkeypatch.setattr("labeler.job.driver_lease.PROOF_SEC", 0.5)
        lease = acquire(Objects(folder / "store"), 15.0, print)
        try:
            assert run(folder) == 5
        finally:
            lease.release()
        assert "is being labeled by process" in error_of(capsys)

    def test_calibration_without_a_dry_run(self, folder, capsys):
        assert run(folder, flags=["--calibrate", "4"]) == 2
        assert "--dry-run" in error_of(capsys)


@pytest.mark.usefixtures("no_ray")
def test_a_signal_while_planning_stops_the_job_and_keeps_what_is_planned(tmp_path, monkeypatch):
    write_records(tmp_path / "in.jsonl", 40)
    monkeypatch.setattr("labeler.planning.planner.CHECK_EVERY_RECORDS", 16)
    monkeypatch.setattr("labeler.planning.plan.SEGMENT_UNITS", 1)
    real = PromptBuilder.build
    built = []

    def build(self, record_id, record):
        built.append(record_id)
        if len(built) == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, record_id, record)

    monkeypatch.setattr(PromptBuilder, "build", build)
    assert run(tmp_path, flags=["--quiet"]) == 4
    assert built == [str(i) for i in range(16)]
    with pytest.raises(AssertionError, match="Ray was started"):
        run(tmp_path, flags=["--quiet"])
    assert built == [*(str(i) for i in range(16)), *(str(i) for i in range(8, 40))]


@pytest.mark.usefixtures("no_ray")
def test_a_job_killed_at_its_first_write_goes_on_in_its_folder(folder, capsys):
    """All that lies there is the write that it did not finish."""
    store = folder / "store"

    def write(_):
        Objects(store).put("plan.json", b"{}")
        return 0

    assert run_killed(write, [], store, 1)[0] is None
    assert [path.name[:5] for path in store.iterdir()] == [".tmp-"]
    assert run(folder, f"output.uri='{store}'", flags=["--dry-run"]) == 0


@pytest.mark.usefixtures("no_ray")
def test_a_dry_run_shows_settings_and_plan_and_writes_nothing(folder, capsys):
    assert run(folder, flags=["--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["job"]["labels"]["top_k"] == 8
    plan = shown["plan"]
    assert (plan["num_records"], plan["num_planned"], plan["num_units"]) == (20, 20, 3)
    assert plan["estimated_bytes"] > 0
    assert not (folder / "store").exists()


@pytest.mark.usefixtures("no_ray")
def test_a_dry_run_tells_the_plan_in_words(folder, capsys):
    with (folder / "in.jsonl").open("a") as file:
        file.write("not json\n")
    assert run(folder, flags=["--dry-run"]) == 0
    said = capsys.readouterr().out
    assert '"top_k": 8' not in said
    assert "21 records read: 20 in 3 units, 1 rejected (1 invalid_record)" in said
    assert "in.jsonl:21: " in said
    assert run(folder, flags=["--dry-run", "--settings"]) == 0
    assert '"top_k": 8' in capsys.readouterr().out
    assert run(folder, flags=["--settings"]) == 2
    assert "--dry-run" in error_of(capsys)


@pytest.mark.usefixtures("no_ray")
def test_a_dry_run_of_which_nothing_can_be_labeled_fails_as_the_run_would(tmp_path, capsys):
    """One bad record is no share of many, and yet all."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "q", "response": ["a", "b"]}\n')
    settings = ["teacher.engine=fake", f"input.uri='{tmp_path}/in.jsonl'", "input.kind=prompt_response"]
    settings.append(f"output.uri='{tmp_path}/store'")
    arguments = ["run", "--dry-run", *(part for setting in settings for part in ("--set", setting))]
    assert main([*arguments, "--calibrate", "4"]) == 2
    said = capsys.readouterr()
    assert "1 records read: 0 in 0 units, 1 rejected (1 list_of_texts)" in said.out
    assert "in.jsonl:1: field 'response' is a list of 2 texts" in said.out
    assert "nothing to label: " in said.err
    assert "of which 1 are rejected (1 list_of_texts); their reasons are above" in said.err


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("2/4", "input.slice = '2/4' takes no record, as there are at most 2 in input.uri"),
        ("3/4", "other slices have them all. Leave this one's store out of `penumbra store merge`"),
    ],
)
def test_a_slice_without_a_record_is_no_fault_of_the_input(tmp_path, capsys, part, says):
    """As where an array has more tasks than there are records; the input was to be corrected."""
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    settings = ["teacher.engine=fake", f"input.uri='{tmp_path}/in.jsonl'", "input.kind=text"]
    settings += [f"output.uri='{tmp_path}/store'", f"input.slice='{part}'"]
    arguments = ["run", *(argument for setting in settings for argument in ("--set", setting))]
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
    assert main([*arguments, "--dry-run"]) == 2
    assert says in capsys.readouterr().err
    arguments[arguments.index(f"input.slice='{part}'")] = "input.slice='0/4'"
    (tmp_path / "in.jsonl").write_text("")
    assert main([*arguments, "--dry-run"]) == 2
    assert "has 0 records" in capsys.readouterr().err


def test_the_status_of_no_store_is_an_error(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert "no store lies at" in error_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["examples:", "exit status:", "run", "status"]),
        (["run", "--help"], ["--dry-run", "--set", "examples:"]),
        (["status", "--help"], ["--watch", "--json"]),
        (["--version"], [logitstore.__version__]),
    ],
)
def test_help_and_version(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for word in words:
        assert word in shown


def test_help_and_status_load_neither_ray_nor_torch():
    code = (
        "import sys; from labeler.__main__ import main\n"
        "main(['status', '/nowhere/at/all'])\n"
        "print({'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "set()"
