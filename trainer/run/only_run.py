"""One run at a time in an output folder: two would mix their checkpoints, weights and figures."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from logitstore.errors import ObjectStoreError
from logitstore.manifest.folders import refuse_in_store
from logitstore.objects.system import lock_file
from trainer.errors import RunBusyError


@contextlib.contextmanager
def only_run(folder: Path, option: str = "output.folder") -> Iterator[None]:
    """Make the folder and hold a lock on it, which leaves nothing there and ends with the process.

    `option` is what named the folder, for errors.

    Where the file system or system has no such locks, that is said and the run goes on without one.

    Raises:
        StoreExistsError: it is, or lies in, the folder of a label store.
        RunBusyError: another process of this machine (over NFSv4, of another one) writes into it.
    """
    refuse_in_store(folder, option)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        lock_file(descriptor, wait=False)
    except BlockingIOError:
        os.close(descriptor)  # type: ignore[arg-type]  # it is open, as its lock was asked for
        raise RunBusyError(
            f"another process writes into {folder}; wait until it ends, or choose another {option}"
        ) from None
    except (OSError, ObjectStoreError) as error:
        print(
            f"note: {folder} cannot be locked ({error}); start no other run into it meanwhile",
            file=sys.stderr,
        )
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
