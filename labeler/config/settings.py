"""The settings of a labeling job, section by section, with their rules.

`[teacher]` and `[input]` have modules of their own. All import neither ray, vllm nor torch. What a field
means stands below it. `loading.py` reads a job from a file and `--set`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from labeler.config.input_settings import InputConfig
from labeler.config.teacher_settings import TeacherConfig
from logitstore.common.section import Section

MOST_LEASES = 16
"""Units that an actor may hold at a time."""

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
    false leaves that out; a store begun with it goes on with it."""
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
    max_tokens: int = Field(default=512, ge=1)
    """Most tokens of a response."""
    n: int = Field(default=1, ge=1)
    """Responses per prompt."""
    seed: int = Field(default=0, ge=0)
    """The same seed samples the same responses, whichever actor does it."""
    stop: tuple[str, ...] = ()
    """Strings that end a response; one that is a marker of the tokenizer counts as its id."""
    stop_text: Literal["mask", "learn"] = "mask"
    """Whether the tokens of a stop string, which stay in the sequence, count in the loss."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a response, besides the model's own."""


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


class OutputConfig(Section):
    uri: str = Field(min_length=1)
    """Folder or URL (s3://) of the store."""
    unit_size: int = Field(default=64, ge=1)
    """Records of a work unit, which becomes one shard."""
    unit_tokens: int = Field(default=65_536, ge=1)
    """Most tokens of a work unit: long records make smaller units, which bounds an actor's memory."""
    codebook_units: int = Field(default=2, ge=0)
    """Units after which the store's shared codebooks are trained; 0 leaves each shard one of its own."""
    retry_sec: float = Field(default=120, ge=0)
    """How long storage that fails is tried again: by actors for the plan and their labels, and by the driver
    for the plan, compaction, rejects and status."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """fsspec options of the store's storage, such as endpoint_url; credentials come from the environment."""


class WorkersConfig(Section):
    replicas: int = Field(default=1, ge=1)
    """Engines that run side by side, one per Ray actor."""
    machines: int = Field(default=1, ge=1)
    """Machines of a replica, for a teacher too large for one: a Ray placement group holds them. The stages of
    `teacher.pipeline_parallel_size` are divided among them evenly."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of a replica on each of its machines; 0 runs on the CPU."""
    cores: int = Field(default=1, ge=1)
    """CPU cores of a replica on each of its machines. Without GPUs an engine on one machine is bound to cores
    of its own."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Further Ray resources of a replica on each of its machines, for example {"teacher-node" = 0.01}."""
    address: str | None = None
    """Ray cluster to join; None takes RAY_ADDRESS, or starts a cluster on this machine for the job alone."""
    restarts: int = Field(default=3, ge=0)
    """Engine deaths in a row, without a finished unit between, after which a replica is given up."""
    leases: int | None = Field(default=None, ge=1, le=MOST_LEASES)
    """Units that an actor holds at a time: in the engine, waiting, being written. None is the number that
    keeps the engine full: 2 where one unit fills it, more where units are small or the engine large."""
    lease_sec: float = Field(default=900, gt=0)
    """A lease expires when its actor has shown no progress for so long; the unit then goes to another."""
    start_sec: float = Field(default=1800, gt=0)
    """Longest time an engine may take to load."""
    drain_sec: float = Field(default=60, ge=0)
    """On SIGTERM: time to finish the units at work before they are given back."""
    driver_lease_sec: float = Field(default=30, gt=0)
    """A driver that has not renewed its lease on the store for so long may be replaced by another."""


class LimitsConfig(Section):
    max_reject_share: float = Field(default=0.05, ge=0, le=1)
    """Share of the records that may be rejected before the job stops."""
    min_records: int = Field(default=20, ge=1)
    """Rejects are judged as a share of at least so many records: one bad record of three is no stop."""
    wait_sec: float | None = Field(default=None, gt=0)
    """How long a job waits while not one replica finds room in the cluster; it then ends with exit status 1.
    None waits for ever. A wait is noticed after 30 seconds."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of the stored sequences, prompts and earlier runs included, at which the job stops as on a
    signal: units at work are finished, and the same command with a higher limit goes on. What one prompt's
    tokens cost is paid once for each of its `sampling.n` responses."""
    max_cost: float | None = Field(default=None, gt=0)
    """Money at which the job stops likewise, by the prices of `[cost]`: what a server billed, refused and
    repeated requests included, and the devices, over all runs. What is at work when it is reached is finished
    and paid beyond it: small units (`output.unit_size`) keep that small."""


