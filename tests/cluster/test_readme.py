"""The README's section for teams, followed word by word: up, submit, status, stop, resume, down, train."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labeler.config.loading import load_job
from labeler.prompting.tokenization import load_tokenizer
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.store import LogitStore

ROOT = Path(__file__).parents[2]
STORE, STUDENT = ROOT / "build" / "team-trial", ROOT / "build" / "team-student"


def commands_of(heading: str) -> list[list[str]]:
    """The shell lines of each code block of a section, continued ones joined and comments cut off."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)```", section.replace("\\\n", ""), re.DOTALL)
    return [[line.split("  #")[0].strip() for line in block.splitlines() if line.strip()] for block in blocks]


def test_the_byte_tokenizer_is_the_stand_in_teachers() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    shipped = tokenizers.Tokenizer.from_file(str(ROOT / "configs" / "byte-tokenizer" / "tokenizer.json"))
    own = load_tokenizer(load_job(str(ROOT / "configs" / "team-trial.toml"), environ={}).teacher)
    assert tokenizer_fingerprint(shipped.get_vocab()) == own.info.fingerprint
    text = "naïve 你好 <|start|>user<|end|> 🙂\n"
    assert shipped.encode(text).ids == own.encode(text)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_section_for_teams(tmp_path: Path) -> None:
    trial, rendered = commands_of("On a cluster that a team shares")
    up, down = "penumbra cluster up --local 2", "penumbra cluster down"
    assert trial[0] == up
    assert down in trial
    for folder in (STORE, STUDENT):
        shutil.rmtree(folder, ignore_errors=True)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_STATE_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        environment.pop(name, None)
    said: dict[str, str] = {}

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    try:
        for command in trial + rendered:
            done = run(command)
            deadline = time.monotonic() + 200
            while command == "penumbra cluster status" and not re.search(r" [1-9]\d*/\d+ units", done.stdout):
                assert time.monotonic() < deadline, f"no unit is done after 200 s\n{done.stdout}"
                done = run(command)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            said[command] = done.stdout
            if command == "penumbra cluster stop":
                num_at_stop = len(LogitStore.open(str(STORE)).shards())
    finally:
        if down not in said:
            run(down)
    records = (ROOT / "benchmarks" / "demo_data" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    store = LogitStore.open(str(STORE))
    labeled = [sequence.record_id for sequence in store.iter_sequences()]
    # An answer of the stand-in may be empty; such a record is rejected by name.
    rejected = [str(reject.record_id) for reject in store.rejects()]
    assert sorted([*labeled, *rejected]) == sorted(json.loads(record)["id"] for record in records)
    assert 0 < num_at_stop < len(store.shards()), "the job was over before it was stopped"
    metrics = json.loads((STUDENT / "metrics.json").read_text())
    assert metrics["after"]["kl"] < metrics["before"]["kl"]
