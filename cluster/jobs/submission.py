"""A job made ready for a cluster: what travels, what must already be there, what is refused. Asks no cluster.

A cluster sees neither this machine's files nor its environment. Input files may travel along when they are
small; a teacher's folder and the store must lie where every node reaches them. Secrets never travel: what
is submitted can be read by everyone who reaches the cluster's dashboard.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cluster.describe.shell_words import path_word
from cluster.errors import JobRefusedError
from cluster.jobs.environment import parse_env
from labeler.config.loading import JobConfig, is_local_path, resolved, with_absolute_paths
from labeler.job.person import OWNER_VARIABLE
from logitstore.common.config_file import flatten
from logitstore.common.secrets import blanked_places
from logitstore.errors import StoreError
from logitstore.inputs.listing import list_files
from logitstore.objects.addresses import normalise_uri

Files = Literal["same", "ship"]
"""Where the job's local paths mean something: "same" on every node as here, "ship" only here."""

MAX_SHIPPED_BYTES = 64 * 2**20
"""Ray's upload ends at 100 MiB; the rest is room for code."""
JOB_FILE = "job.json"
ID_PREFIX = "label-"
INPUT_FOLDER, TEMPLATE_FOLDER = "input", "template"
STOP_MARGIN_SEC = 30
"""Time beyond `workers.drain_sec` that a stopped driver has before Ray kills it."""

STORE_KEY = "penumbra.store"
CHECK_KEY = "penumbra.check"
"""In place of STORE_KEY and all that goes with it, where a job only looks at the nodes."""
JOB_KEY = "penumbra.job"
OPTIONS_KEY = "penumbra.options"
RESUMES_KEY = "penumbra.resumes"
OWNER_KEY = "penumbra.owner"


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """How a job is run on the cluster, apart from the job itself."""

    files: Files
    """Whether local paths are the same on every node, or must travel."""
    python: str
    """The interpreter on the cluster that has this project (and vLLM) installed."""
    ship_code: bool = False
    """Send this machine's labeler and logitstore along instead of using the cluster's."""
    env_vars: tuple[tuple[str, str], ...] = ()
    """Environment of the job; never secrets."""
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    """Further parts of Ray's runtime environment: pip, uv, conda and the like."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What Ray's Jobs API gets."""

    submission_id: str
    entrypoint: str
    runtime_env: dict[str, Any]
    metadata: dict[str, str]


def prepare(
    job: JobConfig, options: SubmitOptions, folder: Path, *, owner: str, resumes: str | None = None
) -> Submission:
    """Fill `folder` with what travels and describe the submission of the person `owner`.

    Raises:
        JobRefusedError: a secret, or a path that the cluster cannot reach.
    """
    document = resolved(with_absolute_paths(job))
    refuse_secrets(document)
    parse_env([f"{name}={value}" for name, value in options.env_vars])
    _refuse_bytes(document, options)
    if job.workers.address is not None:
        raise JobRefusedError(
            f"workers.address is {job.workers.address!r}, but the job runs on the cluster it is submitted "
            "to; remove the setting"
        )
    metadata = {
        OWNER_KEY: owner,
        STORE_KEY: normalise_uri(document["output"]["uri"]),  # by which two jobs on one store are found
        JOB_KEY: json.dumps(document),
        OPTIONS_KEY: json.dumps(
            {"files": options.files, "python": options.python, "ship_code": options.ship_code}
            | {"env_vars": dict(options.env_vars), "runtime_env": dict(options.runtime_env)}
        ),
    }
    if resumes is not None:
        metadata[RESUMES_KEY] = resumes
    if options.files == "ship":
        document = _ship_input(document, folder)
        _ship_template(document, folder)
    (folder / JOB_FILE).write_text(json.dumps(document, indent=2), encoding="utf-8")
    if options.ship_code:
        _ship_code(folder)
    stop_wait_sec = int(job.workers.drain_sec) + STOP_MARGIN_SEC
    return Submission(
        submission_id=submission_id(job.output.uri),
        entrypoint=f"{path_word(options.python)} -m labeler run {JOB_FILE}",
        runtime_env=dict(options.runtime_env)
        | {
            "working_dir": str(folder),
            **_interpreter(options),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_wait_sec), "PYTHONUNBUFFERED": "1"}
            | {OWNER_VARIABLE: owner}  # for the record of the run in the store
            | dict(options.env_vars),
        },
        metadata=metadata,
    )


def as_check(submission: Submission) -> Submission:
    """In the same environment, a job that looks at what the nodes have; it labels nothing."""
    python, _, _ = submission.entrypoint.partition(" -m ")
    return replace(
        submission,
        submission_id=f"check-{submission.submission_id.removeprefix(ID_PREFIX)}",
        entrypoint=f"{python} -m labeler nodes {JOB_FILE} --json",
        metadata={
            OWNER_KEY: submission.metadata[OWNER_KEY],
            CHECK_KEY: submission.metadata[STORE_KEY],
        },
    )


