"""The configuration of a training run: one TOML file, checked before a model or a store is opened.

Imports neither torch nor transformers. What a field means stands below it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, ValidationError, model_validator

from logitstore.common.config_file import (
    ConfigError,
    apply_options,
    apply_override,
    explain_problem,
    read_document,
)
from logitstore.common.secrets import redacted
from logitstore.common.section import HomePath, Section
from trainer.loss.loss_settings import LossSettings, Tail
from trainer.loss.presets import Preset, with_preset

__all__ = [
    "ConfigError",
    "TrainConfig",
    "checked_config",
    "config_document",
    "load_config",
    "parse_bytes",
    "resolved",
]

_BYTE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(value: int | str | None) -> int | None:
    """Bytes of a size like 5000000, "500mb" or "2GiB"; None stays None."""
    if value is None or isinstance(value, int):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", value.lower())
    if match is None or match[2] not in _BYTE_UNITS:
        raise ValueError(
            f"{value!r} is not a size; write a number of bytes, or for example '500mb' or '20gib'"
        )
    return int(float(match[1]) * _BYTE_UNITS[match[2]])


class SmallStudentConfig(Section):
    """A fresh Llama of a given size; its vocabulary is the tokenizer's."""

    hidden_size: int = Field(default=128, ge=8)
    """Width of the hidden states."""
    intermediate_size: int = Field(default=384, ge=8)
    """Width inside the MLPs."""
    num_layers: int = Field(default=2, ge=1)
    """Decoder layers."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads; they divide hidden_size."""
    num_kv_heads: int | None = Field(default=None, ge=1)
    """None is one per head."""
    tie_embeddings: bool = True
    """Use the input embedding as the output head."""
    max_positions: int = Field(default=2048, ge=8)
    """Longest sequence, in tokens."""

    @model_validator(mode="after")
    def _heads_divide(self) -> SmallStudentConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}"
            )
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        return self


class LoraSettings(Section):
    """Train low-rank adapters instead of the student's weights. Needs the package peft."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the adapters: alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapters."""
    merge: bool = False
    """Save the whole student with the adapters merged into its weights, instead of the adapters alone."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get adapters; "all-linear" is every linear layer but the head. "lm_head" may
    be among the names, with loss.fused = false."""
    load_in_4bit: bool = False
    """QLoRA: hold the student's own weights in 4 bits (NF4). Needs the package bitsandbytes."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules that are trained and saved whole beside the adapters; "lm_head" among them needs
    loss.fused = false."""
    trainable_tokens: tuple[int, ...] = ()
    """Ids whose rows of the input embedding are trained, such as tokens that were added. Where the head is
    tied to it, its rows are trained too, which needs loss.fused = false."""


