"""An interpreter whose environment lacks packages, as a node of a cluster may have it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import labeler
import logitstore


def interpreter_without(folder: Path, *names: str) -> Path:
    """A virtual environment with everything of this one, but for what is imported or installed as `names`."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)], check=True)
    target = next((folder / "lib").glob("python3*")) / "site-packages"
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        name = entry.name.lower().replace("-", "_")
        is_left_out = any(name == one or name.startswith((f"{one}.", f"{one}_", f"{one}-")) for one in names)
        if not is_left_out and not name.startswith("__editable__") and not (target / entry.name).exists():
            (target / entry.name).symlink_to(entry)
    for package in (labeler, logitstore):
        (target / package.__name__).symlink_to(Path(package.__path__[0]))
    return folder / "bin" / "python"
