"""A place for a store whose name ends like a file: the store beside it, and the file as an export of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from logitstore.common.whole_file import check_replaceable, refuse_input
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.npz.export import export_npz
from logitstore.exchange.tables.export import Progress, export_table
from logitstore.manifest.reading import MANIFEST_NAME
from logitstore.store import LogitStore

SUFFIXES = (".parquet", ".arrow", ".jsonl", ".npz")


def exported_too(out: str | None) -> tuple[str | None, Path | None]:
    """("build/labels.parquet") -> ("build/labels", the file to export); no file where no suffix asks for one.

    Raises UnsupportedInputError for a file that could not be written.
    """
    suffix = next((suffix for suffix in SUFFIXES if out is not None and out.lower().endswith(suffix)), None)
    if out is None or suffix is None:
        return out, None
    if "://" in out:
        raise UnsupportedInputError(
            f"{out} is a URL and an export a local file; give the store's place without {suffix}, and run "
            "`penumbra store export` afterwards"
        )
    path = Path(out)
    if path.is_dir() or path.name.lower() == suffix:
        raise UnsupportedInputError(
            f"{out} is a folder, or a suffix alone; give a name for the exported file"
        )
    check_replaceable(path)
    return str(path.with_suffix("")), path


def refuse_taken(path: Path, store_uri: str, inputs: Sequence[str]) -> None:
    """Raises UnsupportedInputError where the export would take the place of a file that is no export.

    That is a file of the input (--input p.jsonl --out p.jsonl), and any other that is there before the store.
    """
    if not path.exists():
        return
    refuse_input(path, inputs)
    if not os.path.exists(os.path.join(store_uri, MANIFEST_NAME)):
        raise UnsupportedInputError(
            f"{path} exists already, and the export would replace it: no store lies beside it at "
            f"{store_uri}, so it is no export of one; give another name, or remove the file"
        )


def export_file(store: LogitStore, path: Path, progress: Progress | None = None) -> str:
    """Write the whole store in the form of the file's suffix; the number of things written, in words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = path.suffix.lower().removeprefix(".")
    if form == "npz":
        return f"{export_npz(store, path, progress=progress):,} label rows"
    return f"{export_table(store, path, form, progress=progress):,} sequences"
