"""A wheel of a checkout holds what lies there now, configs and templates included."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKED = ("logitstore", "labeler", "trainer", "cluster", "benchmarks", "configs")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout."""
    tree = tmp_path / "tree"
    for name in PACKED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    return tree


@pytest.mark.slow
def test_nothing_of_an_earlier_build_is_in_a_wheel(tree: Path) -> None:
    stale = tree / "build/lib/logitstore/removed_long_ago.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    labels = tree / "build/labels/manifest.json"
    labels.parent.mkdir()
    labels.write_text("{}")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        "out",
        ".",
    ]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tree / "out").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if "removed_long_ago" in name] == []
    assert "logitstore/store.py" in names
    assert "logitstore/FORMAT.md" in names
    assert any(name.endswith("configs/demo-train.toml") for name in names), "configs come along"
    assert any(name.endswith("configs/byte-tokenizer/tokenizer.json") for name in names), "and what they name"
    assert {f"benchmarks/results/{name}.json" for name in ("storage", "decode")} <= {*names}, "for bench plan"
    assert labels.exists(), "what a person keeps in build/ stays"


@pytest.mark.slow
def test_a_source_distribution_has_no_part_of_the_tests(tree: Path) -> None:
    """setuptools takes tests/test*.py along, which start no test without the rest."""
    (tree / "tests").mkdir()
    shutil.copy(__file__, tree / "tests")
    command = [sys.executable, "setup.py", "-q", "sdist"]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert not [name for name in names if name.startswith("tests")]
    assert {"logitstore/FORMAT.md", "configs/demo-train.toml", "benchmarks/results/storage.json"} <= names
