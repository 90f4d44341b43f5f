"""What a command warns of is a line of its own, and no line of source."""

import ast
from pathlib import Path

import trainer

OF_COMMANDS = ("TrainingWarning", "StoreWarning")


def test_every_warning_is_of_a_kind_that_commands_show_as_a_line():
    root = Path(trainer.__file__).parent
    calls = [
        (path, call)
        for path in root.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "warnings.warn"
    ]
    assert len(calls) > 10
    others = [
        f"{path}:{call.lineno}"
        for path, call in calls
        if len(call.args) < 2 or ast.unparse(call.args[1]) not in OF_COMMANDS
    ]
    assert not others
