"""What a model is asked and answers: greedily, alone as in company, with each special token once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitstore.common.config_file import ConfigError
from tests.trainer.parity.models import WITH_START, byte_model
from trainer.errors import NotFiniteError
from trainer.parity.models.answer_book import AnswerBook
from trainer.parity.models.identity import identity_of
from trainer.parity.models.judging import judged
from trainer.parity.models.likelihood import prompt_of
from trainer.parity.models.model import AnsweringModel
from trainer.parity.records import Answer, Item, Request

PROMPTS = ("Why?", "How many are there in all, then?", "So", "Tell me of it at length.", "x")


def model_of(name: str, book: AnswerBook, batch_size: int = 8) -> AnsweringModel:
    return AnsweringModel(name, book, option="--student", batch_size=batch_size, tell=lambda *_: None)


def answers_of(
    name: str, folder: Path, until: tuple[str, ...] = (), *, max_tokens: int = 24, batch_size: int = 8
) -> list[Answer]:
    folder.mkdir()
    book = AnswerBook(folder / "answers.jsonl")
    requests = [Request(prompt, False, until, max_tokens) for prompt in PROMPTS]
    answers = model_of(name, book, batch_size).answers(requests)
    book.close()
    return answers


def inner(text: str) -> str:
    """A character that is one token, not at the beginning."""
    return next(character for character in text[2:] if character.isascii())


def test_settings_of_generation_do_not_apply(tmp_path: Path) -> None:
    plain = byte_model(tmp_path / "plain")
    settings = {
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "min_length": 20,
        "bad_words_ids": [[65]],
    }
    other = byte_model(tmp_path / "other", generation=settings)
    assert answers_of(plain, tmp_path / "a") == answers_of(other, tmp_path / "b")


def test_a_model_whose_logits_are_no_numbers_is_refused(tmp_path: Path) -> None:
    """Its answers passed for wrong ones, and the files of figures held NaN, which is no JSON."""
    name = byte_model(tmp_path / "model")
    broken = AutoModelForCausalLM.from_pretrained(name)
    torch.nn.init.constant_(broken.model.norm.weight, float("nan"))
    broken.save_pretrained(name)
    with pytest.raises(NotFiniteError, match="its logits are not finite"):
        answers_of(name, tmp_path / "a")
    model = model_of(name, AnswerBook(tmp_path / "b.jsonl"))
    with pytest.raises(NotFiniteError, match="its logits are not finite"):
        model.loglikelihoods([("Why?", " So")], is_chat=False)


def test_messages_that_the_template_refuses_are_named(tmp_path: Path) -> None:
    """Gemma's takes no system message; that was a defect."""
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + WITH_START
    )
    model = model_of(byte_model(tmp_path / "model", template=template), AnswerBook(tmp_path / "book"))
    user = {"role": "user", "content": "Why?"}
    assert "Why?" in prompt_of(model, Item("a", (user,), "b"))
    with pytest.raises(ConfigError, match=r"refuses messages of system, user \(no system\): 'Why\?'"):
        prompt_of(model, Item("a", ({"role": "system", "content": "Be brief."}, user), "b"))


