"""A description names where a secret is and never holds one, whatever section it stands in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.__main__ import main
from cluster.describe.settings.no_secrets import places_of_secrets
from tests.cluster.describe.descriptions import TWO_KINDS, two_kinds

PLANTED = "QZXV8r4Kd0mTn3Wb6Yc1"
FORM = f"hf_{PLANTED}"


def env(item: dict[str, Any]) -> dict[str, Any]:
    return {"kubernetes": {"pod": {"spec": {"containers": [{"name": "ray-worker", "env": [item]}]}}}}


@pytest.mark.parametrize(
    ("section", "place"),
    [
        (env({"name": "AWS_SECRET_ACCESS_KEY", "value": PLANTED}), "env[0].AWS_SECRET_ACCESS_KEY"),
        (env({"name": "TOKEN_OF_THE_HUB", "value": FORM}), "env[0].value"),
        ({"docker": {"run_options": [f"-e HF_TOKEN={PLANTED}"]}}, "docker.run_options[0] (HF_TOKEN)"),
        ({"docker": {"run_options": [f"--env 'HF_TOKEN={PLANTED}'"]}}, "docker.run_options[0] (HF_TOKEN)"),
        ({"slurm": {"setup": f"module load cuda\nexport HF_TOKEN='{PLANTED}'"}}, "slurm.setup (HF_TOKEN)"),
        ({"slurm": {"directives": [f"--export=ALL,RAY_AUTH_TOKEN={PLANTED}"]}}, "slurm.directives[0]"),
        ({"aws": {"node": {"UserData": f"export X={FORM}"}}}, "aws.node.UserData"),
        ({"image": f"https://me:{PLANTED}@registry.example/penumbra"}, "image"),
    ],
)
def test_a_secret_is_refused_without_being_shown(
    section: dict[str, Any], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps(TWO_KINDS | section))
    assert main(["render", str(file), "--kind", "kuberay-cluster"]) == 2
    said = capsys.readouterr()
    assert place in said.err
    assert "kubernetes.secret" in said.err
    assert PLANTED not in said.err + said.out


@pytest.mark.parametrize(
    "text",
    [
        "export HF_TOKEN=$(cat ~/.cache/huggingface/token)",
        'export AWS_SECRET_ACCESS_KEY="$KEY_OF_THE_LAB"',
        "export HF_TOKEN_PATH=/run/secrets/hf",
        "export HF_TOKEN=",
        "--export=ALL",
        "module load cuda/12.9 && export TOKENIZERS_PARALLELISM=false",
    ],
)
def test_where_a_secret_is_may_be_said(text: str) -> None:
    assert list(places_of_secrets({"setup": text})) == []


def test_a_secret_named_by_kubernetes_is_none() -> None:
    reference = {"secretKeyRef": {"name": "store-keys", "key": "token"}}
    cluster = two_kinds(**env({"name": "HF_TOKEN", "valueFrom": reference}))
    assert list(places_of_secrets(cluster.model_dump())) == []
