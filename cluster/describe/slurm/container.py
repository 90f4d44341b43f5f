"""How the commands of a Slurm script run inside a container. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from cluster.describe.image import reference_of
from cluster.describe.settings.accelerators import is_amd
from cluster.describe.settings.cluster import ClusterConfig
from cluster.describe.settings.node_paths import in_quotes, is_plain_path
from logitstore.common.config_file import ConfigError

PLAIN_FOLDERS = """\
case "$PWD$RAY_TMPDIR${HF_HOME:-}" in
  *[:,]*)
    echo "a container cannot see $PWD, $RAY_TMPDIR or ${HF_HOME:-}: ':' and ',' part its mounts" >&2
    echo "submit from a folder without them (or set slurm.scratch, cache.host_path)" >&2
    exit 1 ;;
esac"""
"""Known on the nodes alone: where the job is sent from, and what variables of theirs say."""
ON_ALL_NODES = 'srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --overlap'


@dataclass(frozen=True, slots=True)
class Inside:
    """Words of the script that differ with the container; all "" runs what is installed on the nodes."""

    prefix: str = ""
    """Before every command."""
    step: str = ""
    """Options of the steps that start Ray."""
    here: str = ""
    """Before what the script itself runs on the head node."""
    prepare: str = ":  # no container to prepare"
    """Once on all nodes, before Ray."""
    clean: str = ":  # no container to remove"
    terminate: str = 'kill -TERM "$job"'
    """Asks the labeler to drain."""
    pid_file: str = ""
    """Where the labeler notes its process, if the script does not start it itself."""

    def driver(self, command: str) -> str:
        """The labeler's command."""
        if not self.pid_file:
            return command
        script = f'echo "$$" >"{self.pid_file}"; exec {command}'
        return f"bash -c {shlex.quote(script)}"

    @property
    def note(self) -> str:
        """Before a line whose variables a second shell puts in."""
        return "# shellcheck disable=SC2016\n" if self.pid_file else ""


def container_of(cluster: ClusterConfig) -> Inside:
    """By `slurm.container`. Raises ConfigError where there is no image."""
    kind = cluster.slurm.container
    if not kind:
        return Inside()
    if not cluster.image:
        raise ConfigError("slurm.container needs an image; set image, or leave the container out")
    _check_image(cluster.image, kind)
    return _apptainer(cluster) if kind == "apptainer" else _pyxis(cluster)


def _is_file(image: str) -> bool:
    return image.startswith(("/", "./", "../", "~", "$")) or image.endswith((".sqsh", ".sif"))


def _check_image(image: str, kind: str) -> None:
    """Raises ConfigError for an image that the program cannot run, or no image."""
    if kind == "pyxis" and image.endswith(".sif"):
        raise ConfigError(
            f"image {image!r} is Apptainer's, which enroot cannot run; name the image in its registry, or a "
            'file that `enroot import` made (.sqsh), or set slurm.container = "apptainer"'
        )
    scheme, separator, rest = image.rpartition("://")
    if kind == "pyxis" and separator and scheme != "docker":
        raise ConfigError(
            f"image {image!r} is of {scheme}://, which enroot does not know; write it as registry.example/"
            "team/penumbra:1"
        )
    if not _is_file(image) and scheme in ("", "docker"):
        reference_of(rest)


def pyxis_image(image: str) -> str:
    """An image as enroot writes it: the registry before "#"; a file keeps its path."""
    if _is_file(image):
        return image
    first, slash, rest = image.removeprefix("docker://").partition("/")
    is_registry = slash and ("." in first or ":" in first or first == "localhost")
    return f"{first}#{rest}" if is_registry else image.removeprefix("docker://")


def _image_word(image: str) -> str:
    """A file is looked up by the shell of the nodes, as other paths are; a name is taken as it stands."""
    return f'"{in_quotes(image)}"' if is_plain_path(image) else shlex.quote(image)


def _mounts(cluster: ClusterConfig) -> list[str]:
    """Folders that are the same inside: Ray's sockets, the job's own, the cache, and those asked for; as they
    stand between double quotes."""
    cache = ["$HF_HOME"] if cluster.cache.host_path else []
    return ["$RAY_TMPDIR", "$PWD", *cache, *map(in_quotes, cluster.slurm.mounts)]


def _apptainer(cluster: ClusterConfig) -> Inside:
    image = cluster.image
    if "://" not in image and not _is_file(image):
        image = f"docker://{image}"
    binds = " ".join(f'--bind "{mount}"' for mount in _mounts(cluster))
    gpus = "--rocm" if is_amd(cluster.groups[0].accelerator) else "--nv"
    return Inside(prefix=f"apptainer exec {gpus} {binds} {_image_word(image)} ", prepare=PLAIN_FOLDERS)


def _pyxis(cluster: ClusterConfig) -> Inside:
    """Steps share one unpacked container on each node; the script itself has none, so it runs steps too.

    A signal to srun ends its step at once, so the labeler is told by its own process id: containers of
    enroot share the node's.
    """
    mounts = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in _mounts(cluster))
    pid_file = "$RAY_TMPDIR/driver.pid"
    return Inside(
        step='"${container[@]}" ',
        here='srun --nodes=1 --ntasks=1 --nodelist="$head_node" --overlap "${container[@]}" ',
        prepare=(
            f"{PLAIN_FOLDERS}\n"
            'name="penumbra-$SLURM_JOB_ID"\n'
            f'mounts="{mounts}"\n'
            'container=(--container-name="$name" --container-workdir="$PWD" --container-mounts="$mounts")\n'
            f'{ON_ALL_NODES} "${{container[@]}}" --container-image={_image_word(pyxis_image(cluster.image))} '
            "true"
        ),
        clean=f'{ON_ALL_NODES} enroot remove --force "pyxis_$name" 2>/dev/null || true',
        terminate=f'kill -TERM "$(cat "{pid_file}")" || kill "$job"',
        pid_file=pid_file,
    )
