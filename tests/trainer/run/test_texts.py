"""Plain text as a store: which tokens are learned, and that it is read once."""

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from logitstore.common.config_file import ConfigError
from logitstore.records import SEGMENT_NAMES
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from trainer.run.reading.texts import text_store
from trainer.run.settings.data import TextSource

WORDS = {word: index for index, word in enumerate(("?", "<eos>", "<user>", "<bot>", "a", "b", "c", "d"))}
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<bot> ' }}{{ m.content }} "
    "{% if m.role == 'assistant' %}<eos> {% endif %}{% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
)
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def tokenizer(template=None):
    words = Tokenizer(WordLevel(WORDS, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="?")
    made.chat_template = template
    return made


def written(tmp_path, record, kind, template=None, **options):
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    source = TextSource(uri=str(tmp_path / "in.jsonl"), kind=kind)
    return text_store(source, tokenizer(template), tmp_path / "texts", vocab_size=8, **options)


@pytest.mark.parametrize(
    ("record", "kind", "template", "tokens", "learned"),
    [
        ({"text": "a b c"}, "text", None, "a b c <eos>", "b c <eos>"),
        ({"prompt": "a b", "response": "c d"}, "prompt_response", None, "a b c d <eos>", "c d <eos>"),
        (
            {"prompt": "a b", "response": "c"},
            "prompt_response",
            TEMPLATE,
            "<user> a b <bot> c <eos>",
            "c <eos>",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                    {"role": "assistant", "content": "d"},
                ]
            },
            "messages",
            TEMPLATE,
            "<user> a <bot> b <eos> <user> c <bot> d <eos>",
            "d <eos>",
        ),
    ],
)
def test_what_is_learned_of_a_record(tmp_path, record, kind, template, tokens, learned):
    (sequence,) = LogitStore.open(str(written(tmp_path, record, kind, template))).iter_sequences()
    assert sequence.token_ids_T.tolist() == [WORDS[word] for word in tokens.split()]
    assert sequence.token_ids_T[sequence.label_start :].tolist() == [WORDS[word] for word in learned.split()]
    assert sequence.rows.token_ids_NK[:, 0].tolist() == [WORDS[word] for word in learned.split()]


@pytest.mark.parametrize(
    ("record", "kind", "segments"),
    [
        ({"text": "a b c"}, "text", ["answer"] * 3 + ["end"]),
        ({"prompt": "a b", "response": "c d"}, "prompt_response", ["context"] * 2 + ["answer"] * 2 + ["end"]),
    ],
)
def test_where_segments_are_weighted_what_is_learned_of_a_text_is_answer(tmp_path, record, kind, segments):
    plain = written(tmp_path, record, kind)
    path = written(tmp_path, record, kind, with_segments=True)
    assert path != plain, "a run without weights keeps the store that it began with"
    store = LogitStore.open(str(path))
    (sequence,) = store.iter_sequences()
    assert sequence.segments_T is not None
    assert [SEGMENT_NAMES[number] for number in sequence.segments_T] == segments
    assert not verify_store(store).errors


def test_what_a_template_writes_behind_the_end_is_end_too(tmp_path):
    """As ChatML's line end, behind which no end was found."""
    lines = tokenizer(TEMPLATE.replace("<eos> ", "<eos> \n "))
    lines.backend_tokenizer.pre_tokenizer = Split(" ", "removed")
    lines.add_tokens(["\n"])
    record = {"messages": [USER, ANSWER]}
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    source = TextSource(uri=str(tmp_path / "in.jsonl"), kind="messages")
    path = text_store(source, lines, tmp_path / "texts", vocab_size=9, with_segments=True)
    (sequence,) = LogitStore.open(str(path)).iter_sequences()
    assert sequence.token_ids_T.tolist()[-2:] == [WORDS["<eos>"], 8]
    assert sequence.segments_T is not None
    found = [SEGMENT_NAMES[number] for number in sequence.segments_T]
    assert found == ["context"] * 3 + ["answer", "end", "end"]


def test_the_same_text_is_read_once_and_other_text_is_another_store(tmp_path):
    first = written(tmp_path, {"text": "a b"}, "text")
    assert (
        text_store(
            TextSource(uri=str(tmp_path / "in.jsonl"), kind="text"),
            tokenizer(),
            tmp_path / "texts",
            vocab_size=8,
        )
        == first
    )
    assert written(tmp_path, {"text": "a b c d"}, "text") != first
    assert len(list((tmp_path / "texts").iterdir())) == 2


