"""The task file against SkyPilot's own schema, read from its package without its dependencies."""

from __future__ import annotations

import enum
import importlib
import importlib.util
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.describe import skypilot
from cluster.describe.render import render
from labeler.config.loading import load_job
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import a_job, one_kind, two_kinds


@pytest.fixture(scope="module")
def sky_schemas() -> Any:
    """`sky.utils.schemas`. The packages on the way to it load the clouds' clients, so they stand empty here."""
    spec = importlib.util.find_spec("sky")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations)))
    before = set(sys.modules)
    for name in ("sky", "sky.skylet", "sky.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        package.__dict__["__version__"] = "0.14.1"
        sys.modules[name] = package

    class AutostopWaitFor(enum.Enum):
        NONE = "none"

        @classmethod
        def supported_modes(cls) -> list[str]:
            return ["jobs_and_ssh", "jobs", "none"]

    autostop = types.ModuleType("sky.skylet.autostop_lib")
    autostop.__dict__["AutostopWaitFor"] = AutostopWaitFor
    sys.modules["sky.skylet.autostop_lib"] = sys.modules["sky.skylet"].__dict__["autostop_lib"] = autostop
    server = types.ModuleType("sky.server")
    daemons = types.ModuleType("sky.server.daemons")
    daemons.__dict__["INTERNAL_REQUEST_DAEMONS"] = []
    server.__dict__["daemons"] = daemons
    sys.modules |= {"sky.server": server, "sky.server.daemons": daemons}
    yield importlib.import_module("sky.utils.schemas")
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "sky":
            del sys.modules[name]


def parsed(**changes: Any) -> dict[str, Any]:
    job = a_job(replicas=4, gpus=4, resources={"group-l4": 0.001})
    return yaml.safe_load(render(one_kind(**changes), "skypilot", job, job_file="job.toml"))


def test_skypilot_accepts_the_task(sky_schemas: Any) -> None:
    task = parsed()
    jsonschema.validate(task, sky_schemas.get_task_schema())
    jsonschema.validate(task["resources"], sky_schemas.get_resources_schema())
    assert task["num_nodes"] == 4
    assert task["resources"]["accelerators"] == {"L4": 4}
    assert task["resources"]["any_of"] == [{"use_spot": True}, {"use_spot": False}]
    assert set(task["secrets"].values()) == {None}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(task["resources"] | {"accelerator": "L4"}, sky_schemas.get_resources_schema())


def test_what_is_added_reaches_the_task(sky_schemas: Any) -> None:
    more = {"labels": {"team": "nlp"}, "infra": "aws/us-east-1"}
    task = parsed(skypilot={"task": {"resources": more, "file_mounts": {"/data": "s3://bucket/data"}}})
    jsonschema.validate(task, sky_schemas.get_task_schema())
    jsonschema.validate(task["resources"], sky_schemas.get_resources_schema())
    assert task["resources"] == parsed()["resources"] | more
    assert task["file_mounts"] == {"/data": "s3://bucket/data"}


def test_the_fields_that_we_know_are_skypilots(sky_schemas: Any) -> None:
    task, resources = (
        {name for name in schema["properties"] if not name.startswith("_")}
        for schema in (sky_schemas.get_task_schema(), sky_schemas.get_resources_schema())
    )
    assert {*skypilot.TASK_FIELDS, *skypilot.OURS} == task
    assert set(skypilot.RESOURCE_FIELDS) == resources


def test_choices_of_ones_own_replace_ours() -> None:
    """Ours beside them would be taken where no choice of the user's has a machine."""
    choices = [{"infra": "aws", "use_spot": True}, {"infra": "gcp", "use_spot": False}]
    for name in ("any_of", "ordered"):
        found = parsed(skypilot={"task": {"resources": {name: choices}}})["resources"]
        assert {key: found[key] for key in ("any_of", "ordered") if key in found} == {name: choices}


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"resource": {}}, "has no 'resource'; did you mean resources"),
        ({"resources": {"acelerators": "H100:8"}}, "did you mean accelerators"),
        ({"resources": {"any_of": [{"spot": True}]}}, r"any_of: SkyPilot has no 'spot'"),
        ({"resources": {"ordered": 3}}, "must be a table"),
        ({"resources": "H100:8"}, "must be a table"),
        ({"envs": {"N": 1}}, r"envs\.N = 1 must be a text"),
        ({"run": "echo"}, "it starts Ray and the job; add what comes before as setup"),
        ({"num_nodes": 2}, "it is count of the group"),
        ({"secrets": ["HF"]}, "would take the place of .*RAY_AUTH_TOKEN; name yours as managed_secrets"),
        ({"resources": {"accelerators": {"H200": 8}}}, "against which the job is held"),
        ({"resources": {"image_id": "docker:other"}}, "which is not merged: it is image"),
    ],
)
def test_what_cannot_be_added_is_refused(task: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parsed(skypilot={"task": task})


def test_the_task_runs_the_job_on_the_first_node(tmp_path: Path) -> None:
    run = parsed()["run"]
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/bash\n" + run)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    settings = tmp_path / "job.json"
    settings.write_text(run.split("<<'END_OF_JOB'\n")[1].split("\nEND_OF_JOB")[0])
    job = load_job(str(settings), environ={})
    assert job.workers.replicas == 4
    assert job.workers.resources == {}, "the machines of a task have no resource of a group"
    assert "ray stop" not in run


def test_what_a_task_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="machines of one kind"):
        skypilot.task(two_kinds(), a_job())
    with pytest.raises(ConfigError, match="image is missing"):
        skypilot.task(one_kind(image=""), a_job())
    local = a_job().model_copy(update={"output": a_job().output.model_copy(update={"uri": "runs/store"})})
    with pytest.raises(ConfigError, match="which no machine of a task has"):
        skypilot.task(one_kind(), local)
    given = a_job().model_copy(update={"labels": a_job().labels.model_copy(update={"given": "runs/first"})})
    with pytest.raises(ConfigError, match=r"labels\.given 'runs/first' is a path"):
        skypilot.task(one_kind(), given)
    with pytest.raises(ConfigError, match="--kind skypilot carries the job"):
        render(one_kind(), "skypilot", None, job_file="job.toml")


