"""A wheel of a checkout holds what lies there now, configs and templates included."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKED = ("logitstore", "labeler", "trainer", "cluster", "benchmarks", "configs")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.mark.slow
def test_nothing_of_an_earlier_build_is_in_a_wheel(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in PACKED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
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
    assert labels.exists(), "what a person keeps in build/ stays"
