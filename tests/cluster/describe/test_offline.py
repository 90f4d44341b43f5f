"""Machines without internet: what is rendered keeps every process from the hub, and a filled cache is enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cluster.describe.render import render
from cluster.describe.settings.cluster import Kind
from tests.cluster.describe.descriptions import a_job, one_kind
from tests.labeler.planning.templates import byte_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOLDER = "/cache/huggingface"


def rendered(kind: Kind, **changes: Any) -> str:
    return render(one_kind(**changes), kind, a_job(), job_file="job.toml")


@pytest.mark.slow  # Ray's validator
@pytest.mark.parametrize("kind", ["ray-aws", "ray-gcp", "ray-on-premise"])
def test_head_and_workers_of_ray_up_ask_for_nothing(kind: Kind) -> None:
    cache = {"host_path": "/nvme/hf", "offline": True}
    options = yaml.safe_load(rendered(kind, cache=cache))["docker"]["run_options"]
    assert {f"-e HF_HOME={FOLDER}", "-e HF_HUB_OFFLINE=1"} <= set(options)
    bare = yaml.safe_load(rendered(kind, cache=cache, image=""))
    for start in (bare["head_start_ray_commands"][-1], bare["worker_start_ray_commands"][-1]):
        assert start.startswith("export HF_HOME=/nvme/hf; export HF_HUB_OFFLINE=1; ulimit")


@pytest.mark.parametrize("cache", [{"claim": "models"}, {"host_path": "/nvme/hf"}])
def test_all_pods_ask_for_nothing(cache: dict[str, Any]) -> None:
    ray = list(yaml.safe_load_all(rendered("kuberay-job", cache=cache | {"offline": True})))[-1]
    spec = ray["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        variables = {one["name"]: one["value"] for one in container["env"]}
        assert (variables["HF_HOME"], variables["HF_HUB_OFFLINE"]) == (FOLDER, "1")
    online = rendered("kuberay-job", cache=cache)
    assert "HF_HUB_OFFLINE" not in online


def test_slurm_and_skypilot_ask_for_nothing() -> None:
    script = rendered("slurm", cache={"host_path": "/nvme/hf", "offline": True})
    assert 'export HF_HOME="/nvme/hf"\nexport HF_HUB_OFFLINE="1"\n' in script
    task = yaml.safe_load(rendered("skypilot", cache={"bucket": "s3://b/hf", "offline": True}))
    assert task["envs"]["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("cache", [{"offline": True}, {"offline": True, "size_gb": 100}])
def test_an_empty_cache_offline_is_refused(cache: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="set claim, host_path or bucket"):
        one_kind(cache=cache)


def filled_cache(home: Path) -> None:
    """As `hf download` leaves a model: the files of a commit, and a name for it."""
    model = home / "hub" / "models--org--teacher"
    snapshot = model / "snapshots" / COMMIT
    byte_tokenizer().save_pretrained(snapshot)
    config = {"model_type": "llama", "vocab_size": 600, "max_position_embeddings": 1024}
    (snapshot / "config.json").write_text(json.dumps(config))
    (snapshot / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")  # of no tensor
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)


@pytest.mark.slow
def test_a_filled_cache_is_all_that_a_job_needs(tmp_path: Path) -> None:
    filled_cache(tmp_path / "hf")
    (tmp_path / "in.jsonl").write_text('{"prompt": "why?"}\n')
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    def planned(model: str) -> subprocess.CompletedProcess[str]:
        said = [f"input.uri={tmp_path}/in.jsonl", "input.kind=prompt", "input.chat_template=false"]
        said += [f"teacher.model={model}", "labels.mode=generate", f"output.uri={tmp_path}/store"]
        sets = [word for one in said for word in ("--set", one)]
        return python("-m", "labeler", "run", "--dry-run", "--json", *sets)

    done = planned("org/teacher")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["num_labels"] == 512
    find = "from labeler.teacher.model_identity import find_model_folder as f; print(f('org/teacher', None))"
    assert python("-c", find).stdout.strip().endswith(f"snapshots/{COMMIT}"), "a worker loads from there"
    done = planned("org/another")
    assert done.returncode == 2
    assert "'org/another' is no folder here and not in the cache of Hugging Face" in done.stderr
