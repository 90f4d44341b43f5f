"""Checks of everything that can be wrong before an engine, or Ray, starts."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labeler.config.input_settings import FIELDS_BY_KIND
from labeler.config.loading import JobConfig, TeacherConfig
from labeler.errors import ChatTemplateError
from labeler.planning.given_store import check_given
from labeler.planning.unnamed_labels import check_unnamed_labels
from labeler.prompting.prompts import ContextLimits
from labeler.prompting.tokenization import (
    PROBE_QUESTION,
    Conversation,
    HuggingFaceTokenizer,
    Tokenizer,
    load_tokenizer,
)
from labeler.teacher.protocol import usable_tokens
from logitstore.common.config_file import ConfigError
from logitstore.common.secrets import redact_text, redact_uri
from logitstore.common.terminal import first_line
from logitstore.errors import InputNotFoundError, StoreError
from logitstore.index.absence import refuse_lost_manifest
from logitstore.inputs.listing import input_fingerprint
from logitstore.job_objects import JOB_NAMES, JOB_PREFIXES, LEASE_NAME
from logitstore.manifest.fields import InputInfo
from logitstore.manifest.reading import MANIFEST_NAME
from logitstore.models.folder import check_weights, refuse_other_forms
from logitstore.models.hub import check_model_name
from logitstore.objects.opening import TEMPORARY_PREFIX, Objects

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAKE_MAX_MODEL_LEN = 4096


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the driver needs besides the job itself."""

    tokenizer: Tokenizer
    limits: ContextLimits
    input_info: InputInfo
    fingerprint: str
    """Fingerprint of the input's files; a change means that there may be new records."""
    objects: Objects
    """The store's objects; the store itself may not exist yet."""
    unnamed_labels: str = ""
    """A sentence about labels that lie there and that no index names, for the user."""


def prepare(job: JobConfig) -> Prepared:
    """Check input, output and teacher, cheapest first. Raises ConfigError."""
    if job.input.kind == "auto":
        raise ConfigError(
            'input.kind = "auto" is found before a job runs, and was not; set one of '
            f"{', '.join(FIELDS_BY_KIND)} (in code: read the job with labeler.config.found.load_found_job)"
        )
    fingerprint = _check_input(job)
    objects = check_output(job)
    limits = context_limits(job.teacher)
    if job.labels.top_k > limits.vocab_size:
        raise ConfigError(
            f"labels.top_k = {job.labels.top_k} is above the teacher's vocabulary of {limits.vocab_size} "
            "ids; set it to at most that"
        )
    if outside := [one for one in job.sampling.stop_token_ids if one >= limits.vocab_size]:
        raise ConfigError(
            f"sampling.stop_token_ids names {outside[0]}, and the teacher's vocabulary has "
            f"{limits.vocab_size} ids; it would never come: correct it"
        )
    tokenizer = load_tokenizer(job.teacher, job.input, job.sampling)
    check_chat_template(job, tokenizer)
    check_given(job, tokenizer.info)
    info = input_info(job)
    unnamed_labels = check_unnamed_labels(job, objects)
    part = f"/{job.input.slice}" if job.input.slice else ""
    fingerprint = f"{fingerprint}/{job.input.limit}{part}"
    return Prepared(tokenizer, limits, info, fingerprint, objects, unnamed_labels=unnamed_labels)


def input_info(job: JobConfig) -> InputInfo:
    """What the store says of its input."""
    return InputInfo(
        uri=redact_uri(job.input.known_as or job.input.uri),
        kind=job.input.kind,
        fields=job.input.field_names(),
        limit=job.input.limit,
        parts=job.parts,
    )


def context_limits(teacher: TeacherConfig) -> ContextLimits:
    """Vocabulary and context of the teacher, from its config.json alone. Raises ConfigError."""
    if teacher.engine == "fake":
        return ContextLimits(teacher.fake.vocab_size, teacher.max_model_len or FAKE_MAX_MODEL_LEN)
    is_folder = os.path.isdir(teacher.model)
    if os.path.isfile(teacher.model):
        refuse_other_forms(Path(teacher.model), "teacher.model")
    if is_folder and not (Path(teacher.model) / "config.json").is_file():
        refuse_other_forms(Path(teacher.model), "teacher.model")
        raise ConfigError(
            f"teacher.model = {teacher.model!r} is a folder without config.json; give the folder that holds "
            "the model's config and weights"
        )
    if is_folder and teacher.engine == "vllm":
        check_weights(Path(teacher.model), "teacher.model")
    check_model_name(teacher.model, revision=teacher.revision, setting="teacher.model")
    config = _model_config(teacher)
    _refuse_encoder(config, teacher.model)
    text_config = config.get_text_config()
    own_limit = getattr(text_config, "max_position_embeddings", None)
    wanted = teacher.max_model_len
    if own_limit is not None and wanted is not None and wanted > own_limit:
        raise ConfigError(
            f"teacher.max_model_len = {wanted} is above the model's own {own_limit}; lower it or leave it out"
        )
    vocab_size = getattr(text_config, "vocab_size", None)
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise ConfigError(
            f"teacher.model = {teacher.model!r}: its config.json has vocab_size = {vocab_size!r:.40}, and a "
            "language model has a token at least; correct the file, or name a language model"
        )
    return ContextLimits(vocab_size, usable_tokens(int(wanted or own_limit or 2**31 - 1)))


