"""No text of a cluster's description can leave its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cluster.describe.settings.cluster import ClusterConfig
from cluster.describe.settings.one_line import SCRIPTS

GROUP = {"name": "g", "count": 1, "cores": 8}


def text_fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Path of every plain text of a section, sections within it included."""
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += text_fields(kind, (*path, name))
        elif kind is str and name not in SCRIPTS:
            found.append((*path, name))
    return found


FIELDS = text_fields(ClusterConfig)


def test_there_are_fields_to_try() -> None:
    assert {("currency",), ("ray_version",), ("slurm", "partition")} <= set(FIELDS)


@pytest.mark.slow
@given(
    st.sampled_from(FIELDS),
    st.text(max_size=5),
    st.sampled_from("\n\r\x00\x1b\u2028\x85"),
    st.text(max_size=5),
)
def test_a_newline_in_any_field_is_refused(
    path: tuple[str, ...], before: str, control: str, after: str
) -> None:
    value: object = before + control + after
    for name in reversed(path):
        value = {name: value}
    assert isinstance(value, dict)
    with pytest.raises(ValidationError):
        ClusterConfig.model_validate({"name": "c", "groups": [GROUP]} | value)


@pytest.mark.parametrize("line", ["module load \x00cuda", "echo \udcff", "module load cuda\r"])
def test_a_script_has_lines_and_no_control_character(line: str) -> None:
    """Half of a letter, as JSON may hold, ended `render` as a defect."""
    setup = f"set -e\n{line}\n"
    with pytest.raises(
        ValidationError, match=r"setup: line 2, .*, which is no character of a script; leave it out"
    ):
        ClusterConfig.model_validate({"name": "c", "groups": [GROUP], "slurm": {"setup": setup}})
    lines = {"setup": "module load cuda\n\techo 'ü'  # no\u00a0break, 👩\u200d🔬\n"}
    ClusterConfig.model_validate({"name": "c", "groups": [GROUP], "slurm": lines})


@pytest.mark.parametrize(
    "setting", [{"ray_version": '2.60.0" && touch /x && echo "'}, {"slurm": {"partition": "gpu --wrap=x"}}]
)
def test_a_word_cannot_become_several(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ClusterConfig.model_validate({"name": "c", "groups": [GROUP]} | setting)
