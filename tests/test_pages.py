"""Each package has a page that names all of its rooms, and no folder has more siblings than a reader holds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("logitstore", "labeler", "trainer", "cluster", "benchmarks")
MOST_MODULES = 13
"""In one folder, without `__init__.py` and `__main__.py`; more become rooms."""


def rooms(package: str) -> set[str]:
    """Sub-packages directly below a package, as its page writes them."""
    return {f"`{path.parent.name}/`" for path in (ROOT / package).glob("*/__init__.py")}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_of_a_package_names_its_rooms(package: str) -> None:
    page = (ROOT / package / "README.md").read_text(encoding="utf-8")
    assert {room for room in rooms(package) if room not in page} == set()


def test_no_folder_has_too_many_modules() -> None:
    crowded = {}
    for package in PACKAGES:
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        for folder in folders:
            modules = [path for path in folder.glob("*.py") if not path.name.startswith("__")]
            if len(modules) > MOST_MODULES:
                crowded[folder.relative_to(ROOT).as_posix()] = len(modules)
    assert crowded == {}


def test_every_extra_stands_in_the_table_of_installations() -> None:
    """All but those for this project's own tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "INSTALL.md").read_text(encoding="utf-8")
    named = {name for listed in re.findall(r"'\.\[([a-z,-]+)\]'", page) for name in listed.split(",")}
    assert named == project["optional-dependencies"].keys() - {"dev"}
    assert project["name"] in page
