"""What a labeling job leaves in its store beside the labels: the objects' names, and its status.

The labeler writes these; the viewer, the garbage collector and the cluster's tools read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

JOB_NAME = "job.json"
"""Every setting of the job, secrets blanked."""
LEASE_NAME = "driver.json"
"""Who drives the job."""
STATUS_NAME = "status.json"
"""How far the job is: a `JobStatus`."""
REJECTS_NAME = "rejects.jsonl"
"""Every record without labels."""
PLAN_PREFIX = "plan/"
PLAN_HEAD_NAME = f"{PLAN_PREFIX}head.json"
PLAN_INPUT_NAME = f"{PLAN_PREFIX}input.json"
PLAN_SEGMENTS_PREFIX = f"{PLAN_PREFIX}segments/"
LOGS_PREFIX = "logs/"
RUNS_PREFIX = f"{LOGS_PREFIX}runs/"
"""A `RunRecord` of each run."""
BILLS_PREFIX = f"{LOGS_PREFIX}bills/"
"""A `Bill` of each worker that asked a server."""
RETOKENIZED_NAME = "retokenized.json"
"""What `penumbra store retokenize` kept of its source."""
RETOKENIZED_PREFIX = "retokenized/"
"""The same of each unit."""
CARD_NAME = "README.md"
"""The dataset card of a published store."""
JOB_NAMES = frozenset((JOB_NAME, LEASE_NAME, STATUS_NAME, REJECTS_NAME, RETOKENIZED_NAME))
JOB_PREFIXES = (PLAN_PREFIX, LOGS_PREFIX, RETOKENIZED_PREFIX)
"""With `JOB_NAMES`: all that a job keeps beside its labels."""


JobState = Literal[
    "planning", "starting", "running", "draining", "finished", "stopped", "failed", "interrupted"
]
"""`interrupted` is said by readers only: the driver is gone and could not say so itself."""
ACTIVE_STATES: frozenset[JobState] = frozenset({"planning", "starting", "running", "draining"})

Device = Literal["gpu", "core"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What work has cost, or is expected to cost."""

    device: Device
    device_sec: float
    """Devices times the seconds they were held, loading included."""
    num_tokens: int
    num_bytes: int
    compute: float
    """Money for the devices; 0 where no price is given."""
    storage_per_month: float
    """Money for keeping the bytes a month; 0 where no price is given."""
    currency: str
    billed: float = 0.0
    """Money for the tokens that a server took and wrote, all runs of the job together."""
    billed_input_tokens: int = 0
    billed_output_tokens: int = 0
    answers_lost: int = 0
    """Requests that may have been billed and whose answer did not come whole, so that it is not counted."""
    answers_on_the_way: int = 0
    """Requests not answered when their worker last said something; a worker that was killed leaves them."""

    @property
    def device_sec_per_million_tokens(self) -> float:
        return self.device_sec / self.num_tokens * 1e6 if self.num_tokens else 0.0

    def as_record(self) -> dict[str, Any]:
        return {**asdict(self), "device_sec_per_million_tokens": self.device_sec_per_million_tokens}

    def __str__(self) -> str:
        text = (
            f"{self.device_sec:,.0f} {self.device} seconds "
            f"({self.device_sec_per_million_tokens:,.0f} per million tokens), {self.num_bytes / 1e6:,.2f} MB"
        )
        if self.compute:
            text += f", {self.compute:,.4f} {self.currency}"
        if self.storage_per_month:
            text += f", {self.storage_per_month:,.6f} {self.currency} a month to keep"
        return f"{text}; {self.bill_in_words}" if self.has_bill else text

    @property
    def has_bill(self) -> bool:
        """Whether a server was asked."""
        return bool(self.billed_input_tokens or self.answers_lost or self.answers_on_the_way)

    @property
    def bill_in_words(self) -> str:
        """What the server billed in all runs, and what is not known of it."""
        text = (
            f"the server billed {self.billed_input_tokens:,} tokens given and {self.billed_output_tokens:,} "
            f"written, {self.billed:,.4f} {self.currency} in all runs"
        )
        if self.answers_lost:
            text += f"; {self.answers_lost:,} answers were lost and are not counted"
        if self.answers_on_the_way:
            text += f"; {self.answers_on_the_way:,} were on the way and are not counted"
        return text


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What one run of a job has cost by `updated`."""

    owner: str
    """Who ran it: a name, or user@host."""
    state: JobState
    started: str
    """UTC, ISO 8601, as `updated`."""
    updated: str
    device: Device
    device_sec: float
    """Devices times the seconds they were held, loading included."""
    num_tokens: int
    compute: float
    """Money for the devices; 0 where no price was given."""
    currency: str


@dataclass(frozen=True, slots=True)
class Bill:
    """What a server billed one worker by the time that it wrote this."""

    worker: str
    input_tokens: int
    output_tokens: int
    """As the server says in its answers."""
    num_answers: int
    num_lost: int
    """Requests whose answer did not come whole: the server may have billed them."""
    num_on_the_way: int
    """Requests made and not answered yet."""
    input_price: float
    """Money for a million tokens, as `output_price`; 0 where none was given."""
    output_price: float
    currency: str

    @property
    def money(self) -> float:
        return (self.input_tokens * self.input_price + self.output_tokens * self.output_price) / 1e6


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A replica as status and progress show it."""

    name: str
    node: str = ""
    state: str = ""
    """What the replica does: "starting", "ready", ..."""
    unit: str | None = None
    """The unit at work."""
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One look at a job; the fields of `status.json`."""

    state: JobState
    started: str = ""
    """UTC, ISO 8601; "" where no driver said it."""
    updated: str = ""
    units_done: int = 0
    units_total: int = 0
    sequences: int = 0
    tokens: int = 0
    """Tokens of the stored sequences, prompts included."""
    rows: int = 0
    """Label rows."""
    bytes: int = 0
    rejects: int = 0
    rejects_by_kind: Mapping[str, int] = field(default_factory=dict)
    filtered: Mapping[str, int] = field(default_factory=dict)
    """Responses that each filter found, dropped or flagged, in this run."""
    tokens_per_second: float = 0.0
    """Over the last half minute."""
    bytes_per_token: float = 0.0
    """Stored bytes per label row."""
    seconds_left: float | None = None
    workers: tuple[WorkerView, ...] = ()
    failures: int = 0
    failures_by_kind: Mapping[str, int] = field(default_factory=dict)
    causes: tuple[str, ...] = ()
    """The latest failures, in words."""
    queue_depth: int = 0
    """Units leased out."""
    cost: Cost | None = None
    engine_sec: float = 0.0
    """Time that this run's engines took, summed over workers."""
    own_sec: float = 0.0
    """Time around them: reading, filtering, encoding, committing (beside the engine's next unit)."""
    message: str = ""
    driver: str = ""
    """Which driver said it: its name in `driver.json` then; "" of versions that kept none."""

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE_STATES

    def as_record(self) -> dict[str, Any]:
        """JSON values by field."""
        return {
            **asdict(self),
            "workers": [asdict(worker) for worker in self.workers],
            "causes": list(self.causes),
            "cost": None if self.cost is None else self.cost.as_record(),
        }

    def as_json(self) -> str:
        return json.dumps(self.as_record())