class StudentConfig(Section):
    """The model that learns."""

    model: HomePath | None = None
    """Hugging Face id or folder of a causal language model to start from."""
    revision: str | None = None
    """Commit or tag of a Hugging Face id; None is the newest."""
    small: SmallStudentConfig | None = None
    """Sizes of a fresh student, instead of `model`."""
    tokenizer: HomePath | None = None
    """Hugging Face id or folder of the tokenizer: the teacher's. None takes the one that the first store
    keeps, which is the teacher's, or, where none keeps one, the one beside `model`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the student's weights."""
    attn_implementation: str | None = None
    """Attention code of transformers: "sdpa", "eager", "flash_attention_2", or another name that it knows.
    None is its own choice, SDPA for most models."""
    lora: LoraSettings | None = None
    quantize: Literal["int8", "int4"] | None = None
    """Train a student whose weights, but for the head's, are rounded to integers in every forward pass, and
    save it as such, in the format of compressed-tensors. From the labels that `model` gave itself at full
    precision (loss.alpha = 1), this takes back what rounding lost: metrics.json has the KL before and after.
    Needs the extra `quantize`."""
    quantize_group_size: int | None = Field(default=None, ge=1)
    """Inputs that share a scale; None is 32 for "int4" and all inputs of an output for "int8"."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    @model_validator(mode="after")
    def _one_source(self) -> StudentConfig:
        if (self.model is None) == (self.small is None):
            raise ValueError(
                "give exactly one of student.model (a model to start from) and student.small (sizes)"
            )
        if self.quantize is not None and self.lora is not None:
            raise ValueError(
                f"quantize = {self.quantize!r} trains all weights as integers, lora adds adapters to "
                "weights that stay; give one"
            )
        if self.quantize_group_size is not None and self.quantize is None:
            raise ValueError(
                f"quantize_group_size = {self.quantize_group_size} means nothing without quantize; remove it"
            )
        if self.lora is not None and self.lora.load_in_4bit and self.lora.merge:
            raise ValueError(
                "lora.load_in_4bit = true holds weights in 4 bits, and lora.merge = true would round the "
                "student that is saved to them; set merge = false, and merge into the full weights later"
            )
        if self.small is not None and self.lora is not None:
            raise ValueError(
                "student.lora saves adapters alone, so a small student, which begins at random, could not be "
                "loaded again; remove student.lora, or start from student.model"
            )
        return self


class StoreSource(Section):
    uri: str
    """Folder or URL of a logit store."""
    weight: float = Field(default=1.0, ge=0)
    """How often its sequences occur in an epoch: 2 is twice, 0.5 another half every epoch."""
    alpha: float | None = Field(default=None, ge=0, le=1)
    """Weight of distillation for this store's labels; None takes `loss.alpha`. 0 trains on its text alone."""
    temperature: float | None = Field(default=None, gt=0)
    """T of the distillation term for this store's labels; None takes `loss.temperature`."""
    where: str | None = None
    """Which of its sequences take part, as `penumbra store cat --where` has it, for example
    'finish_reason != length and num_tokens < 2048', or 'hash < 0.9' for nine tenths of the records; None
    takes all."""
    ids: str | None = None
    """A file of record ids, one a line: only these take part."""
    without_ids: str | None = None
    """A file of record ids that take no part."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """For the object store, as in fsspec. Credentials are better left to the environment."""


class TextSource(Section):
    uri: str
    """Path, folder, glob or URL of JSONL, Parquet, CSV or Arrow files, as the labeler reads them."""
    kind: Literal["text", "prompt_response", "messages"] = "messages"
    """What a record holds: `text`, all of it learned; `prompt` and `response`, or `messages`, of which the
    last answer is learned. Both of the latter go through the tokenizer's chat template, if it has one."""
    weight: float = Field(default=1.0, ge=0)
    """How often its records occur in an epoch, as for stores."""
    bad_records: Literal["refuse", "drop"] = "refuse"
    """What becomes of a record that cannot be used: it stops the run by name before training, or is left
    out, counted and said."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """As for stores."""


def _as_source(value: Any) -> Any:
    return {"uri": value} if isinstance(value, str) else value


def _as_sources(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


Sources = Annotated[
    tuple[Annotated[StoreSource, BeforeValidator(_as_source)], ...], BeforeValidator(_as_sources)
]


class DataConfig(Section):
    """What is read, and in which batches."""

    stores: Sources
    """One or several stores: a URI, or tables with uri, weight, alpha, temperature, where, ids, without_ids
    and storage_options."""
    texts: tuple[TextSource, ...] = ()
    """Plain text without a teacher, mixed with the stores and learned by cross-entropy alone. It is tokenised
    once, into `texts` in the output folder; nothing of it is held out."""
    top_k: int | None = Field(default=None, ge=1)
    """Entries read of each row, at most what the store holds; None reads all. Fewer bytes are read too."""
    shuffle: bool = True
    """Read in an order of its own every epoch; false reads as stored."""
    seed: int = 0
    """Of the order of reading."""
    num_splits: int = Field(default=16, ge=1)
    """Shards read side by side. More mixes better; each holds a shard open. If `training.batch_size` is a
    multiple of 8 and `num_splits` one of batch_size / 8 x processes x workers, no two of them decode the
    same block, but at an epoch's end; otherwise several do. Packed, a split gives one row at a time: then
    `num_splits` should be a multiple of batch_size x processes x workers."""
    held_out_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of records, chosen by a hash of their id, kept from training for evaluation. 0 needs
    `evaluation.stores`."""
    max_length: int | None = Field(default=None, ge=2)
    """Tokens kept of each sequence."""
    pack_length: int | None = Field(default=None, ge=2)
    """Pack whole sequences, across batches, into rows of at most so many tokens; None pads. A batch then is
    `training.batch_size` rows, so at most batch_size x pack_length tokens. Each logged step says its fill,
    the share of places that hold tokens."""
    pack_buffer_rows: int = Field(default=16, ge=1)
    """Rows that each of `num_splits` packs together. More find a better fit and hold more decoded labels."""
    packed_attention: (
        Literal["position_ids", "position_ids_one_row", "block_diagonal", "block_diagonal_additive"] | None
    ) = None
    """How packed documents are kept apart, as `CollateSettings` says. None takes the first way that a trial
    with the student shows to be right; one that is given is tried too, and refused if it is wrong."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that decode and collate. 0 does it in the training process: one background thread, and up to
    four more that decode blocks side by side without the interpreter's lock, as many as there are cores. That
    is right as long as the student learns more slowly than this reads, which is nearly always. Batches of a
    worker cross shared memory, and workers may decode a block again that another one has (see `num_splits`),
    which costs more processor time in all but less in the training process: take 1 or 2 where that is busy
    itself, with processor cores to spare."""
    segments: dict[Literal["context", "reasoning", "answer", "tool", "end"], NonNegativeFloat] = Field(
        default_factory=dict
    )
    """Weight of each label's loss by what its token is, for example { reasoning = 0.3, tool = 0 }; a segment
    left out has 1. The loss is sum(w L) / sum(w) over the labels of an optimizer step; 0 masks them, also in
    evaluation, which counts all others alike. Needs stores that know segments; what is learned of
    `texts` is "answer", but for an end of text."""
    cache_dir: HomePath | None = None
    """Folder for copies of the shards of remote or slow stores; None reads what is needed each time."""
    cache_limit: Annotated[int | None, BeforeValidator(parse_bytes)] = None
    """Bytes the cache may take, also like "20gb"; None is no limit."""
    predownload: int = Field(default=1, ge=0)
    """Shards of each split fetched ahead into the cache."""


