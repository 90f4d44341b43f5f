"""What transformers raises at a model that it cannot load, or takes without a word, as our errors."""

from __future__ import annotations

from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from logitstore.common.config_file import ConfigError
from logitstore.common.terminal import first_line


def not_loaded(error: Exception, what: str, remedy: str) -> ConfigError:
    """The error to raise for one of `from_pretrained`, which may be of any kind for whatever stands in a
    model's files; `what` names setting and model.

    Raises the error itself where it says nothing of the model's files.
    """
    if "trust_remote_code" in str(error):
        return ConfigError(
            f"{what} comes with Python code of its own, which is not run unasked; read it, and set "
            "student.trust_remote_code = true (parity takes no such model)"
        )
    if isinstance(error, UnpicklingError | EOFError):
        return ConfigError(
            f"{what} has a *.bin file that is no whole one of weights; fetch the model again, or give a "
            "folder with its weights as safetensors"
        )
    if isinstance(error, OSError | ValueError | SafetensorError):
        return ConfigError(f"{what}: no model there ({first_line(error)}); {remedy}")
    if isinstance(error, RuntimeError | MemoryError) and "ignore_mismatched_sizes" not in str(error):
        raise error
    if not isinstance(error, RuntimeError):
        return ConfigError(
            f"{what}: its files cannot be read ({first_line(error)}); correct its config.json, or upgrade "
            "transformers where the model is newer than it is"
        )
    return ConfigError(
        f"{what} has weights of other sizes than its config.json says, as the table above shows; fetch the "
        "model again, or correct the file"
    )


def refuse_fresh_weights(loading: Mapping[str, Any], what: str) -> None:
    """Raises ConfigError where files lack weights of the model, which transformers then makes at random."""
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ConfigError(
            f"{what} lacks {len(missing):,} of its weights, such as {missing[0]!r}, which would start at "
            "random: is it a causal language model, and whole? To start so on purpose, save it as one first "
            "(transformers: AutoModelForCausalLM.from_pretrained, then save_pretrained)"
        )
