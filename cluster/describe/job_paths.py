"""Paths of a job that is carried to machines which have none of them."""

from __future__ import annotations

import os

from labeler.config.loading import JobConfig, is_local_path
from logitstore.common.config_file import ConfigError


def refuse_local_paths(job: JobConfig, machine: str, otherwise: str = "") -> None:
    """Raises ConfigError for a path that no `machine` of the kind has; `otherwise` is what else can be done
    about a teacher or a template."""
    uris = {"input.uri": job.input.uri, "output.uri": job.output.uri, "labels.given": job.labels.given}
    for setting, uri in uris.items():
        if uri and is_local_path(uri):
            raise ConfigError(f"{setting} {uri!r} is a path, which no {machine} has; use s3://")
    model = job.teacher.model
    if model.startswith(("/", "./", "../", "~")) or os.path.isdir(model):
        raise ConfigError(
            f"teacher.model {model!r} is a path, which no {machine} has; name a Hugging Face id"
            + (otherwise and f", or mount it{otherwise}")
        )
    template = job.input.chat_template
    if isinstance(template, str):
        raise ConfigError(
            f"input.chat_template {template!r} is a path, which no {machine} has; keep the template with the "
            "model's tokenizer" + (otherwise and f", or mount it{otherwise}")
        )
