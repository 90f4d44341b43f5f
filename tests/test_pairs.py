"""How tests with clusters and engines are dealt out to the workers that `make test` runs in pairs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from tests.conftest import ENGINES, ByFile

ROOT = Path(__file__).parents[1]


def group_of(nodeid: str) -> str:
    return ByFile._split_scope(cast(Any, None), nodeid)


def test_files_stay_whole_and_all_engines_together() -> None:
    cluster = "tests/cluster/jobs/test_jobs.py"
    assert group_of(f"{cluster}::test_a") == group_of(f"{cluster}::test_b[x::y]") == cluster
    assert group_of(f"{ENGINES}vllm/test_a.py::test_a") == group_of(f"{ENGINES}test_b.py::test_b") == ENGINES


def test_shared_engines_are_used_below_their_folder_alone() -> None:
    uses = re.compile(r"\bengines\.(score|generate|stressed)_teacher\(")
    users = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if uses.search(path.read_text(encoding="utf-8"))
    ]
    assert len(users) > 3
    assert [path for path in users if not path.startswith(ENGINES)] == []
