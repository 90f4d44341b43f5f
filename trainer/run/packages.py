"""Packages that a setting asks for and that no run needs otherwise: named before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from logitstore.common.config_file import ConfigError
from trainer.run.config import TrainConfig


def check_packages(config: TrainConfig) -> None:
    """Raises ConfigError for a setting whose package is not installed."""
    for setting, package in _asked_for(config):
        if find_spec(package.replace("-", "_")) is None:
            raise ConfigError(
                f"{setting} needs the package {package}, which is not installed: pip install {package}, or "
                "remove the setting"
            )


def _asked_for(config: TrainConfig) -> Iterator[tuple[str, str]]:
    lora = config.student.lora
    for tracker in config.training.report_to:
        yield f"training.report_to = {tracker!r}", tracker
    if config.student.quantize is not None:
        yield f"student.quantize = {config.student.quantize!r}", "compressed-tensors"
    if config.training.deepspeed is not None:
        yield "training.deepspeed", "deepspeed"
    if lora is not None:
        yield "student.lora", "peft"
    if lora is not None and lora.load_in_4bit:
        yield "student.lora.load_in_4bit", "bitsandbytes"
