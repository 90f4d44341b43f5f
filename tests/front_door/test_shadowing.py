"""A folder with a user's own `trainer.py`, `labeler.py` and `cluster/`, in which our commands still work."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_our_own_subprocesses_do_not_look_into_the_current_folder() -> None:
    """Every `python -m` of ours that the product starts has -P; Ray's own command is Ray's."""
    without = []
    for package in ("labeler", "trainer", "cluster", "benchmarks", "logitstore"):
        for path in (ROOT / package).rglob("*.py"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if "sys.executable" in line and '"-m"' in line and "ray.scripts" not in line:
                    without += [] if '"-P", ' in line else [f"{path}:{number}"]
    assert without == []
