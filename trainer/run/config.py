"""The configuration of a training run: one TOML file, checked before a model or a store is opened.

Imports neither torch nor transformers. What a field means stands below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

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
from trainer.run.settings.data import DataConfig, Sources
from trainer.run.settings.student import StudentConfig

__all__ = [
    "ConfigError",
    "TrainConfig",
    "checked_config",
    "config_document",
    "load_config",
    "resolved",
]


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
    """As transformers names them (`optim`): adafactor, adamw_bnb_8bit, lion_32bit, sgd, ..."""
    optimizer_args: str | None = None
    """Arguments of the optimizer, as "name=value,name=value"."""
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
    """Arguments of the schedule: { num_decay_steps = 100 } for warmup_stable_decay, { min_lr = 1e-6 } for
    cosine_with_min_lr."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the rate rises to its highest."""
    warmup_ratio: float | None = Field(default=None, ge=0, lt=1)
    """Share of all steps, instead of `warmup_steps`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of the weights per step, times the rate."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the gradient's mean."""
    adam_beta2: float = Field(default=0.98, gt=0, lt=1)
    """AdamW's decay of the gradient's squares."""
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
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of new weights, those of adapters too, and of dropout."""
    logging_steps: int = Field(default=5, ge=1)
    """Steps between two lines of the log."""
    save_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; None saves only the final model."""
    save_total_limit: int = Field(default=2, ge=1)
    """Checkpoints kept."""
    tensorboard: bool = True
    """Write TensorBoard logs below the output folder."""
    report_to: tuple[Literal["wandb", "mlflow", "trackio", "comet_ml", "swanlab"], ...] = ()
    """Trackers that get the settings and figures too; their packages must be installed, and they are set up
    by their own variables: WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_DIR and so on."""
    run_name: str | None = None
    """What trackers call the run."""
    project: str | None = None
    """What trackers file the run under (MLflow: the experiment), where no variable of theirs says it."""

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
    """Held-out sequences evaluated, chosen by a hash of their records' ids: the same ones whatever seeds,
    order, batches and processes are. None takes all."""
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

    @field_validator("folder")
    @classmethod
    def _named(cls, folder: str) -> str:
        if not folder.strip():
            raise ValueError("it names no folder, and none is assumed; give a path")
        return folder


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
            if store.weight != 1:
                raise ValueError(
                    f"weight = {store.weight:g} of the store {store.uri} in evaluation.stores means nothing: "
                    "each sequence is judged once; remove it, or choose sequences by where, ids and "
                    "without_ids"
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
