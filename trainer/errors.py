"""Every error that the trainer raises on purpose: one tree, each also a standard type, all picklable.

They speak of arguments, since whoever uses the dataset or the Trainer in code has no configuration file. The
message states the value found, the rule and the remedy.
"""

from __future__ import annotations

from logitstore.common.exit_status import ExitStatus
from logitstore.common.store_warning import StoreWarning


class TrainerError(Exception):
    """Base of the trainer's errors."""

    exit_status = ExitStatus.WRONG


class SettingError(TrainerError, ValueError):
    """An argument that cannot be, or that does not fit the others."""


class GuardError(TrainerError, ValueError):
    """Store and student do not fit together."""


class PackingError(TrainerError, ValueError):
    """The student does not keep the documents of a packed batch apart."""


class UnsupportedHeadError(TrainerError, ValueError):
    """The model's logits are not softcap(scale (hidden weight^T + bias))."""


class CacheTooSmallError(TrainerError, ValueError):
    """The cache cannot hold the shards that must be there at once."""


class CacheFullError(TrainerError, OSError):
    """The disk of the cache is full: read without the cache."""


class ReshardingError(TrainerError, RuntimeError):
    """Something divides data among processes that the dataset has divided already."""


class NotFiniteError(TrainerError, RuntimeError):
    """A student's figures are no finite numbers: there is nothing to compare, choose by or write down."""

    exit_status = ExitStatus.FAILED


class RunBusyError(TrainerError, RuntimeError):
    """Another process writes into the same folder."""

    exit_status = ExitStatus.BUSY


class TrainingWarning(StoreWarning):
    """What may not be meant, and is done all the same. Commands show it as a line of their own."""
