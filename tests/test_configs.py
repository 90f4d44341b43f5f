"""Every configuration that ships is one that its package accepts."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from cluster.describe.settings.cluster import ClusterConfig, load_cluster
from cluster.rounds.config import RoundsFile, load_rounds
from labeler.config.loading import JobConfig, load_job
from labeler.curation.recipe_file import checked_recipe
from logitstore.common.config_file import ConfigError
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


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
@pytest.mark.parametrize(
    "setting", ["labels.temperatures", "workers.drain_sec", "sampling.temperature", "workers.resources.a"]
)
def test_a_number_that_is_none_is_refused(setting: str, number: str) -> None:
    """They came as far as an OverflowError, or as rows at the temperature nan."""
    value = f"[1.0, {number}]" if setting == "labels.temperatures" else number
    base = ["teacher.engine=fake", "input.uri=i", "input.kind=text", "output.uri=o"]
    with pytest.raises(ConfigError, match="should be a finite number"):
        load_job(None, [*base, f"{setting}={value}"], {})


@pytest.mark.parametrize("model", [JobConfig, TrainConfig, ClusterConfig, RoundsFile])
def test_so_it_is_in_every_section(model: type[BaseModel]) -> None:
    kinds = (
        getattr(field.annotation, "__args__", (field.annotation,)) for field in model.model_fields.values()
    )
    sections = [one for args in kinds for one in args if isinstance(one, type) and issubclass(one, BaseModel)]
    assert sections
    assert [one for one in (model, *sections) if one.model_config.get("allow_inf_nan") is not False] == []


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