def test_a_teacher_in_a_folder_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    teacher = a_job().teacher.model_copy(update={"model": "models/llama"})
    with pytest.raises(
        ConfigError, match=r"teacher\.model 'models/llama' is a path, which no machine of a task has"
    ):
        skypilot.task(one_kind(), a_job().model_copy(update={"teacher": teacher}))


def test_a_chat_template_in_a_file_is_refused_where_no_machine_has_it() -> None:
    job = a_job()
    job = job.model_copy(update={"input": job.input.model_copy(update={"chat_template": "chat.jinja"})})
    with pytest.raises(
        ConfigError, match=r"input\.chat_template 'chat.jinja' is a path, which no machine of a task has"
    ):
        skypilot.task(one_kind(), job)


def test_the_weights_of_a_task_lie_in_a_bucket_or_on_a_larger_disk(sky_schemas: Any) -> None:
    task = parsed(cache={"bucket": "s3://models/hf"})
    jsonschema.validate(task, sky_schemas.get_task_schema())
    mounted = task["file_mounts"]["/cache/huggingface"]
    assert mounted == {"source": "s3://models/hf", "mode": "MOUNT_CACHED"}
    modes = Path(sky_schemas.__file__).parents[1] / "data" / "storage.py"
    assert "    MOUNT_CACHED = 'MOUNT_CACHED'" in modes.read_text()
    assert task["envs"]["HF_HOME"] == "/cache/huggingface"
    larger = parsed(cache={"size_gb": 300})
    assert larger["resources"]["disk_size"] == 500
    assert "file_mounts" not in larger
