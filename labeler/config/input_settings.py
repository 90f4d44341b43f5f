"""`[input]`: what a record holds and how the teacher is shown it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from logitstore.common.section import HomePath, Section, of_form

InputKind = Literal["auto", "messages", "prompt", "prompt_response", "text", "token_ids"]

FIELDS_BY_KIND: dict[InputKind, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt": ("prompt",),
    "prompt_response": ("prompt", "response"),
    "text": ("text",),
    "token_ids": ("token_ids",),
}
"""Roles that every record of a kind must have."""
OPTIONAL_FIELDS_BY_KIND: dict[str, tuple[str, ...]] = {
    "messages": ("tools", "documents", "system", "student_messages"),
    "prompt": ("system", "context", "student_prompt"),
    "prompt_response": ("system", "context", "student_prompt"),
    "text": (),
    "token_ids": ("response_token_ids", "loss_mask", "segments", "student_token_ids"),
}
"""Roles that a record may have. Messages' own `tools` and `documents` are read without being named; the
`context` is put after the prompt, as Alpaca's `input`; `system` is the record's own system prompt; a
`loss_mask` has a 0 or 1 for each of the given ids, `segments` one of "context", "reasoning", "answer", "tool"
and "end" (or its number, 0 to 4). Those that begin with `student_` are what a student shall
see in place of the teacher's prompt: to answer as if it had seen what only the teacher did."""
SET_FOR_TEMPLATES = ("messages", "conversation", "tools", "documents", "add_generation_prompt")
"""Variables of a chat template that the labeler sets itself."""
STUDENT_ROLES = ("student_messages", "student_prompt", "student_token_ids")


class InputConfig(Section):
    uri: HomePath = Field(min_length=1)
    """Path, glob or URL (local, s3://) of JSONL (also .gz, .zst), Parquet or Arrow files."""
    known_as: str = ""
    """The place by which a store knows its input where `uri` is another in every run; "" for `uri` itself.
    `penumbra cluster submit` gives it to an input that travels with the job."""
    kind: InputKind
    """What a record holds. "auto" is found from the first records when the job starts, and said: chats of
    OpenAI's and ShareGPT's form, OpenAI's batch files, Alpaca's, tables with usual names. `fields` that are
    given stay, others are found, as is labels.mode where it is not set."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Names of the record's fields by role, for example {prompt = "question", response = "answer"}; a role
    not named here is a field of the role's own name. Dots reach into nested objects."""
    id: str | None = None
    """Field holding a record's id; None, or "", makes a stable id from the content. Where the kind of the
    input is found and this is not set, a field `id` (or `custom_id`) is taken if every record has an id in it
    and no two the same: the input is read once more for that. A store that was begun keeps to what it has."""
    chat_template: bool | HomePath = True
    """Put prompts and messages into the tokenizer's chat template, or into the Jinja template of that file;
    false concatenates plain text."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, such as {enable_thinking = false} or {date_string = "1 Jan 2026"}."""
    ignore_keys: tuple[str, ...] = ()
    """Keys of messages (or "tools", "documents") that may be lost where the chat template does not read them;
    a record with any other such key is rejected."""
    list_of_texts: Literal["refuse", "join", "each", "first"] = "refuse"
    """What a list of strings in the place of one text (prompt, response or text) becomes: a reject, one text
    with empty lines between, a record for each, whose id has "#text-1" and so on behind it, or its first."""
    system_prompt: str | None = None
    """A system message put before prompts that have none; needs the chat template."""
    student_system_prompt: str | None = None
    """The system message of the student's prompt in place of the teacher's, "" for none: the student learns
    to answer as if it had the teacher's. System messages further on in a conversation stay for both. None
    gives both the same prompt."""
    prompt_seen: Literal["teacher", "student"] = "teacher"
    """Which of a record's two prompts `teacher.model` answers, where students see another one. "student" lets
    a student write to its own prompt, and the store keeps the teacher's in the place of the student's: with
    labels.mode = "generate", and so that its teacher can score what it wrote (`cluster rounds`)."""
    limit: int | None = Field(default=None, ge=1)
    """Take only the first so many records of the input. It may be raised in a store: what is labeled stays,
    and the further records are planned."""
    slice: Annotated[
        str,
        of_form(
            r"([0-9]+/[1-9][0-9]*)?", "a slice is NUMBER/SLICES, as '0/4' for the first of four; write it so"
        ),
    ] = ""
    """Take only one slice of the input, as "NUMBER/SLICES" with numbers from 0: "1/4" is every fourth record
    from the second on. Each has a store of its own; `penumbra store merge` joins them. "" takes all."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """fsspec options of the input's storage, such as endpoint_url; credentials come from the environment."""

    @field_validator("id")
    @classmethod
    def _no_id_is_none(cls, name: str | None) -> str | None:
        return name or None

    @model_validator(mode="after")
    def _roles(self) -> InputConfig:
        if self.kind == "auto":
            return self
        known = {*FIELDS_BY_KIND[self.kind], *OPTIONAL_FIELDS_BY_KIND[self.kind]}
        if unknown := sorted(set(self.fields) - known):
            raise ValueError(
                f"fields names the role {unknown[0]!r}, but kind {self.kind!r} has only "
                f"{', '.join(sorted(known))}; remove it or change input.kind"
            )
        if self.system_prompt is not None and not self.chat_template:
            raise ValueError("system_prompt needs chat_template = true: plain text has no system message")
        is_plain = not self.chat_template or self.kind in ("text", "token_ids")
        if self.student_system_prompt is not None and is_plain:
            raise ValueError(
                "student_system_prompt needs messages or prompts in a chat template: plain text and "
                "token ids have no system message; set input.chat_template = true"
            )
        if self.prompt_seen == "student" and not self.has_student_prompts:
            raise ValueError(
                'prompt_seen = "student", but no record has a prompt of the student\'s own; name it by '
                'input.fields or student_system_prompt, or set prompt_seen = "teacher"'
            )
        first, _, parts = self.taken
        if first >= parts:
            raise ValueError(
                f"slice = {self.slice!r} is none of {parts} slices, whose numbers are 0 to {parts - 1}; "
                f"{first} is too large"
            )
        if owned := [name for name in SET_FOR_TEMPLATES if name in self.chat_template_kwargs]:
            raise ValueError(
                f"chat_template_kwargs sets {owned[0]!r}, which is set for every record from what it holds; "
                "remove it"
            )
        if self.chat_template_kwargs and not self.chat_template:
            raise ValueError("chat_template_kwargs needs chat_template = true or the path of a template")
        return self

    @property
    def taken(self) -> tuple[int, int | None, int]:
        """Start, stop and step of the job's records in the input, as of a slice."""
        number, _, parts = self.slice.partition("/")
        return (int(number), self.limit, int(parts)) if self.slice else (0, self.limit, 1)

    @property
    def has_student_prompts(self) -> bool:
        """Whether students see other prompts than the teacher."""
        return self.student_system_prompt is not None or any(role in self.fields for role in STUDENT_ROLES)

    def field_names(self) -> dict[str, str]:
        """The record's field for every role of the kind, "id" included where it is given."""
        names = {role: self.fields.get(role, role) for role in FIELDS_BY_KIND.get(self.kind, ())}
        names.update(self.fields)
        if self.id is not None:
            names["id"] = self.id
        return names
