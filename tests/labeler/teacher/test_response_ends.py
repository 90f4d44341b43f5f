"""Where a response ends, as a model's files and a job's settings name it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labeler.config.loading import load_job
from labeler.planning.preflight import prepare
from labeler.teacher.response_ends import named_in_files
from logitstore.common.config_file import ConfigError

FILE = "generation_config.json"


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        ({"eos_token_id": 2}, [2]),
        ({"eos_token_id": [2, None, 7]}, [2, 7]),
        ({"eos_token_id": -1}, []),
        ({"eos_token_id": [2, -1]}, [2]),
        ({"eos_token_id": [2.0, "3"]}, [2, 3]),  # as some tools of conversion write them
        ({"eos_token_id": None, "text_config": {"eos_token_id": 5}}, [5]),
        ({"text_config": "none"}, []),
        ({}, []),
    ],
)
def test_a_models_file_names_ends_or_none(content: dict[str, Any], ids: list[int]) -> None:
    read = {FILE: content}.get
    assert named_in_files(read) == [(i, FILE) for i in ids]


@pytest.mark.parametrize("value", ["</s>", True, 2.5, "²", [[2]], {"id": 2}, 10**11])
def test_what_is_no_id_in_a_models_file_is_refused_in_words(value: object) -> None:
    with pytest.raises(ConfigError, match=f"eos_token_id of its {FILE} names .* which is no token's id"):
        named_in_files({FILE: {"eos_token_id": value}}.get)


def test_a_stop_beyond_the_vocabulary_is_refused_before_the_engine_loads(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "Why?"}))
    settings = ["teacher.engine=fake", f"input.uri='{tmp_path}/in.jsonl'", f"output.uri='{tmp_path}/out'"]
    settings += ["input.kind=prompt", "labels.mode=generate"]
    prepare(load_job(None, [*settings, "sampling.stop_token_ids=[511]"], {}))
    with pytest.raises(ConfigError, match=r"names 512, and the teacher's vocabulary has 512 ids"):
        prepare(load_job(None, [*settings, "sampling.stop_token_ids=[511, 512]"], {}))
