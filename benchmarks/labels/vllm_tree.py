"""Reads the sources of a vLLM without importing it: the installed one, an unpacked one or a wheel."""

from __future__ import annotations

import ast
import importlib.util
import re
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from labeler.teacher.known_vllm import sha256
from logitstore.common.config_file import ConfigError

VERSION_FILE = "vllm/_version.py"
VERSION = re.compile(r"^(?:__version__ = )?version = ['\"]([^'\"]+)['\"]", re.MULTILINE)


class _Files(Protocol):
    def read_text(self, name: str) -> str | None:
        """The text of a file by its path below what holds `vllm`; None if there is none."""
        ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read_text(self, name: str) -> str | None:
        path = self._path / name
        return path.read_text(encoding="utf-8") if path.is_file() else None


class _Wheel:
    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        self._names = frozenset(self._archive.namelist())

    def read_text(self, name: str) -> str | None:
        return self._archive.read(name).decode() if name in self._names else None


class VllmTree:
    """The Python files of one vLLM."""

    def __init__(self, files: _Files, version: str) -> None:
        self._files = files
        self.version = version

    def source(self, module_name: str, qualified_name: str = "") -> str | None:
        """As `inspect.getsource` has it: a module, or a function or class in it; None if there is no such."""
        text = self.module(module_name)
        if text is None or not qualified_name:
            return text
        node = _definition(text, qualified_name)
        if node is None:
            return None
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        return "".join(text.splitlines(keepends=True)[first - 1 : node.end_lineno])

    def module(self, name: str) -> str | None:
        """The text of a module or of a package's `__init__`."""
        path = name.replace(".", "/")
        text = self._files.read_text(f"{path}.py")
        return text if text is not None else self._files.read_text(f"{path}/__init__.py")

    def source_hash(self, module_name: str, qualified_name: str) -> str | None:
        """A `labeler.teacher.known_vllm.SourceHash`."""
        source = self.source(module_name, qualified_name)
        return None if source is None else sha256(source)

    def fields(self, module_name: str, class_name: str) -> frozenset[str]:
        """The annotated fields in the body of a class."""
        text = self.module(module_name)
        node = None if text is None else _definition(text, class_name)
        statements: Sequence[ast.stmt] = () if node is None else node.body
        return frozenset(
            statement.target.id
            for statement in statements
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        )


def installed_tree() -> VllmTree:
    """The vLLM of this interpreter."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        raise ConfigError(
            "no vLLM is installed here; give a wheel, or the folder that one was unpacked to, with --of"
        )
    return _tree(_Folder(Path(found.origin).parents[1]), found.origin)


def tree_at(path: Path) -> VllmTree:
    """That of a wheel, or of a folder that holds `vllm` or is it."""
    if not path.exists():
        raise ConfigError(f"--of {path}: there is no such file or folder; give a wheel or an unpacked one")
    if path.is_dir():
        return _tree(_Folder(path.parent if path.name == "vllm" else path), str(path))
    try:
        return _tree(_Wheel(path), str(path))
    except zipfile.BadZipFile:
        raise ConfigError(
            f"--of {path} is no wheel; give one, or the folder that one was unpacked to"
        ) from None


def _tree(files: _Files, place: str) -> VllmTree:
    text = files.read_text(VERSION_FILE)
    found = None if text is None else VERSION.search(text)
    if found is None:
        raise ConfigError(
            f"{place} holds no {VERSION_FILE} that names a version; give a vLLM wheel "
            "(`pip download vllm==VERSION --no-deps`) or the folder that one was unpacked to"
        )
    return VllmTree(files, found.group(1))


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _definition(
    text: str, qualified_name: str
) -> ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | None:
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef = _parsed(text)
    for part in qualified_name.split("."):
        inner = (
            statement
            for statement in node.body
            if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        )
        found = next((statement for statement in inner if statement.name == part), None)
        if found is None:
            return None
        node = found
    return None if isinstance(node, ast.Module) else node
