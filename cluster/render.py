"""`python -m cluster render`: one small TOML becomes what each kind of cluster wants to be told.

Everything is validated before it is written: Ray's own validator for its YAML, our field schema for
KubeRay. The head of each file says what it needs and what it will roughly cost.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml

from cluster import dockerfile, grafana, kuberay, ray_yaml, slurm
from cluster.config import ClusterConfig, Kind, check_placement, load_cluster
from cluster.machines import price_lines
from labeler.config import ConfigError, JobConfig, load_job

DEFAULT_JOB_FILE = "job.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cluster", metavar="CLUSTER.toml", help="the description of the cluster")
    parser.add_argument("--kind", choices=get_args(Kind), required=True, help="what to render")
    parser.add_argument(
        "--job", metavar="JOB.toml", help="check that this job fits; part of kuberay-job and slurm"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here instead of printing")


def run(args: argparse.Namespace) -> int:
    """The exit status; the text goes to standard output or --out."""
    cluster = load_cluster(args.cluster)
    job = load_job(args.job, environ={}) if args.job else None
    text = render(cluster, args.kind, job, job_file=args.job or DEFAULT_JOB_FILE)
    if args.out is None:
        sys.stdout.write(text)
    else:
        args.out.write_text(text, encoding="utf-8")
        if not args.quiet:
            print(f"wrote {args.out}")
    return 0


def render(cluster: ClusterConfig, kind: Kind, job: JobConfig | None, *, job_file: str) -> str:
    """The whole text of a description.

    Raises:
        ConfigError: the job does not fit the cluster, or the cluster lacks what the kind needs.
    """
    head = _heading(cluster, kind, job)
    makers: dict[str, Callable[[], str]] = {
        "ray-aws": lambda: _checked_ray_yaml(ray_yaml.aws(cluster)),
        "ray-gcp": lambda: _checked_ray_yaml(ray_yaml.gcp(cluster)),
        "ray-on-premise": lambda: _checked_ray_yaml(ray_yaml.on_premise(cluster)),
        "kuberay-cluster": lambda: _checked_kuberay([kuberay.ray_cluster(cluster)]),
        "kuberay-job": lambda: _checked_kuberay(kuberay.ray_job(cluster, _needed(job))),
        "slurm": lambda: slurm.script(cluster, job_file),
        "dockerfile": lambda: dockerfile.dockerfile(cluster),
        "grafana": lambda: json.dumps(grafana.dashboard(cluster), indent=2) + "\n",
        "prometheus": lambda: _yaml([grafana.prometheus(cluster)]),
    }
    body = makers[kind]()
    if kind == "grafana":  # JSON has no comments
        return body
    if body.startswith("#!"):
        first, _, rest = body.partition("\n")
        return f"{first}\n{head}{rest}"
    return head + body


NEEDS: dict[str, tuple[str, ...]] = {
    "ray-aws": (
        "AWS credentials that may start instances (for example AWS_PROFILE), boto3, quota for the GPUs",
        "an instance profile `ray-autoscaler-v1` with access to the store's bucket (Ray makes the profile)",
        "ray up FILE; ray dashboard FILE (tunnel to 8265); python -m cluster submit job.toml; ray down FILE",
    ),
    "ray-gcp": (
        "gcloud credentials, google-api-python-client, quota for the GPUs",
        "a service account with access to the store's bucket",
        "ray up FILE; ray dashboard FILE (tunnel to 8265); python -m cluster submit job.toml; ray down FILE",
    ),
    "ray-on-premise": (
        "ssh from here to every machine, the same Python and Ray everywhere, a store that all reach",
        "ray up FILE; ray dashboard FILE (tunnel to 8265); python -m cluster submit job.toml; ray down FILE",
    ),
    "kuberay-cluster": (
        "the KubeRay operator, version 1.3 or later, and NVIDIA's device plugin",
        "kubectl apply -f FILE; kubectl port-forward svc/NAME-head-svc 8265",
        "python -m cluster submit job.toml --address http://127.0.0.1:8265 --files ship --python python",
    ),
    "kuberay-job": (
        "the KubeRay operator, version 1.3 or later, and NVIDIA's device plugin",
        "kubectl apply -f FILE; deleting the RayJob stops it, applying it again resumes on the same store",
    ),
    "slurm": (
        "the project installed at the same path on every node, a store that all reach",
        "sbatch FILE; at the time limit the job drains and is queued again",
    ),
    "dockerfile": ("docker build -f FILE -t IMAGE . in the project's folder",),
    "prometheus": ("prometheus --config.file=FILE on the head; targets come from Ray's own file",),
    "grafana": (),
}


def _heading(cluster: ClusterConfig, kind: Kind, job: JobConfig | None) -> str:
    """Comment lines: what it needs, where the replicas go, what it costs."""
    lines = [
        f"Rendered by `python -m cluster render --kind {kind}` for the cluster {cluster.name!r}.",
        "Needs:",
    ]
    lines += [f"  - {need}" for need in NEEDS[kind]]
    placement = check_placement(cluster, job) if job is not None else []
    if placement:
        lines += [
            "Placement of the job's replicas, each on one machine:",
            *(f"  - {line}" for line in placement),
        ]
    if kind not in ("dockerfile", "grafana", "prometheus"):
        cloud = {"ray-aws": "aws", "ray-gcp": "gcp"}.get(kind)
        lines += ["Cost:", *(f"  - {line}" for line in price_lines(cluster, cloud))]
    return "".join(f"# {line}\n" for line in lines)


def _needed(job: JobConfig | None) -> JobConfig:
    if job is None:
        raise ConfigError("--kind kuberay-job carries the job in it; name the job file with --job")
    return job


def _checked_ray_yaml(config: dict[str, Any]) -> str:
    """Ray's own validation on a filled-in copy; what is written stays small."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = _yaml([config])
    try:
        validate_config(prepare_config(yaml.safe_load(text)))
    except Exception as error:  # Ray raises several unrelated types, click's among them
        raise ConfigError(f"Ray refuses the description: {error}") from error
    return text


def _checked_kuberay(documents: list[dict[str, Any]]) -> str:
    import jsonschema

    schema = json.loads((files("cluster") / "kuberay_schema.json").read_text(encoding="utf-8"))
    for document in documents:
        if document["apiVersion"] != kuberay.API_VERSION:
            continue
        try:
            jsonschema.validate(document, schema)
        except jsonschema.ValidationError as error:
            raise ConfigError(f"not a {document['kind']}: {error.json_path}: {error.message}") from None
    return _yaml(documents)


class _PlainDumper(yaml.SafeDumper):
    """YAML without anchors, which people and some tools stumble over."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(documents: list[dict[str, Any]]) -> str:
    return yaml.dump_all(documents, Dumper=_PlainDumper, sort_keys=False, width=110)
