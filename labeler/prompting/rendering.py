"""Conversations to text as the teacher is shown them, and ids at the borders of what it writes."""

from __future__ import annotations

from dataclasses import replace

from labeler.errors import BadRecordError, ChatTemplateError
from labeler.prompting.tokenization import Conversation, Tokenizer


def shown(
    tokenizer: Tokenizer, conversation: Conversation, *, add_generation_prompt: bool = False
) -> tuple[Conversation, str]:
    """What the template is given, and its text. Content that is null is given as empty text, which is what is
    meant, where a template cannot take null, or prints it: Jinja writes "None". Raises BadRecordError."""
    nulls = [place for place, message in enumerate(conversation.messages) if message["content"] is None]

    def render(given: Conversation) -> str:
        return tokenizer.render_chat(given, add_generation_prompt=add_generation_prompt)

    def emptied(places: list[int]) -> Conversation:
        given = conversation
        for place in places:
            given = _with_content(given, place, "")
        return given

    try:
        try:
            text = render(conversation)
        except ChatTemplateError:
            if not nulls:
                raise
            return emptied(nulls), render(emptied(nulls))
        printed = [at for at in nulls if text == render(_with_content(conversation, at, "None"))]
        if printed:
            conversation = emptied(printed)
            text = render(conversation)
    except ChatTemplateError as error:
        raise BadRecordError(f"{error}; correct the messages' roles and order", "bad_prompt") from None
    return conversation, text


def _with_content(conversation: Conversation, place: int, content: str) -> Conversation:
    """The conversation with another content of one message."""
    messages = list(conversation.messages)
    messages[place] = {**messages[place], "content": content}
    return replace(conversation, messages=tuple(messages))


def first_marker(tokenizer: Tokenizer) -> str:
    """The marker with which the chat template begins a conversation; "" if it begins with text."""
    try:
        text = tokenizer.render_chat(
            Conversation(({"role": "user", "content": "a"},)), add_generation_prompt=True
        )
    except ChatTemplateError:
        return ""
    ids = tokenizer.encode(text)
    first = tokenizer.decode(ids[:1]) if ids else ""
    return first if len(first) > 2 and ids[0] in tokenizer.ends.blank_ids and first.strip() else ""


def end_texts(tokenizer: Tokenizer) -> tuple[str, ...]:
    """How the model's own ends of a turn look in text, but for words and white space."""
    ends = tokenizer.ends
    own = [end for end in ends.tokens if not all(name.startswith("sampling.") for name in end.named_by)]
    return tuple(end.text for end in own if end.token_id in ends.blank_ids and end.text.strip())


def continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` in the middle of a text: SentencePiece puts a space before what begins one."""
    line_ids, whole_ids = tokenizer.encode("\n"), tokenizer.encode("\n" + text)
    if whole_ids[: len(line_ids)] == line_ids:
        return whole_ids[len(line_ids) :]
    return tokenizer.encode(text)


def up_to_its_end(tokenizer: Tokenizer, response_ids: list[int]) -> list[int]:
    """Up to the token that ends the turn. What templates put behind it is never generated: white space, or
    the end of the whole text, as Phi-3's does."""
    ends = {end.token_id for end in tokenizer.ends.tokens if end.text.strip()}
    stop = len(response_ids)
    for place in reversed(range(len(response_ids))):
        if response_ids[place] in ends:
            stop = place + 1
        elif tokenizer.decode(response_ids[place : place + 1]).strip():
            break
    return response_ids[:stop]


def with_bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """`ids` with the beginning that the tokenizer gives a text of itself, once."""
    bos = list(tokenizer.bos_ids)
    return ids if ids[: len(bos)] == bos else bos + ids
