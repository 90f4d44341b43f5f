"""The direction of imports, read from the sources and seen in fresh interpreters.

`logitstore` stands alone; `labeler` and `trainer` know only it; `cluster` knows only `labeler.config.loading`.
Whoever trains needs neither Ray nor vLLM, whoever reads a store not even torch.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("logitstore", "labeler", "trainer", "cluster", "benchmarks", "tests")
ENGINES = ("torch", "ray", "vllm", "transformers")

ALLOWED_PREFIXES = {
    "logitstore": ("logitstore",),
    "labeler": ("labeler", "logitstore"),
    "trainer": ("trainer", "logitstore"),
    "cluster": ("cluster", "labeler.config.loading", "logitstore.common", "logitstore.__version__"),
}
"""What a package may import of ours; `logitstore.__version__` stands for the version string alone."""

VLLM_ROOM = "labeler/teacher/vllm/"
"""The only room of the product whose modules may import vllm; `capture.py` runs inside the engine's worker."""


def imported_names(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names a file imports, `from a import b` as "a.b", with their lines; relative ones resolved."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
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
    assert loaded_after_importing(modules("logitstore"), banned) == "[]"


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
        ("trainer", ["train", "configs/demo-train.toml"], "train"),
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
    assert f"pip install 'penumbra[{extra}]'" in run.stderr
    assert "Traceback" not in run.stderr
