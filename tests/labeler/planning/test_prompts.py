"""What the teacher sees of a record, with the real tokenizer and with bytes."""

from pathlib import Path

import pytest

from labeler.config.loading import load_job
from labeler.errors import BadRecordError
from labeler.prompting.byte_tokenizer import END_OF_TURN, ByteTokenizer
from labeler.prompting.prompts import ContextLimits, PromptBuilder
from labeler.prompting.tokenization import load_tokenizer

TEACHER = Path(__file__).parents[3] / ".demo" / "teacher"
GSM8K = {"question": "Two and two?", "answer": "It is 4.\n#### 4"}


def job_for(kind, *overrides):
    base = ["teacher.engine=fake", "input.uri=in", "output.uri=out", f"input.kind={kind}"]
    return load_job(None, [*base, *overrides], {})


def build(record, kind, *overrides, max_model_len=4096):
    job = job_for(kind, *overrides)
    builder = PromptBuilder(job, ByteTokenizer(512), ContextLimits(512, max_model_len))
    return builder.build("r1", record)


def text_of(ids):
    return ByteTokenizer(512).decode([int(i) for i in ids])


def response_of(prompt):
    assert prompt.response_token_ids is not None
    return [int(i) for i in prompt.response_token_ids]


def reject(record, kind, *overrides, **limits):
    with pytest.raises(BadRecordError) as caught:
        build(record, kind, *overrides, **limits)
    return caught.value


def test_a_response_ends_with_its_end_of_turn_and_labels_start_at_its_first_token():
    prompt = build(GSM8K, "prompt_response", "input.fields.prompt=question", "input.fields.response=answer")
    assert text_of(prompt.prompt_token_ids) == "<|start|>user\nTwo and two?<|end|>\n<|start|>assistant\n"
    assert text_of(response_of(prompt)) == "It is 4.\n#### 4<|end|>"
    assert response_of(prompt)[-1] == END_OF_TURN
    assert prompt.label_start == len(prompt.prompt_token_ids)


def test_texts_with_an_end_of_turn_are_counted_and_told_of():
    """They reach the teacher as the end of a turn, and were labeled so without a word."""
    chats = [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a<|end|>x"}, {"role": "assistant", "content": "b<|end|>c"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b<|end|>c"}],
    ]
    for mode, turns, count in (("score", "last", 2), ("score", "all", 2), ("generate", "last", 1)):
        job = job_for(
            "messages", f"labels.mode={mode}", f"labels.turns={turns}", "sampling.stop_token_ids=[98]"
        )
        builder = PromptBuilder(job, ByteTokenizer(512, (), (98,)), ContextLimits(512, 4096))
        for number, chat in enumerate(chats):
            given = chat if mode == "score" else chat[:1]
            builder.build(f"r{number}", {"messages": given})
        assert builder.exchanges.num_with_ends == count
        assert f"{count} records have <|end|> in a text" in builder.exchanges.fallbacks


def test_all_positions_start_at_the_second_token():
    assert build({"text": "abc"}, "text").label_start == 1
    whole = build({"prompt": "ab", "response": "c"}, "prompt_response", "labels.positions=all")
    assert whole.label_start == 1


def test_generate_takes_the_prompt_alone_and_the_first_of_several_texts_where_that_is_asked_for():
    prompt = build(
        {"turns": ["First?", "Second?"]},
        "prompt",
        "labels.mode=generate",
        "input.fields.prompt=turns",
        "input.list_of_texts=first",
    )
    assert prompt.response_token_ids is None
    assert text_of(prompt.prompt_token_ids) == "<|start|>user\nFirst?<|end|>\n<|start|>assistant\n"


def test_messages_in_generate_mode_leave_their_last_answer_to_the_teacher():
    record = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    prompt = build(record, "messages", "labels.mode=generate", "input.system_prompt=Be brief.")
    assert text_of(prompt.prompt_token_ids) == (
        "<|start|>system\nBe brief.<|end|>\n<|start|>user\nQ<|end|>\n<|start|>assistant\n"
    )


def test_plain_text_joins_prompt_and_response():
    prompt = build({"prompt": "ab", "response": "cd"}, "prompt_response", "input.chat_template=false")
    assert (text_of(prompt.prompt_token_ids), text_of(response_of(prompt))) == ("ab", "cd")


def test_given_ids_are_taken_as_they_are():
    alone = build({"ids": [5, 6, 7]}, "token_ids", "input.fields.token_ids=ids")
    assert (list(alone.prompt_token_ids), response_of(alone), alone.label_start) == (
        [],
        [5, 6, 7],
        1,
    )
    pair = build({"token_ids": [5], "r": [6, 7]}, "token_ids", "input.fields.response_token_ids=r")
    assert (list(pair.prompt_token_ids), response_of(pair), pair.label_start) == ([5], [6, 7], 1)