@pytest.mark.parametrize(
    ("record", "kind", "template", "words"),
    [
        ({"prompt": "a"}, "prompt_response", None, r"response = 'None'.*its fields are prompt"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages", TEMPLATE, "must be the assistant's"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", None, "has no chat template"),
        ({"text": ""}, "text", None, "no token is left to learn"),
        ({"messages": ["a", "b"]}, "messages", TEMPLATE, "must be the assistant's"),
        ({"messages": ["a", ANSWER]}, "messages", TEMPLATE, "message 1 is 'a', and must be an object"),
        ({"messages": [{"content": "a"}, ANSWER]}, "messages", TEMPLATE, "must be an object with a role"),
        ({"messages": [ANSWER]}, "messages", TEMPLATE, "refuses the messages .*empty conversation"),
        (
            {"messages": [{"role": "user", "content": None}, ANSWER]},
            "messages",
            TEMPLATE.replace("m.content }}", "m.content + '' }}"),
            "refuses the messages .*NoneType",
        ),
        (
            {"messages": [{"role": "system", "content": "a"}, USER, ANSWER]},
            "messages",
            "{{ raise_exception('no system here') }}",
            r"refuses the messages \(no system here\)",
        ),
        (
            {"messages": [USER, {**ANSWER, "reasoning_content": "c"}]},
            "messages",
            TEMPLATE,
            "does not read 'reasoning_content' of message 2, of 'assistant'",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]},
            "messages",
            TEMPLATE,
            "does not read 'tool_calls'",
        ),
        (
            {"messages": [{"role": "system", "content": "a"}, USER, ANSWER]},
            "messages",
            TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
            "does not read 'content' of message 1, of 'system'",
        ),
        (
            {"messages": [USER, ANSWER], "tools": [{"name": "f"}]},
            "messages",
            TEMPLATE,
            "does not read the record's tools",
        ),
    ],
)
def test_a_record_that_cannot_be_used_is_named(tmp_path, record, kind, template, words):
    with pytest.raises(ConfigError, match=r"in.jsonl record 1.*" + words):
        written(tmp_path, record, kind, template)
    assert not list((tmp_path / "texts").iterdir())


def test_a_record_that_the_template_refuses_is_dropped_where_such_are(tmp_path):
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"messages": one}) + "\n" for one in ([ANSWER], [USER, ANSWER]))
    )
    source = TextSource(uri=str(tmp_path / "in.jsonl"), kind="messages", bad_records="drop")
    store = LogitStore.open(str(text_store(source, tokenizer(TEMPLATE), tmp_path / "texts", vocab_size=8)))
    assert [reject.line for reject in store.rejects()] == [1]
    assert len(list(store.iter_sequences())) == 1


def test_tools_of_a_record_are_written_by_the_template(tmp_path):
    template = "{% if tools %}{{ tools[0].name }} {% endif %}" + TEMPLATE
    record = {"messages": [USER, ANSWER], "tools": [{"name": "c"}]}
    (sequence,) = LogitStore.open(str(written(tmp_path, record, "messages", template))).iter_sequences()
    assert sequence.token_ids_T[0] == WORDS["c"]


LAST_REASONING = (
    "{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<bot> ' }}"
    "{% if m.role == 'assistant' and loop.last and m.reasoning_content %}{{ m.reasoning_content }} {% endif %}"
    "{{ m.content }} {% if m.role == 'assistant' %}<eos> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot> {% endif %}"
)


@pytest.mark.parametrize("names", [("reasoning_content",), ("thinking",), ("reasoning", "reasoning_content")])
def test_reasoning_is_read_by_any_of_its_names_and_of_the_last_turn_alone(tmp_path, names):
    """As Qwen3's template does; vLLM answers with two of the names. What was refused hung on which record came
    first."""
    answer = {**ANSWER, **dict.fromkeys(names, "c")}
    path = written(tmp_path, {"messages": [USER, answer, USER, answer]}, "messages", LAST_REASONING)
    (sequence,) = LogitStore.open(str(path)).iter_sequences()
    said = "<user> a <bot> b <eos> <user> a <bot> c b <eos>"
    assert sequence.token_ids_T.tolist() == [WORDS[word] for word in said.split()]


def test_a_message_that_a_longer_conversation_loses_is_named(tmp_path):
    losing = TEMPLATE.replace(
        "{{ m.content }}", "{% if not (loop.first and messages | length > 2) %}{{ m.content }}{% endif %}"
    )
    first, long = {"role": "user", "content": "d"}, [USER, ANSWER]
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"messages": one}) + "\n" for one in (long, [first, ANSWER, *long]))
    )
    source = TextSource(uri=str(tmp_path / "in.jsonl"), kind="messages")
    with pytest.raises(ConfigError, match=r"record 2.*does not read 'content' of message 1, of 'user'"):
        text_store(source, tokenizer(losing), tmp_path / "texts", vocab_size=8)


def test_a_template_that_divides_by_zero_refuses_the_record_and_one_that_is_none_the_run(tmp_path):
    for template in ("{{ 1 / 0 }}", "{{ range(10 ** 12) | list }}"):
        with pytest.raises(ConfigError, match=r"in.jsonl record 1.*the chat template refuses the messages"):
            written(tmp_path, {"messages": [USER, ANSWER]}, "messages", template)
    with pytest.raises(ConfigError, match=r"the student's tokenizer is no valid Jinja \(line 1: "):
        written(tmp_path, {"messages": [USER, ANSWER]}, "messages", "{% if %}")
