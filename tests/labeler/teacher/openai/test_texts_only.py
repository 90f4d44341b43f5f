"""Labels of texts alone: from a server that says nothing but text, through the store, to everything that reads it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from labeler.config.loading import SamplingConfig, TeacherConfig, load_job
from labeler.prompting.tokenization import Conversation, HuggingFaceTokenizer
from labeler.records import Lease, TokenizedPrompt
from labeler.teacher.openai.calls import ServerFailedError
from labeler.teacher.openai.texts import NEWER_LIMIT, TRIAL_TOKENS, Answer, TextTeacher, response_text
from logitstore.__main__ import main
from logitstore.common.config_file import ConfigError
from logitstore.errors import CorruptManifestError, InvalidLabelsError, UnsupportedInputError
from logitstore.exchange.chat_text import reasoning_apart
from logitstore.manifest.reading import encode_manifest
from logitstore.records import LabeledSequence
from logitstore.standalone_reader import read_store
from logitstore.store import LogitStore
from tests.labeler.jobs import label_and_commit, overrides_for
from tests.labeler.planning.templates import TEMPLATES, byte_tokenizer
from tests.labeler.teacher.openai.chat_stand_in import chat_reply, chat_server, write_student
from tests.labeler.teacher.openai.json_server import Reply
from tests.labeler.whole_jobs.test_storage_faults import started_worker
from tests.trainer.stores import label_spec, labeled_sequence
from trainer.data.dataset import StreamingLogitDataset
from trainer.run.config import load_config

QUESTIONS = ("why?", "think twice", "a b c d e f g", "forbidden fruit", "x" * 60)


@dataclass(frozen=True)
class Labeled:
    """A store of texts, and what was asked for it."""

    store: LogitStore
    folder: Path
    asked: list[dict[str, Any]]


def job_settings(folder: Path, *more: str) -> list[str]:
    settings = ["input.kind=prompt", "labels.mode=generate", "labels.rows=false", "sampling.max_tokens=20"]
    settings += ["sampling.temperature=0", "input.system_prompt='Be brief.'", "filters.repeated=keep"]
    return overrides_for(folder, *settings, *more)


def api_settings(folder: Path, url: str) -> list[str]:
    model = write_student(folder / "student")
    settings = ["teacher.engine=openai", f"teacher.model='{model}'", f"teacher.api.base_url='{url}'"]
    return [*settings, "teacher.api.model=clever", "teacher.api.endpoint=chat"]


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Labeled:
    folder = tmp_path_factory.mktemp("texts")
    lines = [json.dumps({"uid": str(i), "prompt": text}) for i, text in enumerate(QUESTIONS)]
    (folder / "in.jsonl").write_text("\n".join(lines))
    asked = list[dict[str, Any]]()
    with chat_server(asked) as url:
        settings = api_settings(folder, url)
        worker, units = started_worker(load_job(None, job_settings(folder, *settings), {}))
        for number, unit in enumerate(units):
            assert label_and_commit(worker, Lease(number, unit, "w")).won
        worker.close()
    return Labeled(LogitStore.open(folder / "store"), folder, asked)


def test_a_text_at_which_the_server_always_fails_is_rejected_and_the_others_are_kept(tmp_path: Path) -> None:
    lines = [json.dumps({"uid": str(i), "prompt": text}) for i, text in enumerate(["why?", "fatal", "how?"])]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))

    def reply(path: str, body: dict[str, Any]) -> Reply:
        if body["messages"][-1]["content"] == "fatal":
            return 500, {"error": {"message": "index out of range"}}
        return chat_reply(path, body)

    with chat_server([], reply) as url:
        settings = [*api_settings(tmp_path, url), "teacher.api.tries=1"]
        worker, (unit,) = started_worker(load_job(None, job_settings(tmp_path, *settings), {}))
        assert label_and_commit(worker, Lease(0, unit, "w")).won
        worker.close()
    store = LogitStore.open(tmp_path / "store")
    assert [sequence.record_id for sequence in store.iter_sequences()] == ["0", "2"]
    (reject,) = store.rejects()
    assert (reject.record_id, reject.kind) == ("1", "server_failed")
    assert "the last with 500: Error code: 500 - index out of range; look at the server" in reject.reason


def test_a_limit_that_lets_short_requests_through_rejects_no_text(tmp_path: Path) -> None:
    """A committed unit counts as done, and is not labeled again once the limit is over."""
    (tmp_path / "in.jsonl").write_text(json.dumps({"uid": "0", "prompt": "why?"}))

    def reply(path: str, body: dict[str, Any]) -> Reply:
        if body["max_tokens"] > TRIAL_TOKENS:
            return 429, {"error": {"message": "tokens per min (TPM)", "code": "rate_limit_exceeded"}}
        return chat_reply(path, body)

    with chat_server([], reply) as url:
        settings = [*api_settings(tmp_path, url), "teacher.api.tries=2", "teacher.api.longest_pause_sec=0.01"]
        worker, (unit,) = started_worker(load_job(None, job_settings(tmp_path, *settings), {}))
        with pytest.raises(ServerFailedError, match="the last with 429"):
            label_and_commit(worker, Lease(0, unit, "w"))
        worker.close()
    assert not LogitStore.open(tmp_path / "store").shards()


def test_a_server_that_calls_the_limit_otherwise_is_asked_so(tmp_path: Path) -> None:
    """OpenAI's models that reason take no `max_tokens`."""
    (tmp_path / "in.jsonl").write_text(json.dumps({"uid": "0", "prompt": "why?"}))
    asked = list[dict[str, Any]]()

    def reply(path: str, body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            words = f"Unsupported parameter: 'max_tokens'. Use '{NEWER_LIMIT}' instead."
            return 400, {"error": {"message": words, "code": "unsupported_parameter"}}
        return chat_reply(path, {**body, "max_tokens": body[NEWER_LIMIT]})

    with chat_server(asked, reply) as url:
        worker, units = started_worker(
            load_job(None, job_settings(tmp_path, *api_settings(tmp_path, url)), {})
        )
        assert label_and_commit(worker, Lease(0, units[0], "w")).won
        worker.close()
    (item,) = LogitStore.open(tmp_path / "store").iter_sequences()
    assert text_of(item) == "?yhw<|e|>"
    assert [body.get(NEWER_LIMIT) for body in asked] == [None, TRIAL_TOKENS, 20]


class _OneAnswer:
    """Stands where requests are made: the text of any answer is "Yes"."""

    def __init__(self) -> None:
        self.asked = list[dict[str, Any]]()

    def complete(self, request: dict[str, Any], *_: object) -> Answer:
        self.asked.append(request)
        return Answer("Yes", "", "stop")


@pytest.mark.parametrize("bos", ["<s>", None])
def test_a_prompt_sent_as_text_leaves_its_beginning_to_the_server(bos: str | None) -> None:
    """Which would put a second one before it."""
    tokenizer = HuggingFaceTokenizer(byte_tokenizer(bos=bos), chat_template=TEMPLATES["mistral"])
    api = {"base_url": "http://h/v1"}
    config = TeacherConfig.model_validate({"engine": "openai", "model": "m", "api": api})
    server = _OneAnswer()
    teacher = TextTeacher(server, "m", config, SamplingConfig(), tokenizer)  # type: ignore[arg-type]
    ids = np.array(tokenizer.encode("<s>[INST] q[/INST]"), np.int32)
    found = teacher.written(TokenizedPrompt("r", ids, None, len(ids)), 0)
    assert server.asked[0]["prompt"] == ("[INST] q[/INST]" if bos else "<s>[INST] q[/INST]")
    assert isinstance(found, LabeledSequence)
    assert found.token_ids_T[: len(ids)].tolist() == ids.tolist(), "the store has it"


def test_no_space_comes_between_a_prompt_and_its_answer() -> None:
    tokenizer = HuggingFaceTokenizer(byte_tokenizer(family="metaspace"), chat_template=TEMPLATES["chatml"])
    config = TeacherConfig.model_validate(
        {"engine": "openai", "model": "m", "api": {"base_url": "http://h/v1"}}
    )
    teacher = TextTeacher(_OneAnswer(), "m", config, SamplingConfig(), tokenizer)  # type: ignore[arg-type]
    asked = tokenizer.render_chat(
        Conversation(({"role": "user", "content": "q"},)), add_generation_prompt=True
    )
    prompt_ids = np.array(tokenizer.encode(asked), np.int32)
    found = teacher.written(TokenizedPrompt("r", prompt_ids, None, len(prompt_ids)), 0)
    assert isinstance(found, LabeledSequence)
    end = tokenizer.decode([int(found.token_ids_T[-1])])
    assert tokenizer.decode(found.token_ids_T.tolist()) == asked + "Yes" + end


def test_answers_are_kept_in_the_students_tokens(labeled: Labeled) -> None:
    found = {item.record_id: item for item in labeled.store.iter_sequences()}
    assert list(found) == ["0", "1", "2", "4"]
    assert [reject.kind for reject in labeled.store.rejects()] == ["content_filter"]
    for item in found.values():
        assert item.rows.num_rows == 0 == len(item.loss_mask_N)
        assert item.label_start == item.prompt_length
    texts = {name: text_of(item) for name, item in found.items()}
    assert texts["0"] == "?yhw<|e|>"
    assert texts["1"] == "<think>\nBackwards.\n</think>\n\neciwt kniht<|e|>"
    assert texts["4"] == "x" * 20, "cut off, so without an end"
    assert (found["4"].finish_reason, found["4"].flags) == ("length", ("truncated",))
    manifest = labeled.store.manifest
    assert (manifest.labels.support, manifest.labels.top_k, manifest.labels.temperatures) == (
        "none",
        1,
        (1.0,),
    )
    assert "texts_only" in manifest.features
    assert manifest.teacher.model == "clever"


def text_of(item: LabeledSequence) -> str:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    back = {letter: chr(code) for code, letter in byte_letters().items()}
    names = [*(back[letter] for letter in letters), "<|s|>", "<|e|>"]
    return "".join(names[i] for i in item.token_ids_T[item.prompt_length :])


def byte_letters() -> dict[int, str]:
    """GPT-2's letter of each byte."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [code for code in range(256) if code not in own]
    return {code: chr(code) for code in own} | {code: chr(256 + n) for n, code in enumerate(others)}


@pytest.mark.parametrize(
    ("prompt", "answer", "response", "apart"),
    [
        ("Q", Answer("12", "", "stop"), "12", (None, "12")),
        ("Q", Answer("12", "So.", "stop"), "<think>\nSo.\n</think>\n\n12", ("So.", "12")),
        ("Q", Answer("", "So", "length"), "<think>\nSo", ("So", "")),
        ("Q", Answer("1", "So.", "length"), "<think>\nSo.\n</think>\n\n1", ("So.", "1")),
        ("Q", Answer("", "So.", "stop"), "<think>\nSo.\n</think>\n\n", ("So.", "")),
        ("Q", Answer("<think>\nSo.\n</think>\n\n12", "So.", "stop"), None, ("So.", "12")),
        ("Q", Answer("12", "<think>\nSo.\n</think>\n", "stop"), None, ("So.", "12")),
        ("Q<think>\n", Answer("12", "So.", "stop"), "So.\n</think>\n\n12", ("So.", "12")),
        ("Q<think>\n", Answer("", "So", "length"), "So", ("So", "")),
        ("Q<think>\n", Answer("12", "", "stop"), "\n</think>\n\n12", ("", "12")),
        ("Q<think>\n", Answer("So.\n</think>\n\n12", "", "stop"), None, ("So.", "12")),
        ("Q<think>\n", Answer("<think>\nSo.\n</think>\n\n12", "", "stop"), None, ("So.", "12")),
    ],
)
def test_reasoning_is_opened_once_and_closed_where_the_model_closed_it(
    prompt: str, answer: Answer, response: str | None, apart: tuple[str | None, str]
) -> None:
    found = response_text(prompt, answer)
    assert reasoning_apart(prompt, found) == apart
    assert (prompt + found).count("<think>") == (apart[0] is not None)
    assert response in (None, found)


def test_a_message_without_content_is_an_empty_answer(tmp_path: Path) -> None:
    records = [{"uid": name, "prompt": name} for name in ("ponder", "mute", "why?")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    with chat_server([]) as url:
        settings = api_settings(tmp_path, url)
        worker, units = started_worker(load_job(None, job_settings(tmp_path, *settings), {}))
        assert label_and_commit(worker, Lease(0, units[0], "w")).won
        worker.close()
    store = LogitStore.open(tmp_path / "store")
    found = {
        item.record_id: (text_of(item), item.finish_reason, item.flags) for item in store.iter_sequences()
    }
    assert found == {
        "ponder": ("<think>\nI do not kn", "length", ("truncated",)),
        "why?": ("?yhw<|e|>", "stop", ()),
    }
    assert [(reject.record_id, reject.kind) for reject in store.rejects()] == [("mute", "filter_empty")]


def test_messages_are_sent_as_they_were(labeled: Labeled) -> None:
    sent = [body for body in labeled.asked if len(body["messages"]) == 2]
    assert sorted(body["messages"][1]["content"] for body in sent) == sorted(QUESTIONS)
    assert {body["messages"][0]["content"] for body in sent} == {"Be brief."}
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in sent} == {
        ("clever", 0.0, 20)
    }
    assert not any("top_k" in body or "logprobs" in body for body in labeled.asked)


def test_the_store_is_sound_and_every_command_knows_it(
    labeled: Labeled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = labeled.store.uri
    assert main(["verify", uri, "--against", str(labeled.folder / "in.jsonl")]) == 0
    assert main(["inspect", uri]) == 0
    assert "texts alone" in capsys.readouterr().out
    assert main(["export", uri, "--to", "messages", str(tmp_path / "out.jsonl")]) == 0
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert [message["content"] for message in first["messages"]] == ["Be brief.", "why?", "?yhw"]
    for command in (["merge", uri, "--out", str(tmp_path / "merged")], ["copy", uri, str(tmp_path / "copy")]):
        assert main(command) == 0
    for copy in ("merged", "copy"):
        read = list(LogitStore.open(tmp_path / copy).iter_sequences())
        assert [item.record_id for item in read] == ["0", "1", "2", "4"]
    alone = list(read_store(tmp_path / "copy"))
    assert [len(item["logits_NK"]) for item in alone] == [0] * 4
    np.testing.assert_array_equal(
        alone[2]["token_ids_T"], list(labeled.store.iter_sequences())[2].token_ids_T
    )
    assert main(["view", uri, "--out", str(tmp_path / "page.html")]) == 0
    block = re.search(r'id="data">(.*?)</script>', (tmp_path / "page.html").read_text(), re.DOTALL)
    assert block is not None
    (shown,) = json.loads(block[1])["summaries"]
    assert [(one["asked"], one["answer"]) for one in shown[:1]] == [("why?", "?yhw")]
    capsys.readouterr()
    for refused in (["head", uri], ["export", uri, "--to", "npz", str(tmp_path / "x.npz")]):
        assert main(refused) == 2
    assert main(["mix", uri, str(tmp_path / "copy"), "--out", str(tmp_path / "mixed")]) == 2
    assert "holds texts alone" in capsys.readouterr().err


def test_rows_do_not_fit_in(labeled: Labeled) -> None:
    rows = labeled.store.manifest
    with pytest.raises(CorruptManifestError, match=r"must be 1 and 1\.0"):
        encode_manifest(replace(rows, labels=replace(rows.labels, top_k=4)))
    with pytest.raises(CorruptManifestError, match="must go together"):
        encode_manifest(replace(rows, features=tuple(f for f in rows.features if f != "texts_only")))
    one = labeled_sequence(np.random.default_rng(0), "r", label_spec(), 9, 3)
    with pytest.raises((InvalidLabelsError, UnsupportedInputError), match="texts alone"):
        labeled.store.commit_unit("u", 99, [one], seconds=0, worker="w")


def test_a_student_learns_the_response_alone(labeled: Labeled) -> None:
    dataset = StreamingLogitDataset([labeled.store.uri], batch_size=1, shuffle=False)
    for index, item in enumerate(labeled.store.iter_sequences()):
        learned = dataset[index].sequence
        np.testing.assert_array_equal(learned.rows.token_ids_NK[:, 0], item.token_ids_T[item.label_start :])
        assert learned.loss_mask_N.all()
    streamed = [sample.sequence.rows.num_rows for sample in dataset]
    assert streamed == [dataset[index].sequence.rows.num_rows for index in range(4)]


def test_training_wants_no_distributions_of_them(labeled: Labeled) -> None:
    from trainer.run.reading.datasets import datasets

    settings = [f"student.tokenizer={labeled.folder}/student", f"data.stores={labeled.store.uri}"]
    settings += [f"student.model={labeled.folder}/student", f"output.folder={labeled.folder}/run"]
    settings += ["data.held_out_fraction=0.5", "training.max_steps=1"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(labeled.folder / "student")
    with pytest.raises(ConfigError, match=r"holds texts alone and alpha = 0\.5"):
        datasets(load_config(None, [*settings, "loss.alpha=0.5"]), tokenizer)
    train_set, held_out = datasets(load_config(None, [*settings, "loss.alpha=0"]), tokenizer)
    assert train_set.num_sequences + held_out.num_sequences == 4


BASE = ["teacher.engine=openai", "teacher.model=m", "teacher.api.base_url='http://h/v1'", "output.uri=y"]
BASE += ["input.uri=x", "input.kind=messages"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["labels.rows=false"], "writes, and labels.mode"),
        (
            ["teacher.api.endpoint=chat", "labels.mode=generate", "labels.temperatures=[1.0]"],
            "gives texts and",
        ),
        (["labels.rows=false", "labels.mode=generate", "labels.positions=all"], "labels prompts"),
        (["labels.rows=false", "labels.mode=generate", "sampling.stop=['x']"], "masks tokens"),
        (["labels.rows=false", "labels.mode=generate", "sampling.stop_token_ids=[7]"], "is told of none"),
        (["labels.rows=false", "labels.mode=generate", "sampling.min_tokens=7"], "need not keep to"),
        (
            [
                "labels.rows=false",
                "labels.mode=generate",
                "teacher.api.endpoint=chat",
                "input.chat_template=false",
            ],
            "sends messages",
        ),
    ],
)
def test_what_texts_cannot_be_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_job(None, [*BASE, *settings], {})


def test_a_conversation_whose_turns_cannot_be_told_apart_is_not_sent(tmp_path: Path) -> None:
    """The server was sent the tool's turn, with the template's markers, as the user's words."""
    user, answer = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "So."}
    chats = ([user, answer, {"role": "tool", "content": "21"}], [user, answer, user])
    records = [{"uid": str(number), "messages": chat} for number, chat in enumerate(chats)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    asked = list[dict[str, Any]]()
    settings = ["input.kind=messages", "input.system_prompt=null"]
    with chat_server(asked) as url:
        job = load_job(None, job_settings(tmp_path, *api_settings(tmp_path, url), *settings), {})
        worker, units = started_worker(job)
        assert label_and_commit(worker, Lease(0, units[0], "w")).won
        worker.close()
    store = LogitStore.open(tmp_path / "store")
    assert [item.record_id for item in store.iter_sequences()] == ["1"]
    (reject,) = store.rejects()
    assert (reject.record_id, reject.kind) == ("0", "bad_prompt")
    assert asked[-1]["messages"] == [user, answer, user]
    assert not any("21" in message["content"] for request in asked for message in request["messages"])


def test_any_engine_may_leave_rows_out(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"uid": "0", "prompt": "why?"}) + "\n")
    worker, units = started_worker(load_job(None, job_settings(tmp_path), {}))
    assert label_and_commit(worker, Lease(0, units[0], "w")).won
    worker.close()
    (item,) = LogitStore.open(tmp_path / "store").iter_sequences()
    assert item.rows.num_rows == 0 < len(item.token_ids_T) - item.prompt_length
