"""`[labels]`, `[sampling]` and `[filters]`: the labels, how a teacher writes, what is left out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from logitstore.common.section import HomePath, Section
from logitstore.manifest.fields import MAX_TEMPERATURES

MOVED_TO_SAMPLING = ("temperature", "top_p", "max_tokens", "n", "seed", "stop")
"""Settings that were in `[labels]` before `[sampling]` was there; stored plans still name them so."""


class ReasoningMarks(Section):
    """What encloses a teacher's reasoning."""

    start: str = Field(min_length=1)
    """Text that begins it, for example "<think>"."""
    end: str = Field(min_length=1)
    """Text that ends it, for example "</think>"."""


class LabelsConfig(Section):
    mode: Literal["score", "generate"] = "score"
    """"score" labels the given response or text; "generate" lets the teacher write the response."""
    top_k: int = Field(default=64, ge=1)
    """K, the stored entries of a label row."""
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Temperatures with exact stored normalisers, ascending from 1."""
    given: HomePath = ""
    """Score: a store of the same tokens whose ids each row is to have in place of the teacher's likeliest:
    those of a first teacher, or of a student. Rows are made where that store has some, and `top_k` is at most
    its own; it is read with `input.storage_options`."""
    rows: bool = True
    """False keeps what the teacher writes and nothing of its distribution: a store of texts alone, for any
    server, from which a student learns with loss.alpha = 0; `top_k` and `temperatures` mean nothing then."""
    positions: Literal["auto", "response", "all"] = "auto"
    """Which tokens get labels; "auto" is "all" for text and token_ids without a response, else "response"."""
    turns: Literal["last", "all", "each"] = "last"
    """Messages: which of the assistant's turns count. "all" (score) is one sequence, labeled from the first
    answer on, whose loss mask leaves out what others say: by the template's {% generation %} marks where it
    has them, else a template that renders earlier turns otherwise than a last one cannot be had so. "each" is
    a sequence for every turn, whose conversation ends there and whose id has "#turn-1" and so on behind it:
    each is rendered as a last one, and its tokens before are paid for again. In mode "generate" the teacher
    writes every turn after the given ones before it. An answer with weight = 0, as OpenAI's files have it, is
    read and not labeled."""
    segments: bool = True
    """Store of each token of a conversation whether it is context, reasoning, answer, tool call or an end.
    false leaves that out. Fixed with a store's first label, like all of this section; a store that an earlier
    version began without segments goes on without them."""
    reasoning: ReasoningMarks | None = None
    """Marks of the teacher's reasoning, {start = "<think>", end = "</think>"}, by which conversations get
    segments; None finds them in the chat template, and `--dry-run` says which."""
    label_at: Literal["auto", "decode", "rescore"] = "auto"
    """Generate: take labels while decoding, or score the finished response afterwards; "auto" is faster."""

    @field_validator("temperatures")
    @classmethod
    def _ascending_from_one(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        if not temperatures or temperatures[0] != 1.0 or list(temperatures) != sorted(set(temperatures)):
            raise ValueError(
                f"temperatures {list(temperatures)} must ascend from 1.0; for example [1.0, 2.0, 4.0]"
            )
        if len(temperatures) > MAX_TEMPERATURES:
            raise ValueError(
                f"{len(temperatures)} temperatures are more than the {MAX_TEMPERATURES} that a store may "
                "have; name those that students will be trained at"
            )
        return temperatures

    @model_validator(mode="before")
    @classmethod
    def _not_moved(cls, settings: Any) -> Any:
        moved = [name for name in MOVED_TO_SAMPLING if isinstance(settings, dict) and name in settings]
        if moved:
            places = ", ".join(f"sampling.{name} instead of labels.{name}" for name in moved)
            raise ValueError(f"how the teacher samples its responses has its own section; set {places}")
        return settings


class SamplingConfig(Section):
    """How the teacher writes responses; only `labels.mode = "generate"` samples."""

    temperature: float = Field(default=1.0, ge=0)
    """What the logits are divided by before sampling; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the likeliest tokens that have this probability together; 1 is off."""
    top_k: int = Field(default=0, ge=0)
    """Sample from so many likeliest tokens; 0 is off. `labels.top_k` is what gets stored."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Sample only tokens with at least this share of the likeliest token's probability; 0 is off."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1, tokens of the prompt or the response so far become less likely; 1 is off."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken off the logits of tokens that the response has so far; 0 is off."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken off a token's logit for every time that the response has it so far; 0 is off."""
    max_tokens: int = Field(default=512, ge=1)
    """Most tokens of a response."""
    min_tokens: int = Field(default=0, ge=0)
    """Fewest tokens of a response: until then nothing that ends one is sampled, and stop texts do not count;
    0 is off. Labels stay what the teacher says, ends included. A prompt that leaves less room is answered up
    to the teacher's context. `filters.min_tokens` takes short responses out instead."""
    n: int = Field(default=1, ge=1)
    """Responses per prompt."""
    seed: int = Field(default=0, ge=0)
    """The same seed samples the same responses, whichever actor does it."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end a response; one that is a marker of the tokenizer counts as its id."""
    stop_text: Literal["mask", "learn"] = "mask"
    """Whether the tokens of a stop string, which stay in the sequence, count in the loss."""
    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Token ids that end a response, besides the model's own."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> SamplingConfig:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens = {self.min_tokens} is above max_tokens = {self.max_tokens}, so that no "
                "response could end; set sampling.max_tokens higher or sampling.min_tokens lower"
            )
        return self


class FiltersConfig(Section):
    """What happens to responses that are poor training text. All are counted and listed, never silent."""

    truncated: Literal["keep", "flag", "drop"] = "flag"
    """Generate: a response that hit max_tokens."""
    empty: Literal["keep", "flag", "drop"] = "drop"
    """Generate: a response without visible text: markers, white space and closed reasoning alone."""
    no_answer: Literal["keep", "flag", "drop"] = "flag"
    """Generate: a response that ends before its reasoning does."""
    repeated: Literal["keep", "flag", "drop"] = "flag"
    """Generate: a response that ends in a loop: its last `repeated_tokens` tokens have a period of at most
    an eighth of that."""
    repeated_tokens: int = Field(default=64, ge=16)
    """Tokens at the end of a response that are looked at for a loop."""
    min_tokens: int = Field(default=0, ge=0)
    """Generate: responses shorter than this are too short; 0 is off."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Generate: responses longer than this are too long."""
    length: Literal["flag", "drop"] = "drop"
    """Generate: what happens to a response that is too short or too long."""
    duplicate_prompts: Literal["keep", "drop"] = "keep"
    """A record without an id of its own that equals an earlier one; in mode "generate" also a prompt that is,
    token for token, an earlier record's. What is dropped does not count for limits.max_reject_share."""
