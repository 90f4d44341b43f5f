"""Whether this machine has the device that a measurement is asked for."""

from __future__ import annotations

from logitstore.common.config_file import ConfigError


def need_gpu() -> None:
    """Raises ConfigError, before anything is started, where no engine or kernel could use a GPU.

    An engine that finds none runs on the CPU, and its figures would be taken for a GPU's.
    """
    import torch

    if torch.cuda.is_available():
        return
    reason = "this build of it is for CPUs" if torch.version.cuda is None else "the driver shows it none"
    raise ConfigError(
        f"no GPU here: torch {torch.__version__} finds no CUDA device ({reason}); run this on a machine with "
        "one, where `nvidia-smi` lists it and torch is a CUDA build, or leave --gpus out to measure on a CPU"
    )
