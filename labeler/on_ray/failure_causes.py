"""What went wrong in an actor, in one line, without the layers of Ray around it."""

from __future__ import annotations

import re

from ray.exceptions import GetTimeoutError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from labeler.errors import EngineDiedError
from labeler.on_ray.lacking import remedy_of

MAX_LENGTH = 600


def left_actor_alive(error: Exception) -> bool:
    """Whether a call failed and its actor lives: our code raised there, or the answer cannot be fetched.
    All else that Ray raises tells of the actor's end, in classes of their own where a node lacks memory."""
    if isinstance(error, RayActorError | EngineDiedError):
        return False
    return isinstance(error, RayTaskError | ObjectLostError | GetTimeoutError)


def first_cause(error: Exception) -> str:
    """The kind of the innermost error and its first line, or what became of the actor; and the remedy for
    a package that is missing there."""
    said = _first_cause(error)
    remedy = remedy_of(said)
    return f"{said}; {remedy}" if remedy else said


def _first_cause(error: Exception) -> str:
    if isinstance(error, RayActorError):
        return actor_death(str(error))
    if isinstance(error, OutOfMemoryError):
        return lack_of_memory(str(error))
    cause: BaseException = error
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        cause = error.cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"[:MAX_LENGTH]


def actor_death(text: str) -> str:
    """Ray's account of an actor's death in a few words; its own, shortened, where it is of no known form."""
    if "node has died" in text or "node was marked dead" in text:
        return "its node has died or was cut off"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "error raised in its creation task" in text:
        return f"it could not be made{_where(text)}: {lines[-1]}"[:MAX_LENGTH]
    process = re.search(r"pid: (\d+)", text)
    exit_type = re.search(r"Worker exit type: (\w+)", text)
    if process is not None and exit_type is not None and exit_type[1] == "SYSTEM_ERROR":
        where = _where(text)
        return f"its process {process[1]}{where} was killed or crashed; dmesg there tells of lack of memory"
    details = [line for line in lines if not line.startswith(("class_name:", "actor_id:", "namespace:"))]
    return "; ".join(details[:4])[:MAX_LENGTH]


def lack_of_memory(text: str) -> str:
    """Ray's account of an actor that it ended for its node's sake."""
    used = re.search(r"was ([\d.]+ ?\w+ used / [\d.]+ ?\w+) limit", text)
    amount = f": {used[1]}" if used is not None else ""
    return (
        f"Ray ended it{_where(text)}, whose memory was nearly full{amount}. End what else runs there, put "
        "fewer replicas on a node (workers.cores, workers.resources), or raise RAY_memory_usage_threshold"
    )


def _where(text: str) -> str:
    """The node, as Ray's accounts of an actor's death name it in two forms."""
    host = re.search(r"\bip[:=] ?([^\s,)]+)", text)
    return f" on {host[1]}" if host is not None else ""