class LossConfig(Section):
    """What loss is computed."""

    preset: Preset | None = None
    """A formula of others by name: fills in the settings below that are not given, and they are saved.
    The trainer's page has what each stands for."""
    temperature: float = Field(default=1.0, gt=0)
    """T of the distillation term; must lie within the store's temperatures for the tail to be exact."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of distillation against cross-entropy on the labels. 0 trains on hard labels alone."""
    beta: float = Field(default=0.0, ge=0, le=1)
    """0 KL(teacher, student), 1 the reverse, between them the generalised Jensen-Shannon divergence."""
    divergence: Literal["generalized_jsd", "total_variation"] = "generalized_jsd"
    """The family of `beta`, or half the absolute differences."""
    tail: Tail = "bucket"
    """What becomes of the mass outside the stored entries; only "bucket" is exact."""
    scale_by_temperature_squared: bool = True
    """Multiply the distillation term by T^2, so that its gradient keeps its size when T grows."""
    vocabulary: Literal["same", "padded"] = "same"
    """"same": student and teacher must have logits of the same width. "padded": they may differ by padding
    beyond the tokenizer's ids, which takes no part."""
    fused: bool = True
    """Project, compute loss and gradient by chunks of rows: [batch, tokens, vocabulary] never exists."""
    chunk_rows: int | None = Field(default=None, ge=1)
    """Rows per chunk of the fused loss; None takes as many as fit its buffer."""

    @model_validator(mode="before")
    @classmethod
    def _preset_filled_in(cls, given: Any) -> Any:
        return with_preset(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _possible(self) -> LossConfig:
        LossSettings(
            temperature=self.temperature,
            alpha=self.alpha,
            beta=self.beta,
            divergence=self.divergence,
            tail=self.tail,
        )
        return self


class TrainingConfig(Section):
    """How long and how it is trained."""

    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; None trains `epochs`."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data, where max_steps is not given."""
    batch_size: int = Field(default=8, ge=1)
    """Sequences per process and micro-batch; rows, with `data.pack_length`."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches of one optimizer step."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Highest rate of the schedule."""
    optimizer: str = "adamw_torch_fused"
    """As transformers names them (`optim`): adafactor, adamw_bnb_8bit, lion_32bit, muon, ..."""
    optimizer_args: str | None = None
    """Of the optimizer, as "name=value,name=value"."""
    schedule: Literal[
        "cosine",
        "linear",
        "constant",
        "constant_with_warmup",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = "cosine"
    """Course of the learning rate, by transformers' names."""
    schedule_args: dict[str, Any] = Field(default_factory=dict)
    """Of the schedule: { num_decay_steps = 100 } for warmup_stable_decay, { min_lr = 1e-6 } and so on."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the rate rises to its highest."""
    warmup_ratio: float | None = Field(default=None, ge=0, lt=1)
    """Share of all steps, instead of `warmup_steps`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of the weights per step, times the rate."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Of AdamW: decay of the gradient's mean."""
    adam_beta2: float = Field(default=0.98, gt=0, lt=1)
    """Of AdamW: decay of the gradient's squares."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm; 0 does not clip."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """"bf16" and "fp16" run the forward pass under autocast; "fp16" scales the loss and needs a GPU."""
    compile: bool = False
    """Compile the student by torch.compile."""
    fsdp: dict[str, Any] | None = None
    """Shard the student by FSDP2: `fsdp_config` of transformers, {} for its defaults."""
    deepspeed: HomePath | dict[str, Any] | None = None
    """DeepSpeed's configuration, or its file; ZeRO stage 1 or 2."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    seed: int = 0
    """Of new weights and dropout."""
    logging_steps: int = Field(default=5, ge=1)
    """Steps between two lines of the log."""
    save_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; None saves only the final model."""
    save_total_limit: int = Field(default=2, ge=1)
    """Checkpoints kept."""
    tensorboard: bool = True
    """Write TensorBoard logs below the output folder."""
    report_to: tuple[Literal["wandb", "mlflow", "trackio", "comet_ml", "swanlab"], ...] = ()
    """Trackers that get the logged figures too; their packages must be installed."""
    run_name: str | None = None
    """What trackers call the run."""

    @model_validator(mode="after")
    def _one_of_each(self) -> TrainingConfig:
        if self.warmup_steps and self.warmup_ratio is not None:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and warmup_ratio={self.warmup_ratio} say the same thing; "
                "give one"
            )
        if self.fsdp is not None and self.deepspeed is not None:
            raise ValueError("fsdp and deepspeed both shard the student; give one")
        return self


class EvaluationConfig(Section):
    """On what, and how often, the student is evaluated."""

    batch_size: int = Field(default=4, ge=1)
    """Sequences of an evaluation batch."""
    max_sequences: int | None = Field(default=256, ge=1)
    """Held-out sequences evaluated, in a fixed order; None takes all."""
    before: bool = True
    """Evaluate before training too."""
    stores: Sources | None = None
    """Stores to evaluate on, whole; None evaluates on what `data.held_out_fraction` holds out."""
    steps: int | None = Field(default=None, ge=1)
    """Evaluate during training every so many steps; None only before and after."""
    best: Literal["kl", "cross_entropy", "calibration_error", "top1_agreement", "accuracy"] | None = None
    """Keep the checkpoint that is best by this figure and save it as the student; None saves the last.
    Needs `steps`, and `training.save_steps` to be a multiple of them."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations without a better `best`; None does not stop early."""
    snapshots: int = Field(default=2, ge=0)
    """Held-out sequences whose predictions `snapshots.npz` keeps, before, during and after training, for
    `penumbra store view STORE --student FOLDER`; 0 keeps none."""
    snapshot_steps: int | None = Field(default=None, ge=1)
    """Steps between two snapshots; None takes one at each evaluation and checkpoint."""
    samples: int = Field(default=0, ge=0)
    """Held-out prompts that the student answers, greedily, before training, at every evaluation and at the
    end: in the log, in TensorBoard and in samples.jsonl of the output folder."""
    sample_tokens: int = Field(default=64, ge=1)
    """Tokens of such an answer, at most."""


class RunOutputConfig(Section):
    """What is saved, and where."""

    folder: HomePath
    """Gets the model, metrics.json, the resolved configuration, logs and checkpoints."""


class TrainConfig(Section):
    student: StudentConfig
    data: DataConfig
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    output: RunOutputConfig

    @model_validator(mode="after")
    def _quantized_weights_are_whole(self) -> TrainConfig:
        if self.student.quantize and (self.training.fsdp is not None or self.training.deepspeed is not None):
            raise ValueError(
                "student.quantize rounds whole weights, and training.fsdp or training.deepspeed shard them; "
                "leave these out (several processes by torchrun work)"
            )
        return self

    @model_validator(mode="after")
    def _losses_of_stores_are_possible(self) -> TrainConfig:
        for store in self.data.stores:
            if store.alpha and not self.loss.alpha:
                raise ValueError(
                    f"alpha = {store.alpha} of the store {store.uri} while loss.alpha = 0 reads no labels of "
                    "a teacher; set loss.alpha to that of most stores, and alpha = 0 for the others"
                )
        for store in self.evaluation.stores or ():
            if store.alpha is not None or store.temperature is not None:
                raise ValueError(
                    f"alpha or temperature of the store {store.uri} in evaluation.stores mean nothing: "
                    "evaluation is at temperature 1; remove them"
                )
        return self

    @model_validator(mode="after")
    def _evaluation_is_possible(self) -> TrainConfig:
        evaluation, save_steps = self.evaluation, self.training.save_steps
        if not self.data.held_out_fraction and evaluation.stores is None:
            raise ValueError(
                "data.held_out_fraction = 0 leaves nothing to evaluate on; raise it, or give "
                "evaluation.stores"
            )
        if evaluation.best is not None and (
            evaluation.steps is None or save_steps is None or save_steps % evaluation.steps
        ):
            raise ValueError(
                f"evaluation.best = {evaluation.best!r} needs evaluation.steps (now {evaluation.steps}) and "
                f"training.save_steps (now {save_steps}), a multiple of them"
            )
        if evaluation.patience is not None and evaluation.best is None:
            raise ValueError(
                f"evaluation.patience = {evaluation.patience} needs evaluation.best, the figure to get better"
            )
        return self


def load_config(path: str | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """The run of a TOML (or resolved .json) file with `section.key=value` overrides, checked.

    Raises ConfigError naming the value, the rule and the remedy.
    """
    return checked_config(config_document(path, overrides), path)


def config_document(
    path: str | None, overrides: Sequence[str] = (), options: Mapping[str, str | None] = MappingProxyType({})
) -> dict[str, Any]:
    """What a run is told, not yet checked: the file, then `options` by dotted name, then the overrides."""
    document = read_document(path, what="training") if path is not None else {}
    apply_options(document, options)
    for override in overrides:
        apply_override(document, override)
    return document


def checked_config(document: Mapping[str, Any], path: str | None) -> TrainConfig:
    """The run of a document, which came from the file `path` or from the command line alone."""
    try:
        return TrainConfig.model_validate(document)
    except ValidationError as error:
        where = path if path is not None else "--set"
        problems = [explain_problem(problem, TrainConfig, what="the run") for problem in error.errors()]
        raise ConfigError(f"{where}: {'; '.join(problems)}") from None


def resolved(config: TrainConfig) -> dict[str, Any]:
    """Every setting as JSON values, secrets blanked: what is saved beside the model."""
    return redacted(config.model_dump(mode="json"))
