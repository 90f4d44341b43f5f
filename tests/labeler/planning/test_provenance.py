"""A plan knows the tokenizer, template and special tokens that its prompts were made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from labeler.config.loading import JobConfig, identity, load_job
from labeler.errors import OtherSettingsError
from labeler.planning.plan import Plan
from labeler.planning.provenance import describe_change, digests_of, provenance_of
from labeler.prompting.tokenization import load_tokenizer
from logitstore.job_objects import PLAN_HEAD_NAME
from logitstore.objects.opening import Objects

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
FILES = Path(__file__).parents[3] / "configs/byte-tokenizer"


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    shutil.copytree(FILES, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text('{"eos_token_id": 0, "transformers_version": "4"}')
    return folder


def job_of(teacher: Path, *more: str) -> JobConfig:
    settings = [f"teacher.model='{teacher}'", "input.uri=in.jsonl", "output.uri=out", "input.kind=prompt"]
    return load_job(None, [*settings, "labels.mode=generate", *more], {})


def made_from(teacher: Path) -> dict[str, str]:
    job = job_of(teacher)
    return provenance_of(job, load_tokenizer(job.teacher, job.input, job.sampling))


def change_of(teacher: Path, name: str, old: str, new: str) -> list[str]:
    before = made_from(teacher)
    text = (teacher / name).read_text()
    assert old in text
    (teacher / name).write_text(text.replace(old, new))
    return describe_change(before, made_from(teacher))


def test_a_corrected_template_is_told_with_its_line(teacher: Path) -> None:
    changes = change_of(teacher, "chat_template.jinja", "<assistant>", "<model>")
    assert (
        "the chat template has '<assistant>{% endif %}' in the store and '<model>{% endif %}' now" in changes
    )
    assert any(change.startswith("the rendered probe is another one") for change in changes)


def test_what_the_vocabulary_does_not_show_is_seen(teacher: Path) -> None:
    content = json.loads((teacher / "tokenizer.json").read_text())
    before = made_from(teacher)
    content["normalizer"] = {"type": "Lowercase"}
    (teacher / "tokenizer.json").write_text(json.dumps(content, indent=3))
    changes = describe_change(before, made_from(teacher))
    assert any(change.startswith("the tokenizer.json is another one") for change in changes)
    assert any(change.startswith("the tokenised probe is another one") for change in changes)


def test_the_end_of_a_response_is_seen_but_not_who_wrote_the_file(teacher: Path) -> None:
    assert change_of(teacher, "generation_config.json", '"4"', '"5"') == []
    (change,) = change_of(teacher, "generation_config.json", ": 0", ": [0, 7]")
    assert change.startswith("the generation_config.json is another one")


def test_a_file_that_came_or_went_is_told(teacher: Path) -> None:
    before = made_from(teacher)
    (teacher / "chat_template.jinja").unlink()
    assert "there was a chat template and there is none now" in describe_change(before, made_from(teacher))


def test_a_template_with_a_clock_is_the_same_on_another_day(teacher: Path) -> None:
    (teacher / "chat_template.jinja").write_text(TEMPLATE + "{{ strftime_now('%s') }}")
    assert "rendered probe" not in made_from(teacher)


def test_the_same_files_make_the_same(teacher: Path) -> None:
    assert made_from(teacher) == made_from(teacher)
    assert all(value.startswith("blake2b:") for value in digests_of(made_from(teacher)).values())


def test_a_plan_is_made_anew_before_the_first_label_and_refused_after(tmp_path: Path, teacher: Path) -> None:
    objects = Objects(str(tmp_path / "store"))
    plan, settings, before = Plan(objects), identity(job_of(teacher)), made_from(teacher)
    assert plan.claim(settings, before, has_manifest=False, num_labeled=0) == ""
    objects.put("plan/segments/000000.json", b"{}")
    (teacher / "chat_template.jinja").write_text(TEMPLATE.replace("assistant", "model"))
    now = made_from(teacher)
    with pytest.raises(OtherSettingsError, match=r"the 3 units labeled .* the chat template has .*assistant"):
        plan.claim(settings, now, has_manifest=True, num_labeled=3)
    assert objects.exists("plan/segments/000000.json")
    assert "the chat template has" in plan.claim(settings, now, has_manifest=True, num_labeled=0)
    assert not objects.exists("plan/segments/000000.json")
    assert plan.claim(settings, now, has_manifest=True, num_labeled=3) == ""


def test_a_plan_of_an_earlier_version_goes_on_and_knows_from_then_on(tmp_path: Path, teacher: Path) -> None:
    objects = Objects(str(tmp_path / "store"))
    settings = identity(job_of(teacher))
    objects.put(PLAN_HEAD_NAME, json.dumps(settings | {"teacher.tensor_parallel_size": 4}).encode())
    plan = Plan(objects)
    assert plan.claim(settings, made_from(teacher), has_manifest=True, num_labeled=3) == ""
    (teacher / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(OtherSettingsError, match="chat template"):
        plan.claim(settings, made_from(teacher), has_manifest=True, num_labeled=3)


def test_other_gpus_and_the_permission_to_run_code_are_no_other_labels(teacher: Path) -> None:
    changed = job_of(
        teacher, "teacher.tensor_parallel_size=2", "workers.cores=2", "teacher.trust_remote_code=true"
    )
    assert identity(changed) == identity(job_of(teacher))
