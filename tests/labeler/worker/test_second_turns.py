"""The recipe of the labeler's page for second turns: as it is typed, with the stand-in as the teacher."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import logitstore.__main__ as store_command
from labeler.records import Lease
from logitstore.manifest.fields import SEGMENTS
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import files_in, put_tokenizer
from tests.labeler.jobs import label_and_commit
from tests.labeler.worker.test_actor import set_up

ROOT = Path(__file__).parents[3]
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""The stand-in's, which a real teacher leaves in its store."""
QUESTIONS = [{"question_id": 80 + n, "turns": [f"Question {n}?", f"And then {n}?"]} for n in range(3)]


def recipe() -> tuple[list[str], str, list[str], list[str], list[str]]:
    """Words of the four commands, and the program between the second and the third."""
    page = (ROOT / "labeler/README.md").read_text(encoding="utf-8")
    block = page.split("### The answers to second questions\n")[1].split("```sh\n")[1].split("```")[0]
    before, program, after = re.split(r"python - <<'END'\n|\nEND\n", block)
    lines = [shlex.split(line) for line in (before + after).replace("\\\n", "").strip().splitlines()]
    label, export, again, merge = lines
    return label, program, export, again, merge


def label(folder: Path, words: list[str]) -> None:
    """What `label run` with these words does, without Ray, in the store that they name."""
    assert words[:3] == ["penumbra", "label", "run"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given["--teacher"]
    overrides = [value for flag, value in zip(words[3::2], words[4::2], strict=True) if flag == "--set"]
    items = [json.loads(line) for line in Path(given["--input"]).read_text().splitlines()]
    place = f"output.uri='{folder / given['--out']}'"
    (folder / "planned").mkdir(exist_ok=True)
    worker, units, setup = set_up(folder / "planned", items, *overrides, place, "sampling.max_tokens=6")
    for number, unit in enumerate(units):
        label_and_commit(worker, Lease(number, unit, "w"))
    files = files_in(ROOT / "configs/byte-tokenizer")
    put_tokenizer(setup.prepared.objects, files | {"chat_template.jinja": TEMPLATE.encode()}, "")


def test_second_turns_are_answered_after_the_first_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    first, program, export, second, merge = recipe()
    label(tmp_path, first)
    assert store_command.main(export[2:]) == 0
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    label(tmp_path, second)
    answers = {one.record_id: one for one in LogitStore.open("build/first").iter_sequences()}
    for one in LogitStore.open("build/second").iter_sequences():
        earlier = answers[one.record_id.removesuffix("#turn-2")]
        text = bytes(int(i) for i in one.token_ids_T[: one.prompt_length] if i < 256)
        number = int(earlier.record_id) - 80
        assert text.startswith(f"user\nQuestion {number}?\nassistant\n".encode())
        assert text.endswith(f"\nuser\nAnd then {number}?\nassistant\n".encode())
        assert one.rows.num_rows <= 6
    assert store_command.main(merge[2:]) == 0
    ids = sorted(one.record_id for one in LogitStore.open("build/both").iter_sequences())
    assert ids == ["80", "80#turn-2", "81", "81#turn-2", "82", "82#turn-2"]
    assert store_command.main(["verify", "build/both"]) == 0
    assert set(LogitStore.open("build/both").manifest.features) >= {SEGMENTS}
