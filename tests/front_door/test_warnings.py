"""What a command warns of is a line of its own, and no line of source."""

import ast
from pathlib import Path

import pytest

import cluster
import labeler
import logitstore
import trainer

OF_COMMANDS = ("TrainingWarning", "StoreWarning")


@pytest.mark.parametrize("package", [logitstore, labeler, trainer, cluster], ids=lambda one: one.__name__)
def test_every_warning_is_of_a_kind_that_commands_show_as_a_line(package):
    calls = [
        (path, call)
        for path in Path(package.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "warnings.warn"
    ]
    assert calls or package in (labeler, cluster), "the calls are not found"
    others = [
        f"{path}:{call.lineno}"
        for path, call in calls
        if len(call.args) < 2 or ast.unparse(call.args[1]) not in OF_COMMANDS
    ]
    assert not others
