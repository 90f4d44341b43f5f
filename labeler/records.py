"""What the stages of a job hand to each other: prompts, units, leases, and what workers tell the driver.

Shape legend: T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from logitstore.manifest.fields import ShardEntry, TeacherInfo
from logitstore.records import Reject


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """One input record as the teacher takes it: ids only, so that no teacher tokenises on its own."""

    record_id: str
    """Id of the input record, unique among the prompts of one `label` call."""
    prompt_token_ids: np.ndarray
    """int32 [T], what stands before the response; empty for plain text that is scored as a whole."""
    response_token_ids: np.ndarray | None
    """int32 [T], the given response (mode "score"); None where the teacher writes it ("generate")."""
    label_start: int
    """First labeled position of prompt + response, at least 1, at most the sequence's length."""
    loss_mask_T: np.ndarray | None = None
    """bool over prompt + given response: positions a training loss counts. None: every labeled one.
    In mode "generate" it covers the prompt, and every generated token counts."""
    segments_T: np.ndarray | None = None
    """uint8 over prompt + given response, `logitstore.records.Segment`; None: found by marks, if at all."""
    student_prompt_token_ids: np.ndarray | None = None
    """int32 [T], the prompt of a student in place of the teacher's; None: the same."""

    given_ids_NK: np.ndarray | None = None
    """int32 [N, K] for the rows from `label_start` on, the ids at which a row is wanted, -1 beyond them; None
    for the likeliest ids. Not in the plan: the worker finds them (`worker/given_ids.py`)."""

    @property
    def num_tokens(self) -> int:
        """Tokens the engine is given: prompt plus given response."""
        response = 0 if self.response_token_ids is None else len(self.response_token_ids)
        return len(self.prompt_token_ids) + response

    @property
    def token_ids(self) -> np.ndarray:
        """int32 [T], what the engine is given: prompt plus given response."""
        response = () if self.response_token_ids is None else (self.response_token_ids,)
        return np.concatenate([self.prompt_token_ids, *response]).astype(np.int32)


@dataclass(frozen=True, slots=True)
class PlannedRecord:
    """One record of a unit: its ids, and where it came from."""

    prompt: TokenizedPrompt
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Where a unit's records lie, and how much work they are."""

    unit_id: str
    """Hash of the ids of its records: the same input and configuration give the same unit."""
    unit_index: int
    """Place in the plan."""
    segment: str
    """Name of the plan object that holds the records."""
    offset: int
    """First byte of the unit in the segment."""
    num_bytes: int
    num_records: int
    num_tokens: int
    """Tokens of prompts and given responses."""


@dataclass(frozen=True, slots=True)
class TeacherDescription:
    """What a started teacher really is; known for certain only after its self-test."""

    info: TeacherInfo
    vocab_size: int
    """V, the width of the logits; every id of a prompt must lie below it."""
    max_model_len: int
    """Most tokens of prompt plus response, generated ones included."""
    exact_temperatures: tuple[float, ...]
    """Temperatures at which `logsumexp` and tail mass are exact, ascending from 1.0. Only (1.0,) where
    the labels come through the public API."""
    value_kind: str
    """How a store should keep the logits: "logit_f16" for bf16 and fp16 teachers, "gap_f16" for fp32."""


@dataclass(frozen=True, slots=True)
class Billed:
    """What the server of a teacher has taken and written since the teacher was started."""

    input_tokens: int = 0
    output_tokens: int = 0
    """As the server says in its answers, those included that were of no use."""
    num_answers: int = 0
    num_lost: int = 0
    """Requests whose answer did not come whole: the server may have billed them."""
    num_on_the_way: int = 0
    """Requests made and not answered yet."""

    def __add__(self, more: Billed) -> Billed:
        return Billed(
            self.input_tokens + more.input_tokens,
            self.output_tokens + more.output_tokens,
            self.num_answers + more.num_answers,
            self.num_lost + more.num_lost,
            self.num_on_the_way + more.num_on_the_way,
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """A unit in a worker's hands."""

    lease_id: int
    unit: WorkUnit
    worker_id: str
    skip: tuple[tuple[int, str], ...] = ()
    """Positions of records that killed engines, with the reason: they become rejects of the unit."""
    trial: tuple[int, ...] | None = None
    """Not None: label only these positions and throw the labels away (bisection)."""
    alone: bool = False
    """The unit is suspected of killing engines: its worker holds no other, so that the outcome is beyond
    doubt. Always so for a trial."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an actor came to be."""

    node_id: str
    host: str
    process_id: int
    cores: tuple[int, ...]
    """Logical CPUs the process may run on."""
    other_node_ids: tuple[str, ...] = ()
    """Nodes of the replica's further machines."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The lease's unit is in the store, with this worker's shard or with another's."""

    lease_id: int
    entry: ShardEntry
    """The row that counts for the unit, whoever wrote it."""
    won: bool
    """Whether this lease's shard is the one that counts."""
    rejects: tuple[Reject, ...] = ()
    """Records of the unit without labels."""
    filtered: dict[str, int] = field(default_factory=dict)
    """Responses that each filter found, dropped or flagged."""
    engine_sec: float = 0.0
    """Time in the engine."""
    own_sec: float = 0.0
    """Time reading, filtering, writing and committing."""


@dataclass(frozen=True, slots=True)
class PassedTrial:
    """The records of the lease's trial were labeled, and the engine lives; their labels are thrown away."""

    lease_id: int
    engine_sec: float


@dataclass(frozen=True, slots=True)
class GaveBack:
    """The worker was told to leave before the unit was in its engine; another worker may have it."""

    lease_id: int


UnitResult = Committed | PassedTrial | GaveBack
"""What became of a lease."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life."""

    progress: int
    """Grows whenever a sequence is labeled, a step of a unit is done, or a server has answered or not."""
    in_engine: tuple[int, ...]
    """The leases that the engine is labeling, oldest first; to be suspected should the process die now."""
    num_sequences: int
    num_tokens: int
    """Sequences and tokens labeled since the start, whether committed by now or not."""
