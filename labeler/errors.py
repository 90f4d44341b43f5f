"""Every error that the labeler raises on purpose: one tree, each also a standard type, all picklable.

Errors travel between Ray's processes. The message states the value found, the rule and the remedy;
`exit_status` is what a command ends with (`logitstore.common.exit_status.ExitStatus`).
"""

from __future__ import annotations

from logitstore.common.config_file import ConfigError
from logitstore.common.exit_status import ExitStatus

STOPPED_EARLY = "stopped before any replica was started; run the same command again to go on"


class LabelerError(Exception):
    """Base of the labeler's errors."""

    exit_status = ExitStatus.FAILED


class JobFailedError(LabelerError, RuntimeError):
    """The job cannot go on; the message says why and what to do."""


class OwnJobError(JobFailedError):
    """A job that another command makes for itself did not reach its end; the command ends with its status."""

    def __init__(self, message: str, exit_status: ExitStatus = ExitStatus.FAILED) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class ClusterLostError(JobFailedError):
    """The Ray cluster is gone: nothing can be asked of it any more, not even to end."""


class EngineDiedError(LabelerError, RuntimeError):
    """A worker's engine is dead for good. Every lease of the worker fails with this one cause."""

    def __init__(self, reason: str, culprits: tuple[int, ...]) -> None:
        super().__init__(reason, culprits)
        self.reason = reason
        self.culprits = culprits
        """The leases that were in the engine when it died, oldest first."""

    def __str__(self) -> str:
        return self.reason


class OtherSettingsError(LabelerError, ValueError):
    """The store's labels were made otherwise than this job would make them."""

    exit_status = ExitStatus.WRONG


class StoppedError(LabelerError, RuntimeError):
    """The job was told to stop before any engine was at work."""

    exit_status = ExitStatus.STOPPED


class LeaseLostError(LabelerError, RuntimeError):
    """Another driver has taken over the store."""

    exit_status = ExitStatus.BUSY


class StaleLeaseError(LabelerError, RuntimeError):
    """A unit was planned anew by another driver since it was leased."""


class PlanTakenError(LabelerError, RuntimeError):
    """Another driver wrote to the plan at the same time."""

    exit_status = ExitStatus.BUSY


class TooManyRejectsError(LabelerError, ConfigError):
    """More records were rejected than the job allows."""

    exit_status = ExitStatus.WRONG


class NothingToLabelError(LabelerError, ValueError):
    """Not one record of the input can be labeled."""

    exit_status = ExitStatus.WRONG


class StoreBusyError(LabelerError, RuntimeError):
    """Another live driver works on the store."""

    exit_status = ExitStatus.BUSY


class TeacherMismatchError(LabelerError, RuntimeError):
    """A teacher is not the one that the store was labeled with."""

    exit_status = ExitStatus.WRONG


class RejectError(LabelerError, ValueError):
    """What makes a reject of its record: a reason in words, and a kind by which rejects are counted."""

    def __init__(self, reason: str, kind: str) -> None:
        super().__init__(reason, kind)
        self.reason = reason
        self.kind = kind

    def __str__(self) -> str:
        return self.reason


class BadRecordError(RejectError):
    """A record that cannot be labeled; the message holds the value, the rule and the remedy."""

    exit_status = ExitStatus.WRONG


class ChatTemplateError(LabelerError, ValueError):
    """The chat template refuses these messages; the message says why."""

    exit_status = ExitStatus.WRONG


class TeacherDiedError(LabelerError, RuntimeError):
    """The engine is gone for good: replace the process that held it and lease its work again."""


class PromptError(LabelerError, ValueError):
    """One prompt that the teacher cannot label. The message holds the value, the rule and the remedy."""

    exit_status = ExitStatus.WRONG

    def __init__(self, record_id: str, reason: str, kind: str, sample_index: int | None = None) -> None:
        super().__init__(record_id, reason, kind, sample_index)
        self.record_id = record_id
        self.reason = reason
        self.sample_index = sample_index
        """The one sample that failed; None where the prompt gives none at all."""
        self.kind = kind
        """A stable word to count by: "too_long", "bad_token_id", "empty", "bad_prompt", "bad_labels",
        "engine_error", "server_failed"."""

    def __str__(self) -> str:
        return f"record {self.record_id!r}: {self.reason}"
