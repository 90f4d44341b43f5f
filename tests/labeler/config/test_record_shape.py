"""What records hold is told by their fields."""

from __future__ import annotations

from labeler.config.record_shape import shape_of
from tests.labeler.config.test_found import ANSWER, USER


def test_an_answer_that_some_records_lack_is_no_answer() -> None:
    shape = shape_of([{"prompt": "a", "response": "b"}, {"prompt": "c"}])
    assert shape is not None
    assert (shape.kind, shape.mode) == ("prompt", "generate")
    shape = shape_of([{"messages": [USER, ANSWER]}, {"messages": [USER]}])
    assert shape is not None
    assert shape.mode == "generate"