def test_dots_reach_into_nested_objects():
    record = {"conversation": {"q": "Q", "a": "A"}}
    fields = ("input.fields.prompt='conversation.q'", "input.fields.response='conversation.a'")
    assert text_of(response_of(build(record, "prompt_response", *fields))) == "A<|end|>"


@pytest.mark.parametrize(
    ("record", "kind", "overrides", "problem", "words"),
    [
        ({"q": "x"}, "prompt_response", (), "missing_field", "'prompt' is missing, the record has q"),
        ({"prompt": " ", "response": "x"}, "prompt_response", (), "empty", "'prompt' is empty"),
        ({"prompt": "x", "response": ""}, "prompt_response", (), "empty", "'response' is empty"),
        ({"prompt": 7, "response": "x"}, "prompt_response", (), "bad_type", "is 7, it must be text"),
        ({"messages": []}, "messages", (), "empty", "is empty"),
        ({"messages": "hi"}, "messages", (), "bad_type", "must be a list of messages"),
        ({"messages": [{"role": "user"}]}, "messages", (), "bad_type", "a message is"),
        (
            {"messages": [{"role": "user", "content": "Q"}]},
            "messages",
            (),
            "no_response",
            "ends with a message of 'user'",
        ),
        ({"messages": [{"role": "assistant", "content": "A"}]}, "messages", (), "empty", "only an answer"),
        ({"token_ids": [1, 2.5]}, "token_ids", (), "bad_type", "whole numbers"),
        ({"token_ids": [1, True]}, "token_ids", (), "bad_type", "whole numbers"),
        ({"token_ids": []}, "token_ids", (), "empty", "is empty"),
        ({"token_ids": [7]}, "token_ids", (), "empty", "two tokens"),
        ({"token_ids": [1, 512]}, "token_ids", (), "bad_token_id", "512"),
        ({"token_ids": [1, -1]}, "token_ids", (), "bad_token_id", "-1"),
        ({"token_ids": [1, 2**40]}, "token_ids", (), "bad_token_id", str(2**40)),
    ],
)
def test_a_bad_record_is_refused_with_its_reason(record, kind, overrides, problem, words):
    error = reject(record, kind, *overrides)
    assert error.kind == problem
    assert words in error.reason


def test_a_record_may_fill_the_context_and_a_prompt_leaves_room_for_an_answer():
    assert build({"text": "x" * 32}, "text", max_model_len=32).num_tokens == 32
    error = reject({"text": "x" * 33}, "text", max_model_len=32)
    assert error.kind == "too_long"
    assert "33 tokens" in error.reason
    generate = ("labels.mode=generate", "input.chat_template=false")
    assert build({"prompt": "x" * 31}, "prompt", *generate, max_model_len=32).num_tokens == 31
    assert reject({"prompt": "x" * 32}, "prompt", *generate, max_model_len=32).kind == "too_long"


def test_the_byte_tokenizer_reads_back_what_it_wrote():
    tokenizer = ByteTokenizer(512)
    text = "Grüße<|end|>\n<|start|>user<|eos|> 你好 <|not a marker|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.fixture(scope="module")
def demo_tokenizer():
    if not TEACHER.exists():
        pytest.skip("no demo teacher in .demo/teacher; `make setup` makes it")
    return load_tokenizer(job_for("text", "teacher.engine=vllm", f"teacher.model='{TEACHER}'").teacher)


@pytest.mark.slow
def test_the_real_template_gives_the_ids_that_generation_would_see(demo_tokenizer):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(str(TEACHER))
    question, answer = GSM8K["question"], GSM8K["answer"]
    job = job_for("prompt_response", "input.fields={prompt='question', response='answer'}")
    prompt = PromptBuilder(job, demo_tokenizer, ContextLimits(49152, 8192)).build("r", GSM8K)
    messages = [{"role": "user", "content": question}]
    expected_prompt = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert list(prompt.prompt_token_ids) == expected_prompt
    whole = reference.apply_chat_template([*messages, {"role": "assistant", "content": answer}])["input_ids"]
    ours = [*prompt.prompt_token_ids, *response_of(prompt)]
    assert ours == whole[: len(ours)]
    assert ours[-1] == reference.eos_token_id
    assert reference.decode(whole[len(ours) :]) == "\n"
    assert demo_tokenizer.info.vocab_size == 49152
    assert demo_tokenizer.info.fingerprint.startswith("sha256:")


@pytest.mark.slow
def test_a_merge_across_the_border_keeps_the_prompt_as_it_is_without_its_answer(demo_tokenizer):
    record = {"prompt": "the hous", "response": "es are big"}
    job = job_for("prompt_response", "input.chat_template=false")
    prompt = PromptBuilder(job, demo_tokenizer, ContextLimits(49152, 8192)).build("r", record)
    assert demo_tokenizer.decode(prompt.prompt_token_ids.tolist()) == "the hous"
    assert demo_tokenizer.decode(response_of(prompt)) == "es are big"
