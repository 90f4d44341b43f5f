"""One tree of errors per package: each error is a standard type too, survives pickling, and has a status."""

from __future__ import annotations

import importlib
import inspect
import pickle

import pytest

from logitstore.common.exit_status import ExitStatus

TREES = {
    "logitstore.errors": "StoreError",
    "labeler.errors": "LabelerError",
    "trainer.errors": "TrainerError",
    "cluster.errors": "ClusterError",
}
STANDARD = (ValueError, RuntimeError, OSError, LookupError)


def errors_of(module: str) -> list[type[Exception]]:
    found = vars(importlib.import_module(module)).values()
    return [
        one
        for one in found
        if isinstance(one, type)
        and issubclass(one, Exception)
        and not issubclass(one, Warning)
        and one.__module__ == module
    ]


@pytest.mark.parametrize(("module", "root"), TREES.items())
def test_errors_of_a_package(module: str, root: str) -> None:
    errors = errors_of(module)
    base = getattr(importlib.import_module(module), root)
    assert len(errors) >= 4
    for error in errors:
        assert issubclass(error, base)
        assert ExitStatus(error.exit_status)  # type: ignore[attr-defined]
        if error is not base:
            assert issubclass(error, STANDARD), error
        words = [
            parameter.name if parameter.annotation in (str, "str") else (3,)
            for parameter in inspect.signature(error.__init__).parameters.values()
            if parameter.name not in ("self", "args", "kwargs") and parameter.default is parameter.empty
        ]
        made = error(*(words or ["what went wrong"]))
        again = pickle.loads(pickle.dumps(made))
        assert type(again) is error
        assert (str(again), again.__dict__) == (str(made), made.__dict__)
