"""The errors of a store: one small picklable tree, each also a standard exception.

Every message states the value found, the rule it breaks and the remedy. The classes take a single
message so that they survive pickling between Ray processes. `exit_status` is what a command ends with (see
`logitstore.common.exit_status.ExitStatus`): 2 where the user named something that does not fit, else 3.
"""

from __future__ import annotations

from logitstore.common.exit_status import ExitStatus


class StoreError(Exception):
    """Base of every error that a logit store raises on purpose."""

    exit_status = ExitStatus.UNREACHABLE


class StoreNotFoundError(StoreError, FileNotFoundError):
    """No store lies at this URI."""

    exit_status = ExitStatus.WRONG


class StoreExistsError(StoreError, FileExistsError):
    """A store with another manifest already lies at this URI."""

    exit_status = ExitStatus.WRONG


class StoreChangedError(StoreError, ValueError):
    """The store is not the one that a plan or a saved state was made for."""

    exit_status = ExitStatus.WRONG


class CorruptShardError(StoreError, ValueError):
    """A shard's bytes are not what the format allows or what its checksum says."""


class CorruptManifestError(StoreError, ValueError):
    """A manifest, commit record or index is not what the format allows."""


class UnsupportedFormatError(StoreError, ValueError):
    """The store needs a format version or feature that this reader does not know."""


class TemperatureError(StoreError, ValueError):
    """No normaliser is stored, nor can be interpolated, for the temperature asked for."""

    exit_status = ExitStatus.WRONG


class InvalidLabelsError(StoreError, ValueError):
    """Label rows handed to the writer break the rules of the format."""

    exit_status = ExitStatus.WRONG


class ObjectNotFoundError(StoreError, FileNotFoundError):
    """An object that a manifest, index or commit record names is not there."""


class ObjectStoreError(StoreError, OSError):
    """The disk or object store refused or failed, after bounded retries."""


class UnsuitablePlaceError(ObjectStoreError):
    """The place cannot hold a store that is written: its protocol or server has no conditional writes."""

    exit_status = ExitStatus.WRONG


class AccessRefusedError(ObjectStoreError):
    """The server does not permit this request: of a listing this says nothing about what lies there."""


NOT_THERE = (ObjectNotFoundError, AccessRefusedError)
"""What reading an object raises that need not be there and is not: a key that may not list is refused what is
not there."""


class UnsafeNameError(StoreError, ValueError):
    """An object name that is absolute, climbs out of the store or holds characters we never write."""


class SecretInManifestError(StoreError, ValueError):
    """A configuration that would put credentials into a store."""

    exit_status = ExitStatus.WRONG


class InputNotFoundError(StoreError, FileNotFoundError):
    """An input path, glob or URL matches no file."""

    exit_status = ExitStatus.WRONG


class UnsupportedInputError(StoreError, ValueError):
    """An input, import or export in a form that is not read or written."""

    exit_status = ExitStatus.WRONG


class IndexLostError(StoreError, ValueError):
    """Shards lie here that no index or manifest names: absence of a name is not absence of labels."""


class UnsafeObjectError(StoreError, ValueError):
    """An object that is no regular file, or larger than anything that bears its name."""
