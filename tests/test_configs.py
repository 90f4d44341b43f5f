"""Every configuration that ships is one that its package accepts."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from cluster.describe.settings.cluster import load_cluster
from cluster.rounds.config import load_rounds
from labeler.config.loading import JobConfig, load_job
from labeler.curation.recipe import checked_recipe
from trainer.run.config import TrainConfig, load_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_shipped_config_is_accepted(path: Path) -> None:
    sections = tomllib.loads(path.read_text())
    if "recipe" in sections:
        recipe = checked_recipe(sections, path.name)
        assert recipe.settings.out == sections["recipe"]["out"]
    elif "teacher" in sections:
        job = load_job(str(path), environ={})
        assert isinstance(job, JobConfig)
        assert job.teacher.model == sections["teacher"]["model"]
    elif "student" in sections:
        config = load_config(str(path))
        assert isinstance(config, TrainConfig)
        assert config.output.folder == sections["output"]["folder"]
    elif "groups" in sections:
        assert [group.name for group in load_cluster(str(path)).groups] == [
            one["name"] for one in sections["groups"]
        ]
    elif "rounds" in sections:
        rounds, documents = load_rounds(str(path))
        assert rounds.rounds.count == sections["rounds"]["count"]
        assert documents.job.keys() >= {"teacher", "input"}
    else:
        pytest.fail(
            f"{path.name} has none of [recipe], [teacher], [student], [[groups]], [rounds]: no package reads it"
        )


def test_the_demo_trains_on_what_the_demo_labels() -> None:
    jobs = [load_job(str(ROOT / f"configs/demo-{mode}.toml"), environ={}) for mode in ("generate", "score")]
    train = load_config(str(ROOT / "configs/demo-train.toml"))
    assert [store.uri for store in train.data.stores] == [job.output.uri for job in jobs]
    assert jobs[0].teacher.model == jobs[1].teacher.model == ".demo/teacher"
    assert all(train.loss.temperature in job.labels.temperatures for job in jobs)
    assert all(job.workers.replicas == 2 for job in jobs)


@pytest.mark.parametrize("name", ["prompts.jsonl", "pairs.jsonl"])
def test_demo_records_are_distinct_and_complete(name: str) -> None:
    lines = (ROOT / "benchmarks/demo_data" / name).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) > 100
    assert len({record["id"] for record in records}) == len(records)
    texts = [record.get("prompt") or json.dumps(record["messages"]) for record in records]
    assert len(set(texts)) == len(texts), "a prompt occurs twice"
    assert all(text.strip() and record["topic"] for text, record in zip(texts, records, strict=True))
    if name == "pairs.jsonl":
        assert all(record["response"].strip() for record in records)
