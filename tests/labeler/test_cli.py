"""What the command refuses before anything starts, and what it shows."""

import json
import os
import signal
import subprocess
import sys

import pytest

import logitstore
from labeler.__main__ import main
from labeler.config.found import gpus_here
from labeler.job.driver_lease import acquire
from labeler.prompting.prompts import PromptBuilder
from logitstore.objects.opening import Objects
from tests.killing import run_killed
from tests.labeler import engines
from tests.labeler.jobs import overrides_for, write_records
from tests.labeler.planning.templates import TEMPLATES


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


def test_the_dry_run_shows_what_the_teacher_will_see(tmp_path, capsys):
    lines = [json.dumps({"prompt": f"question {i % 2}"}) for i in range(3)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    settings = ["teacher.engine=fake", f"input.uri='{tmp_path}/in.jsonl'", "input.kind=prompt"]
    settings += ["labels.mode=generate", f"output.uri='{tmp_path}/store'", 'sampling.stop=["\\n\\n"]']
    arguments = ["run", "--dry-run", *(part for setting in settings for part in ("--set", setting))]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert r"given:    '<|start|>user\nquestion 0<|end|>\n<|start|>assistant\n'" in output
    assert "labels from token" in output
    assert r"responses end at '<|end|>' 257 (tokenizer), the text '\n\n'" in output
    assert "1 records without ids equal earlier ones" in output
    assert "3 records read: 3 in 1 units, 0 rejected" in output


def test_the_dry_run_shows_what_the_student_sees_in_place_of_it(tmp_path, capsys):
    record = {"prompt": "long question", "student": "short", "response": "answer"}
    (tmp_path / "in.jsonl").write_text(json.dumps(record))
    settings = ["teacher.engine=fake", f"input.uri='{tmp_path}/in.jsonl'", "input.kind=prompt_response"]
    settings += ["input.fields.student_prompt=student", f"output.uri='{tmp_path}/store'"]
    arguments = ["run", "--dry-run", *(part for setting in settings for part in ("--set", setting))]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "long question" in output.split("  given:")[1].splitlines()[0]
    shown = output.split("  student:  ")[1].splitlines()[0]
    assert "short" in shown
    assert shown.endswith("tokens)")


def test_the_dry_run_tells_of_fields_that_nothing_reads(tmp_path, capsys):
    """Alpaca's `input` is part of the question, and was left out without a word where it was not named."""
    record = {"instruction": "Add.", "input": "2 2", "output": "4", "source": None, "meta": {"uid": 1}}
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    settings = ["teacher.engine=fake", f"input.uri='{tmp_path}/in.jsonl'", "input.kind=prompt_response"]
    settings += ["input.fields={prompt='instruction', response='output'}", "input.id=meta.uid"]
    settings.append(f"output.uri='{tmp_path}/store'")
    arguments = ["run", "--dry-run", *(part for setting in settings for part in ("--set", setting))]
    assert main(arguments) == 0
    assert "fields of the records that are not read: input\n" in capsys.readouterr().out
    assert main([*arguments, "--set", "input.fields.context=input"]) == 0
    assert "not read" not in capsys.readouterr().out


def test_the_dry_run_shows_segments_with_their_border_ids_and_lengths(tmp_path, capsys):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ab"}]
    long = [chat[0], {"role": "assistant", "content": "b" * 100}]
    records = [{"messages": messages} for messages in (chat, chat, long)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = ["teacher.engine=fake", f"input.uri='{tmp_path}/in.jsonl'", "input.kind=messages"]
    settings.append(f"output.uri='{tmp_path}/store'")
    arguments = ["run", "--dry-run", *(part for setting in settings for part in ("--set", setting))]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "  context   tokens 0 to 19, ids 256 .. 10: '<|start|>user" in text
    assert "  answer    tokens 20 to 21, ids 97 .. 98: 'ab'" in text
    assert "  end       tokens 22 to 22, ids 257: '<|end|>'" in text
    assert "responses end at '<|end|>' 257 (tokenizer)" in text
    assert "segments: no reasoning and no calls of tools" in text
    lines = [line.split() for line in text.splitlines() if " to " in line and "#" in line]
    assert [line[:4] for line in lines] == [["17", "to", "32", "2"], ["65", "to", "128", "1"]]
    assert [len(line[4]) for line in lines] == [40, 20]
    assert main([*arguments, "--set", "labels.segments=false"]) == 0
    text = capsys.readouterr().out
    assert "segments: none are kept (labels.segments = false)" in text
    assert "colours:" not in text


@pytest.mark.slow
@engines.needs_model
def test_the_dry_run_says_what_it_leaves_out_of_the_models_own_sampling_and_of_the_clock(tmp_path, capsys):
    model = tmp_path / "teacher"
    model.mkdir()
    for path in engines.MODEL.iterdir():
        if path.name != "generation_config.json":
            (model / path.name).symlink_to(path.resolve())
    own = {"temperature": 0.6, "top_p": 1.0, "top_k": 20, "do_sample": True}
    own |= {"presence_penalty": 1.5, "max_new_tokens": 2048, "min_new_tokens": None}
    (model / "generation_config.json").write_text(json.dumps(own))
    (tmp_path / "dated.jinja").write_text(TEMPLATES["dated"])
    (tmp_path / "in.jsonl").write_text('{"prompt": "q"}\n')
    settings = [f"teacher.model='{model}'", f"input.uri='{tmp_path}/in.jsonl'", "input.kind=prompt"]
    settings += ["labels.mode=generate", f"output.uri='{tmp_path}/store'", "sampling.top_k=20"]
    settings.append(f"input.chat_template='{tmp_path}/dated.jinja'")
    arguments = ["run", "--dry-run", *(part for setting in settings for part in ("--set", setting))]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    advice = (
        "temperature = 0.6 (sampling.temperature = 1), presence_penalty = 1.5 (sampling.presence_penalty "
    )
    advice += "= 0), max_new_tokens = 2048 (sampling.max_tokens = 512)\n"
    assert f"generation_config.json is not used: {advice}" in said
    assert "WARNING: the chat template reads the clock" in said
    dated = ("--set", "input.chat_template_kwargs={date_string='1 Jan 2026'}")
    followed = ("temperature=0.6", "presence_penalty=1.5", "max_tokens=2048")
    sets = [part for setting in followed for part in ("--set", f"sampling.{setting}")]
    assert main([*arguments, *dated, *sets]) == 0
    said = capsys.readouterr().out
    assert "not used" not in said
    assert "the clock" not in said
    assert "Today is 1 Jan 2026" in said


@engines.needs_model
def test_the_dry_run_counts_the_records_that_took_another_way_in_the_whole_input(tmp_path, capsys):
    """A response that begins in the middle of a token is tokenised apart."""
    words = [{"prompt": "ab", "response": "out"}] * 25 + [{"prompt": "one", "response": " two"}] * 5
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in words))
    settings = [f"teacher.model='{engines.MODEL}'", f"input.uri='{tmp_path}/in.jsonl'"]
    settings += ["input.kind=prompt_response", "input.chat_template=false", f"output.uri='{tmp_path}/store'"]
    arguments = ["run", "--dry-run", *(part for setting in settings for part in ("--set", setting))]
    assert main(arguments) == 0
    assert "25 records were tokenised apart at the border of prompt and response" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "flags", "coloured"),
    [
        ({"TERM": "xterm"}, [], True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, [], False),
        ({"TERM": "dumb"}, [], False),
        ({"TERM": "xterm"}, ["--json"], False),
    ],
)
def test_the_dry_run_colours_segments_on_a_terminal_alone(
    tmp_path, monkeypatch, environment, flags, coloured
):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a\x1bb"}]
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    settings = ["teacher.engine=fake", f"input.uri='{tmp_path}/in.jsonl'", "input.kind=messages"]
    settings.append(f"output.uri='{tmp_path}/store'")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ours, theirs = os.openpty()
    arguments = ["run", "--dry-run", *flags, *(part for one in settings for part in ("--set", one))]
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        assert main(arguments) == 0
        terminal.flush()
        text = os.read(ours, 65536).decode()
    os.close(ours)
    assert ("\x1b[32m'a\\x1bb'\x1b[0m" in text) == coloured
    assert ("colours: \x1b[2mcontext\x1b[0m, \x1b[35mreasoning\x1b[0m" in text) == coloured
    assert ("\x1b" in text) == coloured


@engines.needs_model
@pytest.mark.parametrize(
    ("gpus", "words"), [(0, "rounded to the dtype"), (1, "float32 sums of the half-prec")]
)
def test_the_dry_run_says_how_the_logits_are_computed(tmp_path, capsys, gpus, words):
    (tmp_path / "in.jsonl").write_text('{"text": "The moon pulls at the water."}')
    settings = [f"teacher.model='{engines.MODEL}'", "teacher.dtype=bfloat16", f"workers.gpus={gpus}"]
    settings += [f"input.uri='{tmp_path}/in.jsonl'", "input.kind=text", f"output.uri='{tmp_path}/store'"]
    arguments = ["run", "--dry-run", *(part for setting in settings for part in ("--set", setting))]
    assert main(arguments) == (0 if gpus_here() >= gpus else 2)
    out, err = capsys.readouterr()
    assert f"logits: {words}" in out
    assert ("workers.gpus = 1, but none of 1 nodes have that" in err) == (gpus_here() < gpus)
