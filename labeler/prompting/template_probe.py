"""What a chat template reads of a conversation. What it does not read is found, never dropped in silence."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from labeler.errors import BadRecordError, ChatTemplateError
from labeler.prompting.bad_records import shown
from labeler.prompting.tokenization import Conversation, Message, Tokenizer
from logitstore.inputs.chat_templates import REASONING_NAMES
from logitstore.inputs.parts import LEARNING_KEYS

ALWAYS_READ = ("role", "content")
NO_PART_OF_IT = frozenset(
    {
        "id",
        *LEARNING_KEYS,
        "index",
        "timestamp",
        "created_at",
        "annotations",
        "tool_call_id",
        "message_id",
        "parent_id",
    }
)
"""Keys of messages that say nothing to a model. A tool's answer stands after its call, whatever its id."""
COMMON_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles of OpenAI's form, which templates that print any role are made for."""
NAMES_OF_ASSISTANTS = ("model", "bot", "ai", "gpt", "chatgpt", "bing", "bard", "claude", "llm")
"""Names of the assistant in data of some kinds. A template may print them, but no answer is found by them."""
PROBE_CONTENT = "penumbra other content"


class TemplateProbe:
    """Answers for one job's template, kept by role and key."""

    def __init__(self, tokenizer: Tokenizer, ignored_keys: Sequence[str] = ()) -> None:
        """`ignored_keys` are the keys that the job allows to be lost."""
        self._tokenizer = tokenizer
        self._ignored = NO_PART_OF_IT | set(ignored_keys)
        self._reads: dict[tuple[str, str], bool] = {}

    def check_contents(self, conversation: Conversation, text: str) -> bool:
        """Whether all that the messages say stands as it is in `text`, the rendered conversation.

        Raises BadRecordError where a message is left out altogether, or its role is none of the template's.
        """
        template, whole = self._tokenizer.chat_template, True
        for place, message in enumerate(conversation.messages):
            role, content = message["role"], message["content"]
            if template is not None and not _knows(template, role):
                raise BadRecordError(
                    f"message {place + 1} is of the role {role!r}, which is neither one of "
                    f"{', '.join(COMMON_ROLES)} nor named in the chat template; rename it in the records, or "
                    "set input.chat_template to a template that names it",
                    "unknown_role",
                )
            if not isinstance(content, str) or not content.strip():
                continue
            stands = content.strip() in text
            whole = whole and stands
            if stands and self._reads.get((role, "content")):
                continue
            other = {**message, "content": PROBE_CONTENT}
            messages = (*conversation.messages[:place], other, *conversation.messages[place + 1 :])
            if not self._differs(conversation, replace(conversation, messages=messages)):
                raise BadRecordError(
                    f"the chat template leaves out message {place + 1}, of {role!r}, so the teacher would "
                    f"not see {shown(content)}; set input.chat_template to a template that reads it, put it "
                    "into a message that is read, or leave it out of the record",
                    "unread_message",
                )
            self._reads[role, "content"] = True
        return whole

    def check(self, conversation: Conversation) -> None:
        """Raises BadRecordError if the template does not read something that belongs to the conversation."""
        for place, message in enumerate(conversation.messages):
            for key, value in message.items():
                if key in ALWAYS_READ or key in self._ignored or value in (None, "", [], {}, False):
                    continue
                if message["role"] == "tool" and key == "name":
                    continue  # The call before names the function.
                if not self._reads_key(conversation, place, key):
                    raise BadRecordError(
                        f"the chat template does not read {key!r} of a message of {message['role']!r}, so "
                        f"the teacher would not see {shown(value)}; set input.chat_template to a template "
                        f'that does, or input.ignore_keys = ["{key}"] to label the conversation without it',
                        "unread_key",
                    )
        for key in ("tools", "documents"):
            if (
                key not in self._ignored
                and getattr(conversation, key)
                and not self._reads_list(conversation, key)
            ):
                raise BadRecordError(
                    f"the chat template does not read the record's {key}, so the teacher would not see "
                    "them; set input.chat_template to a template that does, or "
                    f'input.ignore_keys = ["{key}"]',
                    "unread_key",
                )

    def _reads_key(self, conversation: Conversation, place: int, key: str) -> bool:
        role = conversation.messages[place]["role"]
        if not self._reads.get((role, key)):
            # A template may leave a key out by its place, as with the reasoning of earlier turns: also
            # tried with the message as the last.
            messages = conversation.messages
            candidates = (messages, messages[: place + 1])
            value = messages[place][key]
            names = [name for name in REASONING_NAMES if messages[place].get(name) == value]
            names = names if key in names else [key]
            self._reads[role, key] = any(
                self._differs(
                    Conversation(tried, conversation.tools, conversation.documents),
                    Conversation(_without(tried, place, names), conversation.tools, conversation.documents),
                )
                for tried in candidates
            )
        return self._reads[role, key]

    def _reads_list(self, conversation: Conversation, key: str) -> bool:
        if not self._reads.get(("", key)):
            without = Conversation(
                conversation.messages,
                None if key == "tools" else conversation.tools,
                None if key == "documents" else conversation.documents,
            )
            self._reads["", key] = self._differs(conversation, without)
        return self._reads["", key]

    def _differs(self, one: Conversation, other: Conversation) -> bool:
        return self._rendered(one) != self._rendered(other)

    def _rendered(self, conversation: Conversation) -> str | None:
        try:
            return self._tokenizer.render_chat(conversation, add_generation_prompt=False)
        except ChatTemplateError:
            return None


def _knows(template: str, role: str) -> bool:
    """Whether a template is made for a role: a common one, or one that it names in quotes."""
    if role in COMMON_ROLES:
        return True
    return (
        role.lower() not in NAMES_OF_ASSISTANTS
        and re.search(rf"""['"]{re.escape(role)}\\?['"]""", template) is not None
    )


def _without(
    messages: Sequence[Message], place: int, names: Collection[str]
) -> tuple[dict[str, Any] | Message, ...]:
    return tuple(
        {name: value for name, value in message.items() if name not in names} if i == place else message
        for i, message in enumerate(messages)
    )
