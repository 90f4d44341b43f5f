"""A Dockerfile for head and workers: Ray, vLLM and this project in one image. Pure."""

from __future__ import annotations

from cluster.config import ClusterConfig

BASE_IMAGE = "nvidia/cuda:12.9.1-devel-ubuntu22.04"
"""vLLM compiles some kernels when it starts, so the image has the compiler too."""


def dockerfile(cluster: ClusterConfig) -> str:
    """Built from the project's folder: `docker build -f Dockerfile -t IMAGE .`"""
    has_gpu = any(group.gpus for group in cluster.groups)
    base = BASE_IMAGE if has_gpu else "debian:12-slim"
    extra = "label" if has_gpu else "label-cpu"
    return f"""\
FROM {base}
ENV DEBIAN_FRONTEND=noninteractive \\
    RAY_USAGE_STATS_ENABLED=0 \\
    UV_PYTHON_INSTALL_DIR=/opt/python \\
    PATH=/opt/venv/bin:$PATH
# rsync, ssh and sudo are what Ray's launcher and KubeRay expect; wget serves KubeRay's probes.
RUN apt-get update \\
 && apt-get install -y --no-install-recommends ca-certificates curl wget git gcc g++ libnuma1 \\
    rsync openssh-client sudo \\
 && rm -rf /var/lib/apt/lists/*
COPY --from=ghcr.io/astral-sh/uv:0.9 /uv /usr/local/bin/uv
RUN uv venv --python 3.11 /opt/venv
WORKDIR /opt/penumbra
# Dependencies first: they change less often than the project.
COPY pyproject.toml README.md LICENSE ./
COPY logitstore ./logitstore
COPY labeler ./labeler
COPY cluster ./cluster
COPY trainer ./trainer
COPY benchmarks ./benchmarks
RUN uv pip install --python /opt/venv/bin/python ".[{extra}]" "ray[default]=={cluster.ray_version}"
RUN useradd --create-home --uid 1000 ray && echo "ray ALL=(ALL) NOPASSWD:ALL" > /etc/sudoers.d/ray
USER ray
WORKDIR /home/ray
CMD ["python", "-m", "labeler", "--help"]
"""
