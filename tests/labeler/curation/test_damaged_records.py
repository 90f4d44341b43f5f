"""What the steps about prompts remember of themselves is told of where it is damaged, whatever it holds then."""

from __future__ import annotations

from pathlib import Path

import pytest

from labeler.curation.check import CheckReport, _before
from labeler.curation.recipe_ledger import read_ledger
from labeler.curation.sift import SiftPaths, _read_report
from logitstore.common.config_file import ConfigError

NO_OBJECTS = ["", "null", "[]", "5", '{"settings": {}', "[" * 100_000]


@pytest.mark.parametrize(
    "content", [*NO_OBJECTS, "{}", '{"settings": 5}', '{"settings": {}, "num_read": "2"}']
)
def test_a_damaged_report_of_a_pass_is_told(tmp_path: Path, content: str) -> None:
    paths = SiftPaths(tmp_path / "out.jsonl")
    paths.report.write_text(content)
    with pytest.raises(ConfigError, match=r"out\.sift\.json is damaged .*--restart"):
        _read_report(paths)


@pytest.mark.parametrize(
    "content", [*NO_OBJECTS, '{"label": 5}', '{"label": {"made_from": 1}}', '{"label": {"report": []}}']
)
def test_a_damaged_ledger_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(ConfigError, match=r"recipe\.json is damaged .*remove it"):
        read_ledger(tmp_path / "recipe.json")


@pytest.mark.parametrize("content", [*NO_OBJECTS, '{"source": "a", "settings": []}'])
def test_a_damaged_report_of_a_check_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "right.check.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"right\.check\.json is damaged"):
        _before(CheckReport("a", {}), path)
