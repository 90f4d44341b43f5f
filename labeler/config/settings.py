"""The settings of a labeling job, section by section, with their rules.

Imports neither ray, vllm nor torch. What a field means stands below it. `config.py` reads a job from a
file and `--set`; import the models from there.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from labeler.config.engine_keys import OWNED_ENGINE_ARGS
from logitstore.common.secrets import redact_uri, secret_places
from logitstore.common.section import HomePath, Section

InputKind = Literal["messages", "prompt", "prompt_response", "text", "token_ids"]

FIELDS_BY_KIND: dict[str, tuple[str, ...]] = {
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
STUDENT_ROLES = ("student_messages", "student_prompt", "student_token_ids")

SETTING_OF_ENGINE_ARG: dict[str, str] = {
    "model": "teacher.model",
    "revision": "teacher.revision",
    "dtype": "teacher.dtype",
    "quantization": "teacher.quantization",
    "tensor_parallel_size": "teacher.tensor_parallel_size",
    "pipeline_parallel_size": "teacher.pipeline_parallel_size",
    "nnodes": "workers.machines",
    "max_model_len": "teacher.max_model_len",
    "trust_remote_code": "teacher.trust_remote_code",
    "seed": "sampling.seed",
    "max_logprobs": "labels.top_k",
    "logprobs_mode": "teacher.capture",
}
"""The setting to use instead of an engine argument that the labeler sets itself."""

MOST_LEASES = 16
"""Units that an actor may hold at a time."""

MOVED_TO_SAMPLING = ("temperature", "top_p", "max_tokens", "n", "seed", "stop")
"""Settings that were in `[labels]` before `[sampling]` was there; stored plans still name them so."""


class FakeTeacherConfig(Section):
    """The stand-in teacher of `engine = "fake"`: hash-made logits over bytes, for trying out a job."""

    vocab_size: int = Field(default=512, ge=260)
    """Width of the made-up logits; ids 0..255 are bytes, 256..259 mark turns and ends."""
    seconds_per_token: float = Field(default=0.0, ge=0)
    """Slowness to imitate."""
    load_sec: float = Field(default=0.0, ge=0)
    """Time that loading pretends to take."""
    fatal_token_id: int | None = None
    """A token whose presence in a sequence kills the engine, to rehearse what a job does about it."""


class ApiTeacherConfig(Section):
    """The server of `engine = "openai"`: it must answer completions of token ids with the ids of its
    log-probabilities, as vLLM's server does."""

    base_url: str = ""
    """Address up to the version, for example "http://127.0.0.1:8000/v1"; it may hold no credential."""
    model: str = ""
    """The server's name of the model; "" is `teacher.model`, which is where the tokenizer comes from."""
    key_variable: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key, on every machine of a worker; unset sends none."""
    concurrency: int = Field(default=16, ge=1)
    """Requests of a replica at a time."""
    requests_per_minute: int = Field(default=0, ge=0)
    """Most requests that a replica begins in a minute; 0 is no limit."""
    tokens_per_minute: int = Field(default=0, ge=0)
    """Most tokens, given and allowed to be written, of the requests that a replica begins in a minute; 0 is
    no limit."""
    timeout_sec: float = Field(default=120, gt=0)
    """Longest wait for an answer."""
    tries: int = Field(default=6, ge=1)
    """Times that a request is made which the server is too busy for, fails at, or answers with nonsense."""
    longest_pause_sec: float = Field(default=60, gt=0)
    """Longest pause between two tries, whatever the server asks for."""

    @field_validator("base_url")
    @classmethod
    def _without_credentials(cls, base_url: str) -> str:
        if base_url and not base_url.startswith(("http://", "https://")):
            raise ValueError(f"{redact_uri(base_url)!r} must begin with http:// or https://")
        if redact_uri(base_url) != base_url:
            raise ValueError(
                f"{redact_uri(base_url)!r} holds a credential, and a job's settings are kept with its "
                "labels; put the key into the environment variable that teacher.api.key_variable names"
            )
        return base_url


class TeacherConfig(Section):
    engine: Literal["vllm", "openai", "fake"] = "vllm"
    """"vllm" loads the model; "openai" asks a server for it (`teacher.api`), which gives labels at T=1 only;
    "fake" labels with a stand-in that needs no model, GPU or vLLM: for trying out a job's settings."""
    model: HomePath = ""
    """Hugging Face id or folder of the teacher."""
    revision: str | None = None
    """Commit or tag of a Hugging Face id; None is the newest."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights and activations; "auto" is the model's own."""
    quantization: str | None = None
    """vLLM's name of a quantisation to apply; None is the model's own."""
    head_dtype: Literal["auto", "model", "float32_sums", "float32"] = "auto"
    """Precision of the logits. A bf16 model rounds ("model") the fp32 sums of its head's product, and large
    logits end up 0.125 apart. "float32_sums" keeps the sums; it needs a GPU and makes no second weight.
    "float32" is vLLM's own float32 head, which without a GPU casts the weight in every step. "auto" is
    "float32_sums" for unquantised bf16 and fp16 models on GPUs, else "model"; `--dry-run` says which."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs, or on a CPU groups of cores, that share every layer of the model. They are on one machine."""
    pipeline_parallel_size: int = Field(default=1, ge=1)
    """Stages, of `tensor_parallel_size` GPUs each, that the model's layers are divided among."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Longest sequence, prompt and response, in tokens; None is the model's own limit."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    capture: Literal["auto", "in_engine", "public_api"] = "auto"
    """Where normalisers come from: inside the engine (exact at every temperature), or vLLM's public API
    (exact at T=1 only). "auto" takes the first and falls back, loudly, to the second."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further vLLM engine arguments; refuses the ones that other settings own."""
    api: ApiTeacherConfig = ApiTeacherConfig()
    """The server of `engine = "openai"`."""
    fake: FakeTeacherConfig = FakeTeacherConfig()
    """Settings of `engine = "fake"`."""

    @property
    def num_ranks(self) -> int:
        """GPUs, or groups of cores, of one engine."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @field_validator("engine_args")
    @classmethod
    def _not_owned(cls, engine_args: dict[str, Any]) -> dict[str, Any]:
        for name in engine_args:
            if name in OWNED_ENGINE_ARGS:
                setting = SETTING_OF_ENGINE_ARG.get(name)
                remedy = f"set {setting} instead" if setting else "remove it"
                raise ValueError(f"{name!r} is not allowed here, since the labeler sets it itself; {remedy}")
        if "head_dtype" in (engine_args.get("hf_overrides") or {}):
            raise ValueError(
                "'head_dtype' is not allowed in hf_overrides, since the labeler sets it itself; set "
                "teacher.head_dtype instead"
            )
        for place in secret_places(engine_args):
            raise ValueError(
                f"{place!r} looks like a credential, and a job's settings are kept with its labels and shown "
                "on the cluster; remove it and set it in the environment of the machines instead (HF_TOKEN "
                "for a token of Hugging Face)"
            )
        return engine_args

    @model_validator(mode="after")
    def _model_named(self) -> TeacherConfig:
        if self.engine != "fake" and not self.model:
            raise ValueError(
                "model is missing: a job needs a teacher; give --set teacher.model=MODEL, a Hugging Face id "
                'or a folder (or teacher.engine = "fake" to try out a job without one)'
            )
        if self.engine == "openai" and not self.api.base_url:
            raise ValueError(
                'engine = "openai" needs a server; set teacher.api.base_url, for example '
                '"http://127.0.0.1:8000/v1"'
            )
        if self.engine != "openai" and self.api.base_url:
            raise ValueError(
                f'api.base_url is set, but engine is {self.engine!r}; set teacher.engine = "openai", or '
                "leave api.base_url out"
            )
        return self


class InputConfig(Section):
    uri: str = Field(min_length=1)
    """Path, glob or URL (local, s3://) of JSONL (also .gz, .zst), Parquet or Arrow files."""
    kind: InputKind
    """What a record holds."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Names of the record's fields by role, for example {prompt = "question", response = "answer"}; a role
    not named here is a field of the role's own name. Dots reach into nested objects. Where a prompt is a
    list of strings (turns), its first is the prompt."""
    id: str | None = None
    """Field holding a record's id; None makes a stable id from the content."""
    chat_template: bool | HomePath = True
    """Put prompts and messages into the tokenizer's chat template, or into the Jinja template of that file;
    false concatenates plain text."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, such as {enable_thinking = false} or {date_string = "1 Jan 2026"}."""
    ignore_keys: tuple[str, ...] = ()
    """Keys of messages (or "tools", "documents") that may be lost where the chat template does not read them;
    a record with any other such key is rejected."""
    list_of_texts: Literal["refuse", "join", "first"] = "refuse"
    """What a list of strings in the place of one `text` becomes: a reject, one text with empty lines
    between, or its first. A `prompt` takes the first of its list, its turns."""
    system_prompt: str | None = None
    """A system message put before prompts that have none; needs the chat template."""
    student_system_prompt: str | None = None
    """The system message of the student's prompt in place of the teacher's, "" for none: the student learns
    to answer as if it had the teacher's. None gives both the same prompt."""
    limit: int | None = Field(default=None, ge=1)
    """Take only the first so many records of the input."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """fsspec options of the input's storage, such as endpoint_url; credentials come from the environment."""

    @model_validator(mode="after")
    def _roles(self) -> InputConfig:
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
        if self.chat_template_kwargs and not self.chat_template:
            raise ValueError("chat_template_kwargs needs chat_template = true or the path of a template")
        return self

    @property
    def has_student_prompts(self) -> bool:
        """Whether students see other prompts than the teacher."""
        return self.student_system_prompt is not None or any(role in self.fields for role in STUDENT_ROLES)

    def field_names(self) -> dict[str, str]:
        """The record's field for every role of the kind, "id" included where it is given."""
        names = {role: self.fields.get(role, role) for role in FIELDS_BY_KIND[self.kind]}
        names.update(self.fields)
        if self.id is not None:
            names["id"] = self.id
        return names


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
    positions: Literal["auto", "response", "all"] = "auto"
    """Which tokens get labels; "auto" is "all" for text and token_ids without a response, else "response"."""
    turns: Literal["last", "all"] = "last"
    """Score, messages: which of the assistant's turns count. "all" is one sequence, labeled from the first
    answer on, whose loss mask leaves out what others say; a template that renders earlier turns otherwise
    than a last one cannot be had so."""
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


class CostConfig(Section):
    """Prices for the estimate of `--dry-run` and the sum at the end; 0 leaves the money out."""

    per_gpu_hour: float = Field(default=0.0, ge=0)
    """Price of an hour of one GPU."""
    per_core_hour: float = Field(default=0.0, ge=0)
    """Price of an hour of one CPU core, counted for replicas without GPUs."""
    per_gb_month: float = Field(default=0.0, ge=0)
    """Price of a month of one GB (10^9 bytes) of storage."""
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
    def _server_can_do_it(self) -> JobConfig:
        if self.teacher.engine != "openai":
            return self
        if self.labels.temperatures != (1.0,):
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
    def has_segments(self) -> bool:
        """Whether it is known of every token what it is."""
        if "segments" in self.input.fields:
            return True
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
