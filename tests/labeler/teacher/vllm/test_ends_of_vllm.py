"""Where responses end, beside vLLM's own answer, for teachers whose files disagree in every way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labeler.config.loading import load_job
from labeler.prompting.tokenization import load_tokenizer
from tests.labeler import engines

pytestmark = [pytest.mark.slow, engines.needs_model]

TEXT, TURN = 0, 2
"""<|endoftext|> and <|im_end|>; the chat template ends turns with the latter."""
ABSENT = "absent"


def teacher(folder: Path, config: Any, generation: Any, tokenizer: int) -> Path:
    """The demo's teacher with other ends in its files; ABSENT leaves generation_config.json out."""
    folder.mkdir()
    for path in engines.MODEL.iterdir():
        if path.name == "config.json":
            content = {**json.loads(path.read_text()), "eos_token_id": config}
        elif path.name == "generation_config.json":
            content = {**json.loads(path.read_text()), "eos_token_id": generation}
        elif path.name == "tokenizer_config.json":
            name = {TEXT: "<|endoftext|>", TURN: "<|im_end|>"}[tokenizer]
            content = {**json.loads(path.read_text()), "eos_token": name}
        else:
            (folder / path.name).symlink_to(path.resolve())
            continue
        if path.name != "generation_config.json" or generation != ABSENT:
            (folder / path.name).write_text(json.dumps(content))
    return folder


def ends_of_vllm(folder: Path) -> set[int]:
    """As its input processor has them for `LLM.chat`: from what it reads of the folder, by its own functions."""
    from vllm import SamplingParams
    from vllm.tokenizers import get_tokenizer
    from vllm.transformers_utils.config import try_get_generation_config

    found = try_get_generation_config(str(folder), trust_remote_code=False)
    parameters = SamplingParams()
    eos: Any = get_tokenizer(str(folder)).eos_token_id
    parameters.update_from_generation_config({} if found is None else found.to_diff_dict(), eos)
    return set(parameters.all_stop_token_ids)


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "vllm_too"),
    [
        (TURN, TURN, TURN, {TURN}),
        (TEXT, TEXT, TURN, {TEXT, TURN}),
        (TEXT, ABSENT, TURN, {TEXT, TURN}),
        (TEXT, [TEXT, TURN], TEXT, {TEXT, TURN}),
        (TURN, ABSENT, TEXT, {TEXT, TURN}),
        ([TEXT, TURN], ABSENT, TEXT, {TEXT, TURN}),
        (None, ABSENT, TURN, {TURN}),
        (None, TEXT, TURN, {TEXT, TURN}),
        (TEXT, TURN, TURN, {TURN}),
        (TEXT, TEXT, TEXT, {TEXT}),
    ],
    ids=[
        "all agree",
        "only the tokenizer ends turns",
        "no generation_config",
        "only generation_config ends turns",
        "only config ends turns",
        "a list in config",
        "only the tokenizer has an end",
        "config has none",
        "config alone has the end of text",
        "only the template ends turns",
    ],
)
def test_every_end_of_vllm_is_one_of_ours_and_turns_always_end(
    tmp_path: Path, config: Any, generation: Any, tokenizer: int, vllm_too: set[int]
) -> None:
    folder = teacher(tmp_path / "teacher", config, generation, tokenizer)
    assert ends_of_vllm(folder) == vllm_too
    settings = [f"teacher.model='{folder}'", "input.uri=in", "input.kind=messages", "output.uri=out"]
    job = load_job(None, settings, {})
    ends = load_tokenizer(job.teacher, job.input, job.sampling).ends
    ours = {token.token_id: token.named_by for token in ends.tokens}
    assert vllm_too <= ours.keys()
    assert TURN in ours, "vLLM's own chat of the last case runs to max_tokens"
    for token_id in ours.keys() - vllm_too:
        assert set(ours[token_id]) <= {"config.json", "chat template"}
