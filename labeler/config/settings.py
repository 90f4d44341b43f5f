"""A whole job's settings and the rules between its sections, each of which has a module beside this.

None imports ray, vllm or torch. What a field means stands below it. `loading.py` reads a job from a file and
`--set`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from labeler.config.input_settings import InputConfig
from labeler.config.label_settings import FiltersConfig, LabelsConfig, SamplingConfig
from labeler.config.run_settings import CostConfig, LimitsConfig, OutputConfig, WorkersConfig
from labeler.config.teacher_settings import TeacherConfig
from logitstore.common.secrets import redact_uri
from logitstore.common.section import Section

DEFAULT_UTILIZATION = 0.92
"""Share of a GPU's memory that vLLM takes unless `gpu_memory_utilization` says otherwise."""


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
        if kind == "text" and self.labels.positions == "response":
            raise ValueError('labels.positions = "response" needs a response; plain text has none: set "all"')
        return self

    @model_validator(mode="after")
    def _turns_are_there(self) -> JobConfig:
        kind, mode = self.input.kind, self.labels.mode
        if kind == "auto":
            return self
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
        return self

    @model_validator(mode="after")
    def _segments_can_be_given(self) -> JobConfig:
        if self.input.kind == "auto":
            return self
        if "segments" in self.input.fields and not self.labels.segments:
            raise ValueError(
                "labels.segments = false leaves out what input.fields.segments gives; remove one"
            )
        if "segments" in self.input.fields and self.labels.mode == "generate":
            raise ValueError(
                'input.fields.segments needs labels.mode = "score": the parts of a response that the teacher '
                "writes are found by its marks; remove it"
            )
        return self

    @model_validator(mode="after")
    def _students_prompt_can_be_used(self) -> JobConfig:
        if self.input.kind == "auto":
            return self
        if self.input.prompt_seen == "student" and self.labels.mode == "score":
            raise ValueError(
                'input.prompt_seen = "student" is for a model that answers, and labels.mode = "score" lets '
                'it answer nothing; set labels.mode = "generate" or prompt_seen = "teacher"'
            )
        if self.input.has_student_prompts and self.positions == "all":
            raise ValueError(
                'labels.positions = "all" labels the teacher\'s prompt, which a student with a prompt of its '
                'own does not see; set labels.positions = "response", or give no student_ settings'
            )
        return self

    @model_validator(mode="after")
    def _responses_differ(self) -> JobConfig:
        sampling, engine = self.sampling, self.teacher.engine
        if (
            self.labels.mode == "generate"
            and engine == "vllm"
            and sampling.n > 1
            and sampling.temperature == 0
        ):
            raise ValueError(
                f"sampling.n = {sampling.n} with sampling.temperature = 0 writes and labels the same "
                f"response {sampling.n} times; set n = 1, or a temperature"
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
        if self.input.kind == "auto":
            return self  # checked once it is found, and with it the mode
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
        is_api = self.teacher.engine == "openai"
        if self.sampling.stop:
            remedy = "remove it" if is_api else "set sampling.stop_token_ids"
            raise ValueError(
                f"sampling.stop = {list(self.sampling.stop)} masks tokens, for which labels.rows = false has "
                f"no place; {remedy}"
            )
        if self.sampling.stop_token_ids and is_api:
            raise ValueError(
                f"sampling.stop_token_ids = {list(self.sampling.stop_token_ids)} are ids of teacher.model's "
                "tokenizer, and a server that gives texts alone (labels.rows = false) is told of none; "
                "remove it: the server's model ends by itself"
            )
        if self.sampling.min_tokens and is_api:
            raise ValueError(
                f"sampling.min_tokens = {self.sampling.min_tokens} counts tokens of the server's model, "
                "which a server that gives texts alone (labels.rows = false) need not keep to; remove it, "
                "or take short responses out with filters.min_tokens"
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
    def _ids_can_be_given(self) -> JobConfig:
        if not self.labels.given:
            return self
        shown = redact_uri(self.labels.given)
        if self.labels.mode != "score" and self.input.kind != "auto":
            raise ValueError(
                f"labels.given = {shown!r} has ids for tokens that are there already, and the teacher is to "
                'write some; set labels.mode = "score", or remove it'
            )
        if self.teacher.engine == "openai" or self.teacher.capture == "public_api":
            raise ValueError(
                f"labels.given = {shown!r} needs the teacher's whole distribution, of which an API gives the "
                'likeliest ids alone; set teacher.engine = "vllm" and teacher.capture = "in_engine", or '
                "remove it"
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
        if devices > 1 and devices != int(devices):
            raise ValueError(
                f"workers.gpus = {devices:g} is neither whole nor a part of one GPU, and Ray gives out no "
                "other amounts; set it to a whole number, or below 1 for replicas that share a GPU"
            )
        if ranks > devices and not self.shares_gpu:
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
    def shares_gpu(self) -> bool:
        """Whether a replica, an engine of one rank, has a part of a GPU."""
        return 0 < self.workers.gpus < 1 and self.teacher.num_ranks == 1

    @property
    def gpu_memory_utilization(self) -> float:
        """Share of a GPU's memory that an engine takes: replicas that share one have their parts of it."""
        given = self.teacher.engine_args.get("gpu_memory_utilization")
        share = self.workers.gpus if self.shares_gpu else 1.0
        return DEFAULT_UTILIZATION * share if given is None else float(given)

    @property
    def labels_per_record(self) -> int:
        """Sequences that one record makes."""
        return self.sampling.n if self.labels.mode == "generate" else 1
