"""The tokenizer of a job's teacher, and what every tokenizer offers.

`transformers` is imported only when a real tokenizer is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from labeler.config.loading import InputConfig, SamplingConfig, TeacherConfig
from labeler.errors import ChatTemplateError
from labeler.prompting.byte_tokenizer import ByteTokenizer
from labeler.teacher.response_ends import ResponseEnds, named_in_files, union_of_ends
from logitstore.common.config_file import ConfigError
from logitstore.common.terminal import first_line
from logitstore.inputs.chat_templates import template_errors
from logitstore.manifest.fields import TokenizerInfo
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.models.folder import json_object, refuse_no_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
"""{"role": ..., "content": ...} and whatever else the chat template reads of it."""
PROBE_QUESTION, PROBE_ANSWER = "penumbra question", "penumbra answer"
"""Contents by which the places of a rendered conversation are found."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat template is given of a record."""

    messages: tuple[Message, ...]
    tools: list[Any] | None = None
    """Functions that the assistant may call."""
    documents: list[Any] | None = None
    """Texts that the assistant answers from."""


class Tokenizer(Protocol):
    """Text to ids, and messages to text."""

    @property
    def info(self) -> TokenizerInfo: ...

    @property
    def ends(self) -> ResponseEnds:
        """Where responses end."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The template's text; None where there is none, or none that is a text of its own."""
        ...

    @property
    def special_tokens(self) -> str:
        """Special tokens by role, as JSON."""
        ...

    @property
    def bos_ids(self) -> tuple[int, ...]:
        """What the tokenizer puts before a text of itself: (BOS,) or nothing."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone; marker names in it become markers."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def render_chat(self, conversation: Conversation, *, add_generation_prompt: bool) -> str:
        """The conversation in the chat template. Raises ChatTemplateError for a conversation that it refuses,
        ConfigError for a template that is none."""
        ...

    def answers_marked(self, conversation: Conversation) -> tuple[list[int], list[int]] | None:
        """Ids of the rendered conversation and, for each, 1 where the template marks it with {% generation %}
        as the assistant's, else 0; None for a template without such marks, or a tokenizer that cannot say
        where in the text its tokens stand."""
        ...


class HuggingFaceTokenizer:
    """The teacher's own tokenizer, with its own chat template or the job's."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        named_ends: Sequence[tuple[int, str]] = (),
        stop: Sequence[str] = (),
    ) -> None:
        """`named_ends` are the (id, source) that the model's files and the job's settings name, besides those
        of the tokenizer and the template, which are found here; `stop` are the job's stop strings."""
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        plain = self.encode("a")
        marked = list(tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"])
        place = next((i for i in range(len(marked)) if marked[i : i + len(plain)] == plain), 0)
        # What a tokenizer appends of itself, an end of text, would stand between prompt and response.
        self._bos_ids = tuple(marked[:place])
        self._ends = self._find_ends(list(named_ends), stop)

    @property
    def info(self) -> TokenizerInfo:
        return TokenizerInfo(
            fingerprint=tokenizer_fingerprint(self._tokenizer.get_vocab()), vocab_size=len(self._tokenizer)
        )

    @property
    def ends(self) -> ResponseEnds:
        return self._ends

    @property
    def bos_ids(self) -> tuple[int, ...]:
        return self._bos_ids

    @property
    def chat_template(self) -> str | None:
        template = self._tokenizer.chat_template if self._chat_template is None else self._chat_template
        return json.dumps(template, sort_keys=True) if isinstance(template, dict) else template

    @property
    def special_tokens(self) -> str:
        return json.dumps(self._tokenizer.special_tokens_map, sort_keys=True, ensure_ascii=False, default=str)

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None or self._tokenizer.chat_template is not None

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def render_chat(self, conversation: Conversation, *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateSyntaxError

        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in conversation.messages],
                tools=conversation.tools,
                documents=conversation.documents,
                chat_template=self._chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._chat_template_kwargs,
            )
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template is no valid Jinja (line {error.lineno}: {error.message}); correct it, or "
                "set input.chat_template to another one"
            ) from None
        except template_errors() as error:
            raise ChatTemplateError(f"the chat template refuses the messages: {error}") from None
        return str(text)

    def answers_marked(self, conversation: Conversation) -> tuple[list[int], list[int]] | None:
        if not self._tokenizer.is_fast or not re.search(r"{%-?\s*generation\b", self.chat_template or ""):
            return None
        rendered: Any = self._tokenizer.apply_chat_template(
            [dict(message) for message in conversation.messages],
            tools=conversation.tools,
            documents=conversation.documents,
            chat_template=self._chat_template,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **self._chat_template_kwargs,
        )
        return list(rendered["input_ids"]), list(rendered["assistant_masks"])

    def _find_ends(self, named: list[tuple[int, str]], stop: Sequence[str]) -> ResponseEnds:
        tokenizer = self._tokenizer
        eos: Any = tokenizer.eos_token_id
        if eos is not None:
            named.append((int(eos), "tokenizer"))
        added = dict(tokenizer.added_tokens_decoder)
        if self.has_chat_template and (end := self._end_in_template(added)) is not None:
            named.append((end, "chat template"))
        by_text = {str(token): token_id for token_id, token in added.items()}
        named += [(by_text[text], "sampling.stop") for text in stop if text in by_text]
        tokens = union_of_ends(named, self.decode)
        markers = {token_id for token_id, token in added.items() if token.special}
        return ResponseEnds(
            tokens=tokens,
            stop=tuple(text for text in stop if text not in by_text),
            blank_ids=frozenset({*markers, *(token.token_id for token in tokens), *self._white_space_ids()}),
        )

    def _end_in_template(self, added: Mapping[int, Any]) -> int | None:
        """The marker that the chat template puts straight after an assistant's turn; None if it puts none."""
        messages = (
            {"role": "user", "content": PROBE_QUESTION},
            {"role": "assistant", "content": PROBE_ANSWER},
        )
        try:
            text = self.render_chat(Conversation(messages), add_generation_prompt=False)
        except (ChatTemplateError, ConfigError):  # told where the job needs the template
            return None
        _, found, after = text.rpartition(PROBE_ANSWER)
        ids = self.encode(after.strip()) if found else []
        return ids[0] if ids and ids[0] in added else None

    def _white_space_ids(self) -> list[int]:
        """Ids of which every character is white space, in the spellings of byte BPE and SentencePiece."""
        blank = set(" \t\r\n\u2581\u0120\u010a\u010d\u0109")
        return [i for token, i in self._tokenizer.get_vocab().items() if token and set(token) <= blank]


