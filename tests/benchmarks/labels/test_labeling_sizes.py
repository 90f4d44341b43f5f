from __future__ import annotations

import pytest

from benchmarks.__main__ import build_parser
from benchmarks.labels.labeling_sizes import Sizes, sizes_for


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], Sizes(6, 256, 2)),
        (["--gpus", "1"], Sizes(256, 512, 64)),
        (["--gpus", "2", "--quick"], Sizes(64, 512, 64)),
        (["--gpus", "1", "--prompts", "20"], Sizes(20, 512, 20)),
        (["--quick", "--prompts", "20"], Sizes(2, 256, 2)),
    ],
)
def test_sizes_follow_the_device(options: list[str], expected: Sizes) -> None:
    assert sizes_for(build_parser(["labeling"]).parse_args(["labeling", *options])) == expected


def test_arguments_of_the_engine_reach_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A geometry is measured without its weights, as on a machine that they cannot be brought to."""
    parser = build_parser(["labeling"])
    given = ["labeling", "--engine-args", '{"load_format": "dummy", "enforce_eager": true}']
    assert parser.parse_args(given).engine_args == {"load_format": "dummy", "enforce_eager": True}
    assert parser.parse_args(["labeling"]).engine_args == {}
    for wrong in ("dummy", "[]"):
        with pytest.raises(SystemExit):
            parser.parse_args(["labeling", "--engine-args", wrong])
        assert f"{wrong!r} must be a JSON object" in capsys.readouterr().err