def test_an_end_that_the_model_names_still_ends(tmp_path: Path) -> None:
    whole = answers_of(byte_model(tmp_path / "plain"), tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    (last,) = tokenizer.encode(inner(whole[0].text), add_special_tokens=False)
    named = byte_model(tmp_path / "other", generation={"eos_token_id": [last]})
    ended = answers_of(named, tmp_path / "b")[0]
    assert whole[0].text.startswith(ended.text)
    assert (len(ended.text) < len(whole[0].text), ended.is_cut, whole[0].is_cut) == (True, False, True)


def test_answers_that_stop_are_the_same_alone_and_in_company(tmp_path: Path) -> None:
    name = byte_model(tmp_path / "model", seed=3)
    whole = [answer.text for answer in answers_of(name, tmp_path / "whole")]
    until = (inner(whole[1]), inner(whole[3]))
    alone = answers_of(name, tmp_path / "alone", until, batch_size=1)
    together = answers_of(name, tmp_path / "together", until)
    assert [answer.text for answer in alone] == [answer.text for answer in together]
    assert [answer.is_cut for answer in alone] == [answer.is_cut for answer in together]
    assert sum(answer.is_cut for answer in alone) < len(PROMPTS)
    for one, other in zip(alone, together, strict=True):
        assert one.confidence == pytest.approx(other.confidence, rel=1e-4)
        assert not any(stop in one.text for stop in until)


def test_a_stop_that_begins_in_the_prompt_is_none(tmp_path: Path) -> None:
    name = byte_model(tmp_path / "model")
    whole = answers_of(name, tmp_path / "whole")
    until = tuple(f"{prompt[-1]}{answer.text[0]}" for prompt, answer in zip(PROMPTS, whole, strict=True))
    for answer, stopped in zip(whole, answers_of(name, tmp_path / "stopped", until), strict=True):
        first = min((place for stop in until if (place := answer.text.find(stop)) >= 0), default=None)
        assert stopped.text == (answer.text if first is None else answer.text[:first])


def test_what_is_cut_is_counted_again_from_the_book(tmp_path: Path) -> None:
    name = byte_model(tmp_path / "model", positions=64)
    book = AnswerBook(tmp_path / "answers.jsonl")
    model = model_of(name, book)
    long = "".join(chr(97 + place % 26) for place in range(60))
    (answer,) = model.answers([Request(long, True, (), 100)])
    assert (model.num_cut_prompts, model.num_cut_answers) == (1, 1)
    # Half of the context is the prompt's, which begins later.
    (same,) = model.answers([Request(long[-32:], True, (), 32)])
    assert (same.text, same.is_prompt_cut) == (answer.text, False)
    model.loglikelihoods([(long + "qrstuv", "ab"), (long + "qrstuv", "cd")], is_chat=True)
    assert model.num_cut_prompts == 2
    again = model_of(name, book)
    assert again.answers([Request(long, True, (), 100)]) == [answer]
    again.loglikelihoods([(long + "qrstuv", "ab"), (long + "qrstuv", "cd")], is_chat=True)
    assert (again.num_cut_prompts, again.num_cut_answers) == (2, 1)
    assert again._model is None, "all of it is in the book"


@torch.no_grad()
def logprob(folder: str, text: str, continuation: str) -> float:
    """Of the continuation after exactly this text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    before, own = (tokenizer.encode(part, add_special_tokens=False) for part in (text, continuation))
    logprobs_TV = model(input_ids=torch.tensor([before + own])).logits[0].log_softmax(dim=-1)
    return sum(float(logprobs_TV[len(before) - 1 + place, token]) for place, token in enumerate(own))


def test_a_text_begins_once(tmp_path: Path) -> None:
    name = byte_model(tmp_path / "model", template=WITH_START)
    model = model_of(name, AnswerBook(tmp_path / "answers.jsonl"))
    chat = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|s|><|s|>system"), "one is the template's start, one the message's"
    for is_chat, text, told in ((True, chat, chat), (False, "Why?", "<|s|>Why?")):
        ((found, _),) = model.loglikelihoods([(text, " yes")], is_chat=is_chat)
        assert found == pytest.approx(logprob(name, told, " yes"), abs=1e-4)


def test_a_judge_gives_the_mean_of_its_grades(tmp_path: Path) -> None:
    name = byte_model(tmp_path / "judge", template=WITH_START)
    book = AnswerBook(tmp_path / "answers.jsonl")
    asked = [("2+2?", "4", "It is 4."), ("2+2?", "4", "No.")]
    found = judged(model_of(name, book), asked)
    text = (
        "Grade the answer to a question against the right answer.\n\nQuestion: 2+2?\n\nRight answer: 4\n\n"
        "Answer to grade: No.\n\nHow right is the answer to grade, from 1 (wrong) to 5 (right)? Reply with one "
        "digit."
    )
    prompt = f"<|s|><|s|>system\nBe kind.<|e|>\n<|s|>user\n{text}<|e|>\n<|s|>assistant\n"
    weights = [torch.tensor(logprob(name, prompt, str(grade))).exp() for grade in range(1, 6)]
    mean = sum(grade * float(weight) for grade, weight in enumerate(weights)) / float(sum(weights)) / 4
    assert found[1] == pytest.approx(mean, abs=1e-4)
    assert 0 < found[0] < 1


def test_a_model_is_known_by_what_is_loaded(tmp_path: Path) -> None:
    byte_model(tmp_path)
    before = identity_of(str(tmp_path))
    for name in ("parity.json", "answers.jsonl", "train.json", "training_args.bin"):
        (tmp_path / name).write_text("{}")
    assert identity_of(str(tmp_path)) == before
    for name in ("tokenizer.model", "vocab.txt", "adapter_model.bin"):
        (tmp_path / name).write_text("{}")
        changed, before = before, identity_of(str(tmp_path))
        assert changed != before


def test_adapters_are_known_by_the_model_below_them_too(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = byte_model(tmp_path / "base")
    adapters = tmp_path / "adapters"
    peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(target_modules=["q_proj"])
    ).save_pretrained(adapters)
    AutoTokenizer.from_pretrained(base).save_pretrained(adapters)
    before = answers_of(str(adapters), tmp_path / "a")
    book = AnswerBook(tmp_path / "a" / "answers.jsonl")
    byte_model(tmp_path / "base", seed=5)
    after = model_of(str(adapters), book).answers([Request(prompt, False, (), 24) for prompt in PROMPTS])
    assert after != before
    assert after == answers_of(base, tmp_path / "b"), "adapters that are new change nothing"


def test_a_name_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = []
    for commit in ("a" * 40, "b" * 40):
        (tmp_path / "models--some--model" / "refs").mkdir(parents=True, exist_ok=True)
        (tmp_path / "models--some--model" / "refs" / "main").write_text(commit)
        snapshot = tmp_path / "models--some--model" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps({}))
        found.append(identity_of("some/model"))
    assert found == [f"commit {'a' * 40}", f"commit {'b' * 40}"]
