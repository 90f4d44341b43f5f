"""`penumbra cluster render`: one small TOML becomes what each kind of cluster wants to be told.

Everything is validated before it is written: Ray's own validator for its YAML, our field schema for
KubeRay. The head of each file says what it needs and what it will roughly cost.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from cluster.describe import dockerfile, grafana, ray_yaml, skypilot
from cluster.describe.fit.cache import cache_notes
from cluster.describe.fit.machines import LIST_PRICES, Prices, machine_for, price_lines, read_prices
from cluster.describe.fit.placement import check_placement
from cluster.describe.kubernetes import kuberay, pods
from cluster.describe.kubernetes.objects import check_objects
from cluster.describe.kubernetes.schemas import check_schemas, has_pod_schema
from cluster.describe.settings.cluster import ClusterConfig, Kind, load_cluster
from cluster.describe.slurm import script
from labeler.config.found import load_input_found
from labeler.config.loading import JobConfig
from logitstore.common.config_file import ConfigError
from logitstore.common.whole_file import check_place, write_whole

DEFAULT_JOB_FILE = "job.toml"
CLOUDS = {"ray-aws": "aws", "ray-gcp": "gcp"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cluster", metavar="CLUSTER.toml", help="the description of the cluster")
    parser.add_argument("--kind", choices=get_args(Kind), required=True, help="what to render")
    parser.add_argument(
        "--job",
        metavar="JOB.toml",
        help="check that this job fits; part of kuberay-job, skypilot and slurm",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="S.KEY=V", help="change a setting of the job"
    )
    parser.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        help="JSON of your own prices: as_of, source, per_hour {machine: price}",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here instead of printing")


def run(args: argparse.Namespace) -> int:
    """The exit status; the text goes to standard output or --out."""
    cluster = load_cluster(args.cluster)
    if args.set and not args.job:
        raise ConfigError("--set changes a setting of the job, but no job is named; give --job JOB.toml")
    job, found = load_input_found(args.job, args.set, environ={}) if args.job else (None, [])
    if not args.quiet:
        print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    prices = read_prices(args.prices) if args.prices else LIST_PRICES
    if args.out is not None:
        _check_out(args.out, [args.cluster, args.job, args.prices])
    text = render(
        cluster, args.kind, job, job_file=args.job or DEFAULT_JOB_FILE, overrides=args.set, prices=prices
    )
    if args.out is None:
        sys.stdout.write(text)
    else:
        write_whole(args.out, text)
        if not args.quiet:
            print(f"wrote {args.out}")
    return 0


def _check_out(out: Path, inputs: Sequence[str | Path | None]) -> None:
    """Raises ConfigError where what is rendered would take the place of what it is rendered from, and
    UnsupportedInputError where no file can be put."""
    check_place(out)
    if any(one is not None and out.exists() and out.samefile(one) for one in inputs):
        raise ConfigError(f"--out {out} is what is rendered from, and would be lost; name another file")


def render(
    cluster: ClusterConfig,
    kind: Kind,
    job: JobConfig | None,
    *,
    job_file: str,
    overrides: Sequence[str] = (),
    prices: Prices = LIST_PRICES,
) -> str:
    """The whole text of a description. `job` is what `job_file` and `overrides` say.

    Raises:
        ConfigError: the job does not fit the cluster, or the cluster lacks what the kind needs.
    """
    head = _heading(cluster, kind, job, prices)
    makers: dict[str, Callable[[], str]] = {
        "ray-aws": lambda: _checked_ray_yaml(ray_yaml.aws(cluster)),
        "ray-gcp": lambda: _checked_ray_yaml(ray_yaml.gcp(cluster)),
        "ray-on-premise": lambda: _checked_ray_yaml(ray_yaml.on_premise(cluster)),
        "kuberay-cluster": lambda: _checked_kuberay(
            cluster, [*_policies(cluster), kuberay.ray_cluster(cluster)]
        ),
        "kuberay-job": lambda: _checked_kuberay(
            cluster,
            [*_policies(cluster), *kuberay.ray_job(cluster, _needed(job, kind), secrets.token_hex(3))],
        ),
        "slurm": lambda: script.script(cluster, job_file, job, overrides),
        "skypilot": lambda: _yaml([skypilot.task(cluster, _needed(job, kind))]),
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


RAY_UP = (
    "here: a token in ~/.ray/auth_token (ray get-auth-token --generate), which is copied to the machines",
    "containers see no variable of the machine: HF_TOKEN, S3 keys and the like go into `docker.env_file`",
    "ray up FILE; in another terminal: ray dashboard FILE, a tunnel to the head's port 8265",
    "penumbra cluster submit job.toml --address http://127.0.0.1:8265; at the end: ray down FILE",
)
KUBERAY = (
    "the KubeRay operator 1.3 or later, NVIDIA's device plugin and, for its label, GPU feature discovery",
    "access to the store: `kubernetes.service_account` with a role, or keys in `kubernetes.secret`",
    'KubeRay 1.5.1 or later for `kubernetes.auth = "token"`: kubectl -n {namespace} get secret {name} -o '
    "jsonpath='{{.data.auth_token}}' | base64 -d gives what RAY_AUTH_TOKEN must be for `submit`",
    "with min_count = 0 a node label that only running nodes have (gpu.product) starts no node: set "
    "`kubernetes.gpu_label` to one that your autoscaler knows, such as karpenter.k8s.aws/instance-gpu-name",
)
NEEDS: dict[str, tuple[str, ...]] = {
    "ray-aws": (
        "here: AWS credentials that may start instances and make roles (for example AWS_PROFILE), boto3",
        "quota for the machines; `image` where they may pull it, or the project in `aws.machine_image`",
        "workers: `aws.worker_profile`, an instance profile that may use the store's bucket",
        "head: Ray makes the role ray-autoscaler-v1 (EC2, S3); add iam:PassRole for the workers' profile",
        "and ssm:GetParameters, with which AWS looks up the machines' image",
        *RAY_UP,
    ),
    "ray-gcp": (
        "here: gcloud credentials (application-default), google-api-python-client",
        "quota for the machines; `image` where they may pull it, or the project in `gcp.machine_image`",
        "workers: `gcp.worker_account`, a service account that may pull the image",
        "a store on S3, with its keys in the machines' environment: the labeler does not write to gs:// yet",
        *RAY_UP,
    ),
    "ray-on-premise": (
        "ssh from here to every machine; `ray` on the path of an ssh login there, or Docker and `image`",
        "a network of your own: the token keeps others out of Ray, but nothing is encrypted",
        "a store that every machine reaches: S3, or a shared file system at the same path",
        *RAY_UP,
    ),
    "kuberay-cluster": (
        *KUBERAY,
        "kubectl apply -f FILE; kubectl -n {namespace} port-forward svc/{name}-head-svc 8265",
        "penumbra cluster submit job.toml --address http://127.0.0.1:8265",
    ),
    "kuberay-job": (
        *KUBERAY,
        "kubectl apply -f FILE; kubectl delete -f FILE stops it; to go on with the store, render it again",
    ),
    "slurm": (
        "Slurm 20.11 or later; the project installed at the same path on every node, or `slurm.container`",
        "a store that every node reaches: a shared file system, or S3 with its keys in the environment",
        "sbatch FILE; before the time limit the job drains and is queued again; scancel ends it for good",
    ),
    "skypilot": (
        "SkyPilot 0.14 or later with the clouds that `sky check` shows, and `image` where they may pull it",
        "export RAY_AUTH_TOKEN=$(openssl rand -hex 32), and HF_TOKEN and the store's keys where wanted",
        "sky jobs launch FILE --secret RAY_AUTH_TOKEN --secret HF_TOKEN ... (or --secret NAME= for none)",
        "machines that are taken away come back elsewhere, and the job goes on with its store",
        "never `ray stop` on these machines: it would end SkyPilot's own Ray",
    ),
    "dockerfile": (
        "docker build -f FILE -t IMAGE . in the project's folder, then docker push IMAGE",
        "on GPU machines NVIDIA's driver 580 or later, for CUDA 13",
        "gated teachers: HF_TOKEN in the environment of the machines, never in the image",
    ),
    "prometheus": (
        "prometheus --config.file=FILE on the head, in its container if it has one: Ray lists the targets",
        "on Kubernetes instead a PodMonitor on the pods' port `metrics`",
    ),
    "grafana": (),
}


def _heading(cluster: ClusterConfig, kind: Kind, job: JobConfig | None, prices: Prices) -> str:
    """Comment lines: what it needs, where the replicas go, what it costs."""
    lines = [
        f"Rendered by `penumbra cluster render --kind {kind}` for the cluster {cluster.name!r}.",
        "Needs:",
    ]
    names = {"name": cluster.name, "namespace": cluster.kubernetes.namespace}
    lines += [f"  - {need.format(**names)}" for need in NEEDS[kind]]
    lines += [f"  - {note}" for note in cache_notes(cluster, kind)]
    if kind.startswith("kuberay") and cluster.kubernetes.queue and cluster.kubernetes.autoscale:
        lines.append(
            "  - Kueue's gate ElasticJobsViaWorkloadSlices: without it, nothing that grows by itself is "
            "admitted; set kubernetes.autoscale = false"
        )
    if kind.startswith("kuberay") and not has_pod_schema():
        lines.append("  - pods were not held against Kubernetes' schema: pip install kubernetes-validate")
    if job is not None:
        placed = (cluster, job)
        if kind == "slurm" and cluster.slurm.array:
            placed = script.task_of_array(cluster, job)
            lines.append(f"  - when all tasks are done: {script.merge_command(cluster, job)}")
        placement = check_placement(*placed, _cores_offered(cluster, kind), disk_kind=kind)
        lines += ["Placement of the job's replicas:", *(f"  - {line}" for line in placement)]
    if kind not in ("dockerfile", "grafana", "prometheus"):
        has_head = kind not in ("slurm", "skypilot")
        cost = price_lines(cluster, CLOUDS.get(kind), head=has_head, prices=prices)
        lines += ["Cost:", *(f"  - {line}" for line in cost)]
    return "".join(f"# {line}\n" for line in lines)


def _cores_offered(cluster: ClusterConfig, kind: Kind) -> dict[str, int]:
    """CPU cores that a machine of each group has for replicas."""
    if kind in CLOUDS:
        return {group.name: machine_for(group, CLOUDS[kind]).cores for group in cluster.groups}
    if kind.startswith("kuberay"):
        return {group.name: pods.pod_cores(group.cores) for group in cluster.groups}
    return {group.name: group.cores for group in cluster.groups}


def _policies(cluster: ClusterConfig) -> list[dict[str, Any]]:
    return [kuberay.network_policy(cluster)] if cluster.kubernetes.network_policy else []


def _needed(job: JobConfig | None, kind: Kind) -> JobConfig:
    if job is None:
        raise ConfigError(f"--kind {kind} carries the job in it; name the job file with --job")
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


def _checked_kuberay(cluster: ClusterConfig, documents: list[dict[str, Any]]) -> str:
    check_schemas(documents)
    check_objects(cluster, documents)
    return _yaml(documents)


class _PlainDumper(yaml.SafeDumper):
    """YAML without anchors, which people and some tools stumble over, and with whole lines of a text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_PlainDumper.add_representer(str, _text)


def _yaml(documents: list[dict[str, Any]]) -> str:
    return yaml.dump_all(documents, Dumper=_PlainDumper, sort_keys=False, width=110)