def _interpreter(options: SubmitOptions) -> dict[str, str]:
    """The actors must run on the interpreter of the driver, not on the one that Ray itself was started with.

    An environment that Ray builds (pip, uv, conda) has an interpreter of its own.
    """
    builds = {"pip", "uv", "conda", "container"} & set(options.runtime_env)
    return {} if builds and options.python == "python" else {"py_executable": options.python}


def submission_id(store_uri: str) -> str:
    """A new id that a person recognises: the store's last name and six random digits."""
    name = re.sub(r"[^a-z0-9]+", "-", store_uri.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")
    return f"{ID_PREFIX}{name[:40] or 'store'}-{secrets.token_hex(3)}"


def refuse_secrets(document: dict[str, Any]) -> None:
    """Raise JobRefusedError where a job, as `resolved` gives it, holds what others must not read."""
    place = next(blanked_places(document), None)
    if place is not None:
        is_place = place.endswith((".uri", ".given"))
        what = "holds a user name or password, or a signature" if is_place else "is a secret"
        raise JobRefusedError(
            f"{place} {what}, and a job's settings are shown to everyone who reaches the cluster: remove it "
            "and set AWS_ACCESS_KEY_ID and the like on the cluster's nodes"
        )


def _refuse_bytes(document: dict[str, Any], options: SubmitOptions) -> None:
    """Raise JobRefusedError for half of a letter, as names of files have that are no UTF-8: Ray would
    die of it, and the job end without a log."""
    given = flatten(document) | {f"--env {name}": value for name, value in options.env_vars}
    for place, value in {**given, "--python": options.python}.items():
        try:
            json.dumps([place, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise JobRefusedError(
                f"{place} = {value!r} holds bytes that are no UTF-8, which Ray cannot carry to the cluster; "
                "rename what is named so"
            ) from None


def _ship_input(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Copy local input files into the folder; refuse paths that cannot travel. Local paths are absolute."""
    changed = json.loads(json.dumps(document))
    remedy = "use an s3:// address, or --files same if every node sees the path as this machine does"
    if is_local_path(changed["output"]["uri"]):
        raise JobRefusedError(f"output.uri {changed['output']['uri']!r} lies on this machine; {remedy}")
    if os.path.isdir(changed["teacher"]["model"]):
        raise JobRefusedError(
            f"teacher.model {changed['teacher']['model']!r} is a folder of this machine; name a Hugging Face "
            "id, or use --files same if every node has the folder at the same path"
        )
    given = changed["labels"]["given"]
    if given and is_local_path(given):
        raise JobRefusedError(f"labels.given {given!r} lies on this machine; {remedy}")
    uri = changed["input"]["uri"]
    if not is_local_path(uri):
        return changed
    try:  # as the labeler finds them: notes beside the data do not travel, and would be read as records there
        files = {Path(path.removeprefix("file://")): name for path, name in list_files(uri)}
    except StoreError as error:
        raise JobRefusedError(str(error)) from None
    num_bytes = sum(path.stat().st_size for path in files)
    if num_bytes > MAX_SHIPPED_BYTES:
        raise JobRefusedError(
            f"input.uri {uri!r} has {num_bytes:,} bytes and at most {MAX_SHIPPED_BYTES:,} travel with a job; "
            + remedy
        )
    for path, name in files.items():
        target = folder / INPUT_FOLDER / name
        if target.exists():
            raise JobRefusedError(f"input.uri {uri!r} matches two files named {name}; rename one")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    # Ray unpacks the folder at another place for every change of the job and every start of the cluster.
    changed["input"]["known_as"] = changed["input"]["known_as"] or uri
    changed["input"]["uri"] = f"{INPUT_FOLDER}/{next(iter(files.values())) if os.path.isfile(uri) else '**'}"
    return changed


def _ship_template(document: dict[str, Any], folder: Path) -> None:
    """Copy the file of a chat template into the folder, and name it in the document."""
    template = document["input"]["chat_template"]
    if not isinstance(template, str):
        return
    target = folder / TEMPLATE_FOLDER / os.path.basename(template)
    target.parent.mkdir()
    try:
        shutil.copyfile(template, target)
    except OSError as error:
        raise JobRefusedError(
            f"input.chat_template {template!r} cannot be read here ({error.strerror}), so it cannot travel; "
            "correct the path, or use --files same if every node has it"
        ) from None
    document["input"]["chat_template"] = f"{TEMPLATE_FOLDER}/{target.name}"


def _ship_code(folder: Path) -> None:
    """Copy the packages that a job runs; the job's own folder comes first on Python's path."""
    for package in ("labeler", "logitstore"):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise JobRefusedError(f"--ship-code: the package {package} is not installed here")
        source = Path(next(iter(spec.submodule_search_locations)))
        shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