class CostConfig(Section):
    """Prices for the estimate of `--dry-run`, the sum at the end and `limits.max_cost`; 0 leaves the money
    out."""

    per_gpu_hour: float = Field(default=0.0, ge=0)
    """Price of an hour of one GPU."""
    per_core_hour: float = Field(default=0.0, ge=0)
    """Price of an hour of one CPU core, counted for replicas without GPUs."""
    per_gb_month: float = Field(default=0.0, ge=0)
    """Price of a month of one GB (10^9 bytes) of storage."""
    price_per_million_input_tokens: float = Field(default=0.0, ge=0)
    """Price of a million tokens that a server is given (`teacher.engine = "openai"`), as it counts them."""
    price_per_million_output_tokens: float = Field(default=0.0, ge=0)
    """Price of a million tokens that a server writes."""
    currency: str = "USD"
    """Name of the money."""


class JobConfig(Section):
    """A labeling job."""

    teacher: TeacherConfig
    """Which model gives the labels."""
    input: InputConfig
    """What gets labeled."""
    labels: LabelsConfig = LabelsConfig()
    """What a label is."""
    sampling: SamplingConfig = SamplingConfig()
    """How the teacher writes responses."""
    filters: FiltersConfig = FiltersConfig()
    """Which responses are flagged or dropped."""
    output: OutputConfig
    """Where labels go."""
    workers: WorkersConfig = WorkersConfig()
    """How many engines, and how they are looked after."""
    limits: LimitsConfig = LimitsConfig()
    """When to stop."""
    cost: CostConfig = CostConfig()
    """What it costs."""

    @model_validator(mode="after")
    def _kind_fits_mode(self) -> JobConfig:
        kind, mode = self.input.kind, self.labels.mode
        if kind == "auto":
            return self  # checked once it is found
        if mode == "score" and kind == "prompt":
            raise ValueError(
                'input.kind = "prompt" has no response to score; set labels.mode = "generate", or '
                'input.kind = "prompt_response" with input.fields.response'
            )
        if mode == "generate" and kind == "text":
            raise ValueError(
                'input.kind = "text" has no prompt to answer; set labels.mode = "score", or '
                'input.kind = "prompt" with input.chat_template = false to continue plain text'
            )
        if self.labels.turns == "all" and not (
            kind == "messages" and mode == "score" and self.input.chat_template
        ):
            raise ValueError(
                'labels.turns = "all" needs labels.mode = "score", input.kind = "messages" and a chat '
                'template; set it to "last"'
            )
        if self.labels.turns == "each" and kind != "messages":
            raise ValueError(
                f'labels.turns = "each" needs input.kind = "messages", it is {kind!r}; set "last"'
            )
        if self.labels.turns == "each" and "student_messages" in self.input.fields:
            raise ValueError(
                'labels.turns = "each" cuts the conversation at each turn and input.fields.student_messages '
                'has one for the last alone; set labels.turns = "last", or remove it'
            )
        if "segments" in self.input.fields and not self.labels.segments:
            raise ValueError(
                "labels.segments = false leaves out what input.fields.segments gives; remove one"
            )
        if "segments" in self.input.fields and mode == "generate":
            raise ValueError(
                'input.fields.segments needs labels.mode = "score": the parts of a response that the teacher '
                "writes are found by its marks; remove it"
            )
        if kind == "text" and self.labels.positions == "response":
            raise ValueError('labels.positions = "response" needs a response; plain text has none: set "all"')
        if self.input.has_student_prompts and self.positions == "all":
            raise ValueError(
                'labels.positions = "all" labels the teacher\'s prompt, which a student with a prompt of its '
                'own does not see; set labels.positions = "response", or give no student_ settings'
            )
        return self

    @model_validator(mode="after")
    def _texts_alone(self) -> JobConfig:
        api = self.teacher.api
        if self.labels.rows:
            if self.teacher.engine == "openai" and api.endpoint == "chat":
                raise ValueError(
                    'teacher.api.endpoint = "chat" gives texts and labels.rows = true wants distributions; '
                    'set labels.rows = false, or "completions" for a server that takes and names token ids'
                )
            return self
        if self.labels.mode == "score":
            raise ValueError(
                'labels.rows = false keeps what the teacher writes, and labels.mode = "score" lets it write '
                'nothing; set labels.mode = "generate", or train on the given texts (data.texts)'
            )
        if self.positions == "all":
            raise ValueError(
                'labels.positions = "all" labels prompts, which labels.rows = false has no rows for; set '
                '"response"'
            )
        if self.sampling.stop:
            raise ValueError(
                f"sampling.stop = {list(self.sampling.stop)} masks tokens, for which labels.rows = false has "
                "no place; set sampling.stop_token_ids"
            )
        if self.teacher.engine == "openai" and api.endpoint == "chat":
            own = self.input.chat_template is not True or self.input.chat_template_kwargs
            if own or self.input.kind not in ("messages", "prompt", "prompt_response"):
                raise ValueError(
                    'teacher.api.endpoint = "chat" sends messages, which are told apart by the chat template '
                    "of teacher.model's tokenizer; set input.chat_template = true without "
                    'chat_template_kwargs, or teacher.api.endpoint = "completions"'
                )
        return self

    @model_validator(mode="after")
    def _server_can_do_it(self) -> JobConfig:
        if self.teacher.engine != "openai":
            return self
        if self.labels.rows and self.labels.temperatures != (1.0,):
            raise ValueError(
                f'labels.temperatures = {list(self.labels.temperatures)}, but teacher.engine = "openai" '
                "gives log-probabilities at temperature 1 alone; set labels.temperatures = [1.0]"
            )
        if self.sampling.stop:
            raise ValueError(
                f'sampling.stop = {list(self.sampling.stop)} is not known to teacher.engine = "openai", '
                "whose servers cut a stop text off; set sampling.stop_token_ids"
            )
        return self

    @model_validator(mode="after")
    def _money_has_prices(self) -> JobConfig:
        cost = self.cost
        per_hour = cost.per_gpu_hour if self.workers.gpus else cost.per_core_hour
        per_token = cost.price_per_million_input_tokens or cost.price_per_million_output_tokens
        if per_token and self.teacher.engine != "openai":
            raise ValueError(
                f"cost has prices of tokens, but teacher.engine is {self.teacher.engine!r}; they are for "
                '"openai": set cost.per_gpu_hour or cost.per_core_hour'
            )
        if self.limits.max_cost is not None and not per_hour and not per_token:
            raise ValueError(
                f"limits.max_cost = {self.limits.max_cost:g} can never be reached, since no price is given; "
                "set cost.price_per_million_input_tokens and ..._output_tokens of the server, or the price "
                "of the devices"
            )
        return self

    @model_validator(mode="after")
    def _replica_holds_engine(self) -> JobConfig:
        teacher, machines = self.teacher, self.workers.machines
        if teacher.pipeline_parallel_size % machines:
            raise ValueError(
                f"workers.machines = {machines} does not divide teacher.pipeline_parallel_size = "
                f"{teacher.pipeline_parallel_size}: each machine of a replica has the same number of stages; "
                f"set teacher.pipeline_parallel_size to {machines} or a multiple of it"
            )
        name, devices = ("gpus", self.workers.gpus) if self.workers.gpus else ("cores", self.workers.cores)
        ranks = teacher.num_ranks // machines
        if ranks > devices:
            stages = teacher.pipeline_parallel_size // machines
            sizes = f"teacher.tensor_parallel_size = {teacher.tensor_parallel_size}"
            if stages > 1:
                sizes += f" and {stages} stages"
            raise ValueError(
                f"{sizes} on a machine need as many {name} as {ranks} there, workers.{name} is {devices:g}; "
                f"raise it to at least {ranks}"
            )
        return self

    @model_validator(mode="after")
    def _head_has_a_gpu(self) -> JobConfig:
        if self.teacher.head_dtype == "float32_sums" and not self.workers.gpus:
            raise ValueError(
                'teacher.head_dtype = "float32_sums" needs a GPU and workers.gpus is 0; set workers.gpus, or '
                'teacher.head_dtype = "float32", which casts the head\'s weight in every step'
            )
        return self

    @property
    def parts(self) -> Literal["", "turns", "texts"]:
        """What makes several records of one of the input: its turns, or the texts of a list."""
        if self.labels.turns == "each":
            return "turns"
        is_cut = self.input.list_of_texts == "each" and self.input.kind in (
            "prompt",
            "prompt_response",
            "text",
        )
        return "texts" if is_cut else ""

    @property
    def has_segments(self) -> bool:
        """Whether it is stored of every token what it is."""
        return self.labels.segments and (self.has_marks or "segments" in self.input.fields)

    @property
    def has_marks(self) -> bool:
        """Whether the parts of an assistant's turn are told apart by marks."""
        return bool(self.input.chat_template) and self.input.kind not in ("text", "token_ids")

    @property
    def positions(self) -> Literal["response", "all"]:
        """`labels.positions` with "auto" resolved."""
        if self.labels.positions != "auto":
            return self.labels.positions
        if self.input.kind == "text":
            return "all"
        without_response = "response_token_ids" not in self.input.fields and self.labels.mode == "score"
        return "all" if self.input.kind == "token_ids" and without_response else "response"

    @property
    def labels_per_record(self) -> int:
        """Sequences that one record makes."""
        return self.sampling.n if self.labels.mode == "generate" else 1