def _model_config(teacher: TeacherConfig) -> PretrainedConfig:
    """Raises ConfigError, whatever the library finds wrong with it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            teacher.model, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code
        )
    except Exception as error:  # noqa: BLE001  # of any kind, for whatever stands in the model's files
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"teacher.model = {teacher.model!r} comes with Python code of its own, which is not run "
                "unasked; read it, and set teacher.trust_remote_code = true"
            ) from None
        if os.path.isdir(teacher.model) or not isinstance(error, OSError | ValueError):
            raise ConfigError(
                f"teacher.model = {teacher.model!r}: its config.json cannot be read ({first_line(error)}); "
                "correct the file, or upgrade transformers and vLLM where the model is newer than they are"
            ) from None
        raise ConfigError(
            f"teacher.model = {teacher.model!r} is neither a folder here nor a model that Hugging Face can "
            f"be asked for ({first_line(error)}); check the path, the name, teacher.revision and the network"
        ) from None


def _refuse_encoder(config: PretrainedConfig, model: str) -> None:
    """A model that predicts no next token: a job would learn it from its engine, a minute later."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    fills_gaps = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if config.is_encoder_decoder or (fills_gaps and not getattr(config, "is_decoder", False)):
        raise ConfigError(
            f"teacher.model = {model!r} has an encoder ({config.model_type}) and is no causal language "
            "model, which predicts each token from those before it; give one that is"
        )


def _check_input(job: JobConfig) -> str:
    try:
        return input_fingerprint(job.input.uri, storage_options=job.input.storage_options)
    except InputNotFoundError as error:
        raise ConfigError(f"input.uri: {error}") from None
    except (StoreError, OSError) as error:
        raise ConfigError(
            f"input.uri = {redact_uri(job.input.uri)!r} cannot be read ({redact_text(str(error))}); check "
            "the address, input.storage_options and the credentials in the environment"
        ) from None


def check_output(job: JobConfig) -> Objects:
    """The store's place answers, and is no other folder with something in it."""
    try:
        objects = Objects(job.output.uri, job.output.storage_options)
        has_manifest = objects.exists(MANIFEST_NAME)
        if not has_manifest:
            refuse_lost_manifest(objects)
        is_ours = has_manifest or objects.exists(LEASE_NAME)
        if objects.is_local and not is_ours:
            _check_local_folder(Path(objects.uri))
    except (StoreError, OSError) as error:
        raise ConfigError(
            f"output.uri = {redact_uri(job.output.uri)!r} cannot be used ({redact_text(str(error))}); "
            "check the path or address, output.storage_options and the credentials in the environment"
        ) from None
    return objects


def _check_local_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output.uri = {str(folder)!r} is a file; give a folder for the store")
    allowed = JOB_NAMES | {prefix.rstrip("/") for prefix in JOB_PREFIXES}
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    # A job that was killed at its first write leaves an unfinished one alone.
    others = [name for name in names if name not in allowed and not name.startswith(TEMPORARY_PREFIX)]
    if others:
        raise ConfigError(
            f"output.uri = {str(folder)!r} is a folder with other things in it, such as {others[0]!r}; give "
            "a new or empty folder"
        )
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(parent, os.W_OK):
        raise ConfigError(
            f"output.uri = {str(folder)!r}: {parent} is not writable; choose another place or its permissions"
        )


def check_chat_template(job: JobConfig, tokenizer: Tokenizer) -> None:
    """Raises ConfigError where messages cannot be rendered, whatever they are."""
    needs_template = job.input.chat_template and job.input.kind in ("messages", "prompt", "prompt_response")
    if needs_template and isinstance(tokenizer, HuggingFaceTokenizer) and not tokenizer.has_chat_template:
        raise ConfigError(
            f"teacher.model = {job.teacher.model!r} has no chat template; set input.chat_template = false to "
            "join plain text, or take the model's instruction-tuned version"
        )
    if needs_template:
        with contextlib.suppress(ChatTemplateError):  # it may want other messages, and has its say on each
            tokenizer.render_chat(
                Conversation(({"role": "user", "content": PROBE_QUESTION},)), add_generation_prompt=True
            )
