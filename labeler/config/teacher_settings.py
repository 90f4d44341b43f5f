"""`[teacher]`: the model, what runs it, and how its logits are taken."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from labeler.config.engine_keys import NOT_SUPPORTED, OWNED_ENGINE_ARGS
from logitstore.common.secrets import redact_uri, secret_places
from logitstore.common.section import HomePath, Section, of_form

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


class FakeTeacherConfig(Section):
    """The stand-in teacher of `engine = "fake"`: hash-made logits over bytes, for trying out a job."""

    vocab_size: int = Field(default=512, ge=260)
    """Width of the made-up logits; ids 0..255 are bytes, 256..259 mark turns and ends."""
    seconds_per_token: float = Field(default=0.0, ge=0)
    """Slowness to imitate."""
    slow_while: HomePath = ""
    """A file: the slowness lasts only while it is there, so that a rehearsal can be held and then let go."""
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
    endpoint: Literal["completions", "chat"] = "completions"
    """"chat" sends messages and is what every server has; it gives texts alone (`labels.rows = false`), which
    are kept in the tokens of `teacher.model`: name the student's there. "completions" sends token ids, or the
    prompt as text where `labels.rows` is false."""
    key_variable: Annotated[
        str,
        of_form(
            r"[A-Za-z_][A-Za-z0-9_]*",
            "it is the name of a variable, of letters, digits and '_', not the key itself; write the name",
        ),
    ] = "OPENAI_API_KEY"
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
    """Times that a request is made which the server is too busy for, fails at, or answers with nonsense. If
    it was busy, late or out of reach, the unit is labeled later. If it failed each time and answers another
    request, this one has as many tries once more, after all others; then its record is rejected."""
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
            if name in NOT_SUPPORTED:
                raise ValueError(f"{name!r} is not supported: {NOT_SUPPORTED[name]}")
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
