"""No folder of the product or of its tests holds more modules than a reader takes in at once."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("logitstore", "labeler", "trainer", "cluster", "benchmarks", "tests")
MOST_MODULES = 13
"""CONTRIBUTING.md: a folder with more than about twelve is divided."""


def crowded(top: Path) -> list[str]:
    """Folders below `top` with too many modules; `__init__.py` and `__main__.py` are no modules of a room."""
    folders = [top, *(path for path in top.rglob("*") if path.is_dir())]
    counts = {
        folder: sum(not path.name.startswith("__") for path in folder.glob("*.py")) for folder in folders
    }
    return [f"{folder} has {count} modules" for folder, count in counts.items() if count > MOST_MODULES]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_is_crowded(package: str) -> None:
    assert crowded(ROOT / package) == []


def test_a_crowded_room_is_found(tmp_path: Path) -> None:
    room = tmp_path / "package" / "room"
    room.mkdir(parents=True)
    for name in ("__init__", "__main__", *(f"step_{number}" for number in range(MOST_MODULES))):
        (room / f"{name}.py").touch()
    assert crowded(tmp_path) == []
    (room / "one_more.py").touch()
    assert crowded(tmp_path) == [f"{room} has 14 modules"]
