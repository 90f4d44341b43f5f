"""The direction of imports, read from the sources and seen in fresh interpreters.

`logitstore` stands alone; `labeler` and `trainer` know only it; `cluster` knows both it and what of
`labeler` is light.
Whoever trains needs neither Ray nor vLLM, whoever reads a store not even torch.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("logitstore", "labeler", "trainer", "cluster", "benchmarks", "tests")
ENGINES = ("torch", "ray", "vllm", "transformers")

ALLOWED_PREFIXES = {
    "logitstore": ("logitstore",),
    "labeler": ("labeler", "logitstore"),
    "trainer": ("trainer", "logitstore"),
    "cluster": ("cluster", "labeler", "logitstore"),
}
"""What a package may import of ours. What `cluster` imports must also be light, as a test of its own proves."""

VLLM_ROOM = "labeler/teacher/vllm/"
"""The only room of the product whose modules may import vllm; `capture/` runs inside the engine's worker."""


Import = ast.Import | ast.ImportFrom


@dataclass(frozen=True, slots=True)
class Source:
    """What a file imports and defines. Its tree is let go: kept, those of all files would be looked through for
    garbage again and again, in the tests after these too."""

    imports: tuple[Import, ...]
    """At its top and within functions."""
    top_imports: tuple[Import, ...]
    """Those that run when the module is imported; neither in functions nor below `if TYPE_CHECKING:`."""
    defined: frozenset[str]
    """Names that it gives a meaning at its top."""


@functools.cache
def source_of(path: Path) -> Source:
    body = ast.parse(path.read_text(encoding="utf-8"), str(path)).body
    defined = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [name for target in targets if target for name in ast.walk(target)]
        defined |= {name.id for name in names if isinstance(name, ast.Name)}
    return Source(tuple(imports_in(body)), tuple(top_level_imports(body)), frozenset(defined))


def imports_in(nodes: list[Any]) -> Iterator[Import]:
    """Imports are statements, so expressions need no look."""
    for node in nodes:
        if isinstance(node, Import):
            yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, field, None)
            yield from imports_in(inner) if isinstance(inner, list) else ()


def top_level_imports(body: list[ast.stmt]) -> Iterator[Import]:
    for node in body:
        parts = [*node.body, *node.orelse] if isinstance(node, ast.If) and not is_typing(node) else [node]
        yield from (part for part in parts if isinstance(part, Import))


def is_typing(node: ast.If) -> bool:
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imported_names(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names a file imports, `from a import b` as "a.b", with their lines; relative ones resolved."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in source_of(path).imports:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def forbidden_imports(package: str) -> list[str]:
    allowed = ALLOWED_PREFIXES[package]
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for name, line in imported_names(path):
            ours = name.split(".")[0] in OURS
            if ours and not any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed):
                found.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED_PREFIXES))
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    assert forbidden_imports(package) == []


def test_only_the_teacher_imports_vllm() -> None:
    importers = {
        path.relative_to(ROOT).as_posix()
        for package in ALLOWED_PREFIXES
        for path in (ROOT / package).rglob("*.py")
        for name, _ in imported_names(path)
        if name.split(".")[0] == "vllm"
    }
    assert importers
    assert all(path.startswith(VLLM_ROOM) for path in importers)


def test_what_runs_beside_vllm_is_imported_late() -> None:
    """Its packages are there in a worker's process; a driver, or a machine that submits, may have none."""
    importers = {
        path.relative_to(ROOT).as_posix()
        for package in ("labeler", "cluster")
        for path in (ROOT / package).rglob("*.py")
        for node in source_of(path).top_imports
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("labeler.teacher.vllm.")
    }
    assert importers
    assert all(path.startswith(VLLM_ROOM) for path in importers)


def test_the_import_reader_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    source = tmp_path / "trainer" / "x.py"
    source.parent.mkdir()
    source.write_text(
        "import labeler.run as r\nfrom labeler import plan\nfrom . import order\n"
        "def f():\n    from cluster.config import C\n"
    )
    assert [name for name, _ in imported_names(source)] == [
        "labeler.run", "labeler.plan", "trainer.order", "cluster.config.C",
    ]  # fmt: skip
    assert forbidden_imports("trainer") == [
        "trainer/x.py:1 imports labeler.run",
        "trainer/x.py:2 imports labeler.plan",
        "trainer/x.py:5 imports cluster.config.C",
    ]


@functools.cache
def names_of(module: str) -> tuple[frozenset[str], dict[str, str]]:
    """What a module of ours defines at its top, and the names it imports from ours with their modules."""
    path = ROOT / (module.replace(".", "/") + ".py")
    path = path if path.exists() else ROOT / module.replace(".", "/") / "__init__.py"
    imported = {
        alias.asname or alias.name: node.module
        for node in source_of(path).imports
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS
        for alias in node.names
    }
    return source_of(path).defined, imported


def imports_through_a_third_module() -> list[str]:
    """Names imported from a module that itself only imports them. Faces, and a module that gathers its own
    room's names (`labeler.config.loading`), are meant to be imported from."""
    found = []
    for path in sorted(file for package in OURS for file in (ROOT / package).rglob("*.py")):
        for node in source_of(path).imports:
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            module = node.module
            if module in FACES or module.split(".")[0] not in OURS:
                continue
            defined, imported = names_of(module)
            for alias in node.names:
                origin = imported.get(alias.name, "")
                is_own_room = origin.rpartition(".")[0] == module.rpartition(".")[0] and "__all__" in defined
                if alias.name not in defined and origin and not is_own_room:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {module}.{alias.name} of {origin}")
    return found


