"""Students that see another prompt than the teacher: from the job's settings to the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labeler.config.loading import load_job
from labeler.errors import BadRecordError
from labeler.planning.units import decode_records, encode_records
from labeler.prompting.byte_tokenizer import ByteTokenizer
from labeler.prompting.prompts import ContextLimits, PromptBuilder
from labeler.prompting.tokenization import load_tokenizer
from labeler.records import Lease, PlannedRecord
from logitstore.common.config_file import ConfigError
from logitstore.manifest.fields import SEGMENTS, STUDENT_PROMPTS
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.labeler.jobs import label_and_commit
from tests.labeler.worker.test_actor import set_up, store_of
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss

TEACHER = Path(__file__).parents[3] / ".demo" / "teacher"
SYSTEM = "input.system_prompt='Answer like a pirate, in one word.'"
BYTES = ByteTokenizer(512)
ITEMS: list[dict[str, Any]] = [
    {"prompt": "question one", "response": "aye", "uid": 0},
    {"prompt": "question two, longer", "response": "no, not at all", "uid": 1},
]


def text(ids: np.ndarray | None) -> str:
    assert ids is not None
    return BYTES.decode(ids.tolist())


def label(
    tmp_path: Path, items: list[dict[str, Any]], *overrides: str, kind: str = "prompt_response"
) -> LogitStore:
    worker, units, _ = set_up(tmp_path, items, *overrides, kind=kind)
    for number, unit in enumerate(units):
        label_and_commit(worker, Lease(number, unit, "worker-0.0"))
    worker.close()
    return store_of(tmp_path)


def build(record: dict[str, Any], kind: str, *overrides: str) -> Any:
    base = ["teacher.engine=fake", "input.uri=in", "output.uri=out", f"input.kind={kind}"]
    job = load_job(None, [*base, *overrides], {})
    return PromptBuilder(job, BYTES, ContextLimits(512, 4096)).build("r1", record)


def test_the_store_keeps_both_prompts_and_a_student_reads_its_own(tmp_path: Path) -> None:
    store = label(tmp_path, ITEMS, SYSTEM, "input.student_system_prompt=''")
    assert store.manifest.features == (STUDENT_PROMPTS, SEGMENTS)
    assert not verify_store(store).errors
    for sequence, item in zip(store.iter_sequences(), ITEMS, strict=True):
        assert "pirate" in text(sequence.token_ids_T)
        assert (
            text(sequence.student_prompt_ids)
            == f"<|start|>user\n{item['prompt']}<|end|>\n<|start|>assistant\n"
        )
        seen = sequence.for_student()
        assert text(seen.token_ids_T) == text(sequence.student_prompt_ids) + f"{item['response']}<|end|>"
        assert sequence.student_prompt_ids is not None
        assert seen.label_start == seen.prompt_length == len(sequence.student_prompt_ids)
        assert text(seen.token_ids_T[seen.label_start :]) == f"{item['response']}<|end|>"


def test_batches_and_losses_are_those_of_a_store_labeled_with_both_prompts_by_hand(tmp_path: Path) -> None:
    store = label(tmp_path, ITEMS, SYSTEM, "input.student_system_prompt='Be dull.'")
    manifest = replace(store.manifest, features=(), labels=replace(store.manifest.labels, extra_columns=()))
    by_hand = LogitStore.create(tmp_path / "by-hand", manifest)
    sequences = []
    for sequence in store.iter_sequences():
        prompt = BYTES.encode("<|start|>system\nBe dull.<|end|>\n") + BYTES.encode(
            f"<|start|>user\n{ITEMS[int(sequence.record_id)]['prompt']}<|end|>\n<|start|>assistant\n"
        )
        response = sequence.token_ids_T[sequence.prompt_length :]
        sequences.append(
            replace(
                sequence,
                token_ids_T=np.concatenate([np.array(prompt, np.int32), response]),
                prompt_length=len(prompt),
                label_start=len(prompt),
                student_prompt_ids=None,
                segments_T=None,
            )
        )
    by_hand.commit_unit("by-hand", 0, sequences, seconds=0.0, worker="test")
    batches, losses = [], []
    for place in (store.uri, by_hand.uri):
        dataset = StreamingLogitDataset(place, batch_size=2, seed=1)
        batch = DistillationCollator(CollateSettings(temperature=2.0))([dataset[0], dataset[1]])
        logits_BTV = torch.randn(*batch["labels"].shape, 512, generator=torch.Generator().manual_seed(3))
        settings = LossSettings(alpha=0.7, temperature=2.0)
        losses.append(
            topk_distillation_loss(
                logits_BTV, batch["labels"], TeacherTargets.from_batch(batch), settings
            ).loss
        )
        batches.append(batch)
        lengths = sorted(
            outline for one in dataset.sources[0].outlines() for outline in one.num_tokens_S.tolist()
        )
        assert lengths == sorted(len(sequence.token_ids_T) for sequence in sequences)
    assert batches[0].keys() == batches[1].keys()
    for key, tensor in batches[0].items():
        assert torch.equal(tensor, batches[1][key]), key
    assert float(losses[0]) == float(losses[1]) > 0


def test_responses_that_the_teacher_writes_have_the_students_prompt_before_them(tmp_path: Path) -> None:
    items = [
        {"messages": [{"role": "user", "content": "Q?"}], "own": [{"role": "user", "content": "q"}], "uid": 0}
    ]
    generate = ("labels.mode=generate", "sampling.max_tokens=6", "filters.empty=keep")
    store = label(tmp_path, items, *generate, SYSTEM, "input.fields.student_messages=own", kind="messages")
    (sequence,) = store.iter_sequences()
    assert "pirate" in text(sequence.token_ids_T)
    assert text(sequence.student_prompt_ids) == "<|start|>user\nq<|end|>\n<|start|>assistant\n"
    seen = sequence.for_student()
    assert (
        seen.token_ids_T[seen.prompt_length :].tolist()
        == sequence.token_ids_T[sequence.prompt_length :].tolist()
    )


@pytest.mark.parametrize("turns", ["last", "all"])
def test_a_record_of_which_the_student_would_see_nothing_is_rejected(turns: str) -> None:
    """It ended the whole job, by an IndexError."""
    messages = [{"role": "system", "content": "Say hi."}, {"role": "assistant", "content": "Hi."}]
    settings = (f"labels.turns={turns}", "input.student_system_prompt=''")
    with pytest.raises(BadRecordError, match="nothing is left of the prompt for the student"):
        build({"messages": messages}, "messages", *settings)


def test_a_response_with_other_ids_after_the_students_prompt_is_rejected(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and messages[0].role == 'system' %}Sir, {% endif %}{{ m.content }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    base = [f"teacher.model='{TEACHER}'", "input.uri=in", "output.uri=out", "input.kind=prompt_response"]
    job = load_job(
        None, [*base, f"input.chat_template='{template}'", SYSTEM, "input.student_system_prompt=''"], {}
    )
    builder = PromptBuilder(job, load_tokenizer(job.teacher, job.input), ContextLimits(49152, 4096))
    with pytest.raises(BadRecordError) as caught:
        builder.build("r", ITEMS[0])
    assert caught.value.kind == "other_response"


def test_all_turns_keep_their_mask_and_change_only_the_first_prompt() -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "2"},
    ]
    prompt = build(
        {"messages": messages}, "messages", "labels.turns=all", SYSTEM, "input.student_system_prompt=''"
    )
    assert text(prompt.student_prompt_token_ids) == "<|start|>user\none<|end|>\n<|start|>assistant\n"
    assert "pirate" in text(prompt.prompt_token_ids)
    assert "two" in text(prompt.response_token_ids)


@pytest.mark.parametrize(("own", "seen"), [("", ""), ("Be dull.", "<|start|>system\nBe dull.<|end|>\n")])
def test_a_system_message_in_the_middle_stays_for_the_student(own: str, seen: str) -> None:
    """It was taken away with the first, without a word: the student answered without what had been said there."""
    messages = [
        {"role": "system", "content": "Answer like a pirate."},
        {"role": "developer", "content": "And briefly."},
        {"role": "user", "content": "one"},
        {"role": "system", "content": "The user is a child."},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "2"},
    ]
    prompt = build({"messages": messages}, "messages", f"input.student_system_prompt='{own}'")
    assert text(prompt.student_prompt_token_ids) == (
        f"{seen}<|start|>user\none<|end|>\n<|start|>system\nThe user is a child.<|end|>\n"
        "<|start|>user\ntwo<|end|>\n<|start|>assistant\n"
    )
    assert "pirate" in text(prompt.prompt_token_ids)
    alone = [{"role": "user", "content": "one"}, *messages[3:]]
    prompt = build({"messages": alone}, "messages", SYSTEM, f"input.student_system_prompt='{own}'")
    assert "The user is a child." in text(prompt.student_prompt_token_ids)


def test_a_context_is_for_the_teacher_where_the_student_has_a_prompt_of_its_own() -> None:
    record = {"prompt": "Q", "context": "the solution is 7", "response": "7", "bare": "Q"}
    roles = ("input.fields.context=context", "input.fields.student_prompt=bare")
    prompt = build(record, "prompt_response", *roles, "input.system_prompt=Both see this.")
    assert "the solution is 7" in text(prompt.prompt_token_ids)
    assert text(prompt.student_prompt_token_ids) == (
        "<|start|>system\nBoth see this.<|end|>\n<|start|>user\nQ<|end|>\n<|start|>assistant\n"
    )


def test_given_ids_may_have_a_students_prompt_of_ids() -> None:
    record = {"token_ids": [5, 6, 7], "response_token_ids": [8, 9], "own": [1]}
    roles = ("input.fields.response_token_ids=response_token_ids", "input.fields.student_token_ids=own")
    prompt = build(record, "token_ids", *roles)
    assert prompt.student_prompt_token_ids.tolist() == [1]
    assert build(record, "token_ids", roles[0]).student_prompt_token_ids is None
    with pytest.raises(BadRecordError, match="600 is outside"):
        build({**record, "own": [600]}, "token_ids", *roles)


def test_units_keep_students_prompts() -> None:
    prompts = [
        build({"token_ids": [5, 6], "response_token_ids": [8], **own}, "token_ids", *roles)
        for own, roles in (
            (
                {"own": [1, 2]},
                ("input.fields.response_token_ids=response_token_ids", "input.fields.student_token_ids=own"),
            ),
            ({}, ("input.fields.response_token_ids=response_token_ids",)),
        )
    ]
    first, second = decode_records(encode_records([PlannedRecord(prompt, "f", 1) for prompt in prompts]))
    assert first.prompt.student_prompt_token_ids is not None
    assert first.prompt.student_prompt_token_ids.tolist() == [1, 2]
    assert second.prompt.student_prompt_token_ids is None


@pytest.mark.parametrize(
    ("kind", "overrides", "rule"),
    [
        ("prompt_response", ("input.student_system_prompt=x", "labels.positions=all"), "positions"),
        ("text", ("input.student_system_prompt=x",), "no system message"),
        (
            "prompt_response",
            ("input.student_system_prompt=x", "input.chat_template=false"),
            "no system message",
        ),
        ("text", ("input.fields.student_prompt=x",), "student_prompt"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind: str, overrides: tuple[str, ...], rule: str) -> None:
    base = ["teacher.engine=fake", "input.uri=in", "output.uri=out", f"input.kind={kind}"]
    with pytest.raises(ConfigError, match=rule):
        load_job(None, [*base, *overrides], {})


def test_messages_of_the_student_end_with_what_it_answers() -> None:
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    with pytest.raises(BadRecordError, match="ends with an answer"):
        build({"messages": messages, "own": messages}, "messages", "input.fields.student_messages=own")
