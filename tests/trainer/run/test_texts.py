"""Plain text as a store: which tokens are learned, and that it is read once."""

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
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
    ],
)
def test_a_record_that_cannot_be_used_is_named(tmp_path, record, kind, template, words):
    with pytest.raises(ConfigError, match=r"in.jsonl record 1.*" + words):
        written(tmp_path, record, kind, template)
    assert not list((tmp_path / "texts").iterdir())
