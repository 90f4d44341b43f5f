"""KubeRay's own rules (`utils/validation.go`): it takes such a cluster, and makes none of its pods."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.describe.render import render
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import TWO_KINDS, a_job, two_kinds

pytestmark = pytest.mark.slow  # Kubernetes' schemas take a second to load


def rendered(kubernetes: dict[str, Any], kind: str = "kuberay-cluster", ray_version: str = "2.60.0") -> str:
    cluster = two_kinds(ray_version=ray_version, kubernetes=TWO_KINDS["kubernetes"] | kubernetes)
    found = "kuberay-job" if kind == "kuberay-job" else "kuberay-cluster"
    return render(cluster, found, a_job(2), job_file="job.toml")


def with_variable(container: str, name: str) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": container, "env": [{"name": name, "value": "1"}]}]}}


@pytest.mark.parametrize("kind", ["kuberay-cluster", "kuberay-job"])
@pytest.mark.parametrize("ray_version", ["2.9.0", "2.51.1", "1.13.0"])
def test_a_token_needs_a_ray_that_knows_it(kind: str, ray_version: str) -> None:
    with pytest.raises(ConfigError, match=r"KubeRay would start no pods: ray_version .* knows no token"):
        rendered({}, kind, ray_version)
    with pytest.raises(ConfigError, match=r"'nightly' does not match .*correct ray_version"):
        rendered({}, kind, "nightly")
    assert "authOptions" not in rendered({"auth": "off"}, kind, ray_version)
    for later in ("2.52.0", "3.0.0"):
        assert "mode: token" in rendered({}, kind, later)


@pytest.mark.parametrize("where", ["pod", "head_pod"])
def test_the_autoscaler_wants_pods_that_do_not_restart(where: str) -> None:
    for policy in ("Always", "OnFailure"):
        pod = {"spec": {"restartPolicy": policy}}
        with pytest.raises(ConfigError, match=rf"restartPolicy '{policy}' .* must be Never"):
            rendered({where: pod})
        assert f"restartPolicy: {policy}" in rendered({where: pod, "autoscale": False})
    assert "restartPolicy: Never" in rendered({where: {"spec": {"restartPolicy": "Never"}}})


@pytest.mark.parametrize("autoscale", [True, False])
def test_the_autoscaler_is_said_once(autoscale: bool) -> None:
    pod = with_variable("ray-head", "RAY_enable_autoscaler_v2")
    with pytest.raises(ConfigError, match=r"is what kubernetes\.autoscale sets"):
        rendered({"head_pod": pod, "autoscale": autoscale})
    assert "RAY_other" in rendered({"head_pod": with_variable("ray-head", "RAY_other")})
