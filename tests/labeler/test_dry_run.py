"""What a dry run shows: what the teacher and the student will see, and what is done to it."""

import json
import os

import pytest

from labeler.__main__ import main
from labeler.config.found import gpus_here
from labeler.config.loading import load_job
from labeler.driver.plan_pass import PlanPass
from labeler.job.logs import JobLog
from labeler.job.status import Tally
from labeler.planning.plan import Plan
from labeler.planning.preflight import prepare
from logitstore.store import LogitStore
from tests.labeler import engines
from tests.labeler.jobs import overrides_for, write_records
from tests.labeler.planning.templates import TEMPLATES
from tests.logitstore.random_labels import make_manifest


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


def test_the_dry_run_of_a_job_that_goes_on_says_what_is_new_and_what_is_refused(tmp_path, capsys):
    """It counted the records of the earlier plan as read, and passed settings that the run refuses."""
    write_records(tmp_path / "in.jsonl", 20)
    mine = load_job(None, overrides_for(tmp_path), {})
    prepared, tally = prepare(mine), Tally()
    nothing = JobLog(None), lambda _: None, lambda _: None
    PlanPass(mine, prepared, Plan(prepared.objects), tally, *nothing, relabel_changed=False).make()
    write_records(tmp_path / "in.jsonl", 10, start=20)

    def tried(*more):
        given = [word for one in overrides_for(tmp_path, *more) for word in ("--set", one)]
        return main(["run", "--dry-run", *given])

    # While nothing is labeled a run throws the plan away.
    assert tried("labels.top_k=16") == 0
    said = capsys.readouterr().out
    assert "so it is planned anew: labels.top_k: 8 in the store, 16 now" in said
    assert "30 records read: 30 in 4 units, 0 rejected" in said
    LogitStore.create(tmp_path / "store", make_manifest())
    assert tried() == 0
    assert "30 records read: 30 in 5 units (10 new, 20 planned before), 0 rejected" in capsys.readouterr().out
    assert tried("labels.top_k=16") == 2
    assert "labels.top_k: 8 in the store, 16 now" in capsys.readouterr().err


def test_settings_that_change_nothing_where_the_teacher_writes_nothing_are_named(tmp_path, capsys):
    """A limit on responses beside a mode that was found had no effect, and nobody said so."""
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "2 + 2", "response": "4"}) + "\n")
    settings = ["teacher.engine=fake", f"input.uri='{tmp_path}/in.jsonl'", f"output.uri='{tmp_path}/store'"]
    unused = ["sampling.max_tokens=48", "filters.min_tokens=3"]
    counted = ["sampling.stop=['<end>']", "filters.duplicate_prompts=drop"]
    arguments = ["--dry-run", *(part for one in settings + unused + counted for part in ("--set", one))]
    assert main(["run", *arguments]) == 0
    assert "without effect: sampling.max_tokens, filters.min_tokens; labels.mode" in capsys.readouterr().out
    assert main(["run", *arguments, "--set", "labels.mode=generate"]) == 0
    assert "without effect" not in capsys.readouterr().out
    # And a run says so before anything else, to --quiet too.
    gone = ["--set", f"input.uri='{tmp_path}/gone.jsonl'", "--set", "input.kind=prompt_response", "--quiet"]
    assert main(["run", *arguments[1:], *gone]) == 2
    assert capsys.readouterr().err.startswith("without effect: sampling.max_tokens, filters.min_tokens; ")