def load_tokenizer(
    config: TeacherConfig, chat: InputConfig | None = None, sampling: SamplingConfig | None = None
) -> HuggingFaceTokenizer | ByteTokenizer:
    """The tokenizer of the job's teacher, with the job's chat template and stops where these are given.

    Raises ConfigError where there is none.
    """
    stop = sampling.stop if sampling is not None else ()
    stop_token_ids = sampling.stop_token_ids if sampling is not None else ()
    if config.engine == "fake":
        return ByteTokenizer(config.fake.vocab_size, stop, stop_token_ids)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        tokenizer("a", verbose=False)  # some of what stands in its files is looked at now alone
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"teacher.model = {config.model!r}: its tokenizer cannot be loaded ({first_line(error)}); "
            "give the folder or the Hugging Face id of a complete model"
        ) from None
    except Exception as error:  # noqa: BLE001  # of any kind, for whatever stands in the model's files
        # The tokenizers library raises bare Exception for a file of a version that it does not know.
        is_newer = "untagged enum" in str(error)
        problem = "tokenizer.json is of a newer form than the installed tokenizers library reads"
        raise ConfigError(
            f"teacher.model = {config.model!r}: its {problem if is_newer else 'tokenizer cannot be read'} "
            f"({first_line(error)}); "
            + (
                "upgrade tokenizers and transformers"
                if is_newer
                else "correct its files, or fetch them again"
            )
        ) from None
    refuse_no_tokens(tokenizer, config.model, "teacher.model")
    named = named_in_files(lambda name: model_file(config, name))
    named += [(token_id, "sampling.stop_token_ids") for token_id in stop_token_ids]
    loaded = HuggingFaceTokenizer(
        tokenizer,
        chat_template=_template_of(chat) if chat is not None else None,
        chat_template_kwargs=chat.chat_template_kwargs if chat is not None else None,
        named_ends=named,
        stop=stop,
    )
    if chat is not None:
        _refuse_unread(chat.chat_template_kwargs, loaded.chat_template)
    return loaded


def _refuse_unread(variables: Mapping[str, Any], template: str | None) -> None:
    """A variable that the template does not read would change nothing, and nobody would know."""
    unread = [name for name in variables if template and not re.search(rf"\b{re.escape(name)}\b", template)]
    if unread:
        raise ConfigError(
            f"input.chat_template_kwargs sets {unread[0]!r}, which the chat template does not read; correct "
            "its name, or remove it"
        )


def model_file(config: TeacherConfig, name: str) -> Mapping[str, Any] | None:
    """A JSON file of the teacher's model; None where it has none of that name.

    Raises ConfigError for one that is cut or damaged.
    """
    from transformers.utils.hub import cached_file

    path = cached_file(
        config.model, name, revision=config.revision, _raise_exceptions_for_missing_entries=False
    )
    return None if path is None else json_object(Path(path), "teacher.model", config.model)


def _template_of(chat: InputConfig) -> str | None:
    """The chat template that the job names a file of; None for the tokenizer's own."""
    if isinstance(chat.chat_template, bool):
        return None
    try:
        return Path(chat.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"input.chat_template = {chat.chat_template!r} cannot be read ({error}); give true, false or the "
            "path of a Jinja template"
        ) from None