FACES = ("logitstore", "trainer")


def test_nothing_is_imported_through_a_third_module() -> None:
    assert imports_through_a_third_module() == []


@pytest.mark.parametrize("package", ["logitstore", "trainer"])
def test_the_face_names_what_exists(package: str) -> None:
    face = importlib.import_module(package)
    for name in set(face.__all__) - {"__version__"}:
        assert getattr(face, name).__name__ == name
        assert name in dir(face)
    with pytest.raises(AttributeError, match="has no attribute 'Teacher'"):
        _ = face.Teacher


def test_asking_for_a_face_loads_no_engine() -> None:
    assert loaded_after_importing(["logitstore", "trainer"], (*ENGINES, "pydantic")) == "[]"


def test_documents_use_the_faces_alone() -> None:
    """So that a later move of a module changes nothing for those who copied from a document."""
    pages = [*ROOT.glob("*.md"), *(page for name in OURS for page in (ROOT / name).rglob("*.md"))]
    pages.append(ROOT / "tests/trainer/data/bare_loop.py")
    inner = re.compile(r"^\s*from ((?:logitstore|trainer)\.[\w.]+) import", re.MULTILINE)
    documents = {page: page.read_text(encoding="utf-8") for page in pages}
    assert len(documents) >= 5
    assert {page.name: inner.findall(text) for page, text in documents.items() if inner.search(text)} == {}


def modules(package: str, *, without: tuple[str, ...] = ()) -> list[str]:
    names = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not name.endswith("__main__") and name not in without:
            names.append(name)
    return names


def loaded_after_importing(names: list[str], banned: tuple[str, ...]) -> str:
    """Import modules in a fresh interpreter where `banned` cannot be found; which engines got loaded."""
    program = (
        "import importlib, sys\n"
        f"for name in {banned!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(sorted(set({(*ENGINES, 'pydantic')!r}) & {{n for n, m in sys.modules.items() if m}}))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip()


def test_the_store_loads_no_engine_and_no_pydantic() -> None:
    banned = (*ENGINES, "pydantic", "labeler", "trainer", "cluster", "benchmarks")
    store = modules("logitstore", without=("logitstore.common.section",))
    assert loaded_after_importing(store, banned) == "[]"


def test_the_cluster_tools_load_no_engine() -> None:
    banned = (*ENGINES, "trainer", "benchmarks")
    assert loaded_after_importing(modules("cluster"), banned) in ("['pydantic']", "[]")


def test_checking_a_job_file_loads_no_engine() -> None:
    assert loaded_after_importing(["labeler.config.loading"], ENGINES) == "['pydantic']"


@pytest.mark.slow
def test_the_trainer_needs_neither_ray_nor_vllm() -> None:
    banned = ("ray", "vllm", "labeler", "cluster", "benchmarks")
    assert "'torch'" in loaded_after_importing(modules("trainer"), banned)


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("trainer", ["train", "configs/demo-train.toml", "--set", "student.model=configs"], "train"),
        ("labeler", ["run", "configs/demo-score.toml", "--dry-run"], "label"),
        ("cluster", ["list", "--address", "http://127.0.0.1:1"], "cluster"),
        ("benchmarks", ["storage", "--quick"], "label-cpu,train,bench"),
    ],
)
def test_a_command_without_its_packages_names_the_extra(
    package: str, arguments: list[str], extra: str
) -> None:
    """As after `pip install .`, which brings what reads a store and checks a configuration."""
    program = (
        "import runpy, sys\n"
        f"for name in {(*ENGINES, 'yaml', 'jinja2', 'matplotlib')!r}: sys.modules[name] = None\n"
        f"sys.argv = [{package!r}, *{arguments!r}]\n"
        f"runpy.run_module({package!r}, run_name='__main__')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 2, run.stderr[-2000:]
    assert f"pip install '.[{extra}]'" in run.stderr
    assert "Traceback" not in run.stderr


def import_graph(package: str) -> dict[str, set[str]]:
    """Module to the modules of the package that it imports at its top level."""
    names = set(modules(package))
    graph: dict[str, set[str]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found = {
            f"{node.module}.{alias.name}"
            for node in source_of(path).top_imports
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        found |= {
            alias.name
            for node in source_of(path).top_imports
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        targets = {each if each in names else each.rpartition(".")[0] for each in found}
        graph[name] = (targets & names) - {name}
    return graph


@pytest.mark.parametrize("package", ["logitstore", "labeler", "trainer", "cluster", "benchmarks"])
def test_no_modules_import_each_other(package: str) -> None:
    graph = import_graph(package)
    assert len(graph) > 10
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()  # raises CycleError, which names the circle


def test_a_circle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "trainer").mkdir()
    for name, text in {
        "a": "from trainer.b import x\n",
        "b": "if True:\n    from trainer import c\n",
        "c": "import trainer.a\n",
        "d": "if TYPE_CHECKING:\n    from trainer.a import y\ndef f():\n    from trainer.d import z\n",
    }.items():
        (tmp_path / "trainer" / f"{name}.py").write_text(text)
    graph = import_graph("trainer")
    assert graph == {
        "trainer.a": {"trainer.b"}, "trainer.b": {"trainer.c"}, "trainer.c": {"trainer.a"}, "trainer.d": set(),
    }  # fmt: skip
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()
