"""Arguments by which each subcommand begins real work."""

from __future__ import annotations

import re
from pathlib import Path

from tests.front_door.test_matrix import NO_CLUSTER, NOWHERE

ROOT = Path(__file__).parents[2]
JOB = (
    "--set", "teacher.engine=fake", "--set", f"input.uri={ROOT}/benchmarks/demo_data/pairs.jsonl",
    "--set", "input.kind=prompt_response", "--set", "labels.mode=score", "--set", "input.limit=8",
)  # fmt: skip
MEASURED = (
    "recommend", "storage", "decode", "labeling", "loading", "training", "fidelity", "faults", "scale", "store", "all",
    "schedules", "curation",
)  # fmt: skip
WORK: dict[tuple[str, str], tuple[str, ...]] = {
    ("label", "run"): (*JOB, "--set", "output.uri=OUT", "--dry-run"),
    ("label", "status"): ("STORE",),
    ("label", "nodes"): (NOWHERE,),
    ("label", "settings"): (),
    ("label", "check"): (NOWHERE, "--out", "out", "--program", "true"),
    ("label", "dedupe"): (NOWHERE, "--out", "out.jsonl"),
    ("label", "decontaminate"): (NOWHERE, "--against", NOWHERE, "--out", "out.jsonl"),
    ("label", "expand"): (NOWHERE, "--out", "out.jsonl"),
    ("label", "judge"): (NOWHERE, "--out", "out.jsonl"),
    ("label", "recipe"): (NOWHERE,),
    ("store", "inspect"): ("STORE",),
    ("store", "verify"): ("STORE",),
    ("store", "head"): ("STORE",),
    ("store", "cat"): ("STORE",),
    ("store", "export"): ("STORE", "--to", "npz", "OUT"),
    ("store", "import"): ("--from", "jsonl", "EXPORTED", "OUT"),
    ("store", "merge"): ("STORE", "--out", "OUT"),
    ("store", "mix"): ("STORE", "STORE", "--out", "OUT"),
    ("store", "retokenize"): (
        "STORE",
        "OUT",
        "--vocab-size",
        "259",
        "--tokenizer",
        "TOKENIZER",
        "--teacher-tokenizer",
        "TOKENIZER",
    ),
    ("store", "codebook"): ("STORE", "--out", "OUT"),
    ("store", "compact"): ("STORE",),
    ("store", "rebuild-index"): ("STORE",),
    ("store", "uncommit"): ("STORE", "--bad"),
    ("store", "copy"): ("STORE", "OUT"),
    ("store", "publish"): ("STORE", "OUT"),
    ("store", "delete"): ("STORE", "--ids", str(Path(__file__).parents[2] / "LICENSE"), "--reason", "a test"),
    ("store", "view"): ("STORE", "--out", "OUT"),
    ("train", "run"): ("TRAIN", "--dry-run"),
    ("train", "eval"): ("TRAIN", "--dry-run"),
    ("train", "sweep"): ("TRAIN", "--over", "loss.alpha=0.5,0.9", "--dry-run"),
    ("train", "parity"): (
        "--student",
        "MODEL",
        "--teacher",
        "MODEL",
        "--tasks",
        "QUESTIONS",
        "--max-tokens",
        "2",
        "--unchecked",
        "--out",
        "OUT",
    ),
    ("train", "settings"): (),
    ("cluster", "settings"): (),
    ("cluster", "check"): ("TEAM", "--set", "output.uri=s3://bucket/store", *NO_CLUSTER),
    ("cluster", "submit"): ("TEAM", "--set", "output.uri=s3://bucket/store", *NO_CLUSTER),
    ("cluster", "status"): NO_CLUSTER,
    ("cluster", "logs"): NO_CLUSTER,
    ("cluster", "stop"): NO_CLUSTER,
    ("cluster", "resume"): NO_CLUSTER,
    ("cluster", "list"): NO_CLUSTER,
    ("cluster", "cost"): ("LABEL",),
    ("cluster", "rounds"): (NOWHERE,),
    ("cluster", "up"): ("--local", "1", "--state", "OUT"),
    ("cluster", "down"): ("--state", "OUT"),
    ("cluster", "dashboard"): ("STORE", "--port", "0"),
    ("cluster", "render"): (f"{ROOT}/configs/cluster.toml", "--kind", "grafana"),
    ("bench", "plan"): ("--tokens", "1e9", "--top-k", "64", "--rate", "1000"),
    ("bench", "check"): ("--reference", NOWHERE),
    ("bench", "agreement"): ("STORE", "--teacher", NOWHERE),
    ("bench", "storm"): (*JOB, "--out", "OUT"),
    ("bench", "leases"): ("--units", "10", "--out", "OUT"),
    ("bench", "gpu"): ("--out", "OUT"),
    ("bench", "sources"): (),
    ("bench", "demo"): ("--configs", NOWHERE),
    ("bench", "prompted"): ("--configs", NOWHERE, "--out", "OUT"),
    ("bench", "retokenized"): ("--configs", NOWHERE, "--out", "OUT"),
    ("bench", "sweep"): ("--configs", NOWHERE, "--out", "OUT"),
    ("bench", "parity"): ("--configs", NOWHERE, "--questions", NOWHERE, "--out", "OUT"),
    ("bench", "teacher"): ("--out", "OUT"),
    ("bench", "student"): ("--teacher", NOWHERE, "--out", "OUT"),
    ("bench", "answers"): ("STORE", "--students", NOWHERE, "--followed", NOWHERE, "--out", "answers.json"),
    **{("bench", part): ("--quick", "--out", "OUT") for part in MEASURED},
}
"""Arguments by which each command begins real work, or, for what needs more than one machine or a model, all
that comes before it."""


def arguments_of(command: tuple[str, str], places: dict[str, str], out: Path) -> list[str]:
    words = {**places, "OUT": str(out)}
    return [*command, *(re.sub(r"\b[A-Z]{3,}\b", lambda m: words.get(m[0], m[0]), w) for w in WORK[command])]
