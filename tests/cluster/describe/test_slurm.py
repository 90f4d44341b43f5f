"""The batch script for Slurm: what sbatch is told, containers, arrays, and runs of it with stubs of Slurm."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.describe.render import render
from cluster.describe.settings.cluster import ClusterConfig
from cluster.describe.slurm.container import pyxis_image
from cluster.describe.slurm.script import merge_command
from labeler.config.loading import load_job
from logitstore.common.config_file import ConfigError
from logitstore.store import LogitStore
from tests.cluster.describe.descriptions import a_job, one_kind

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow  # shellcheck, and scripts that wait for processes


def assert_bash(folder: Path, text: str) -> Path:
    """The script as a file, which bash parses and shellcheck finds nothing wrong with."""
    script = folder / "job.sh"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    return script


def test_the_slurm_script_is_bash_and_drains_before_the_time_is_up(tmp_path: Path) -> None:
    text = render(one_kind(), "slurm", a_job(drain_sec=100), job_file="runs/my job.toml")
    assert text.startswith("#!/bin/bash\n")
    assert_bash(tmp_path, text)
    head = text.split("set -euo pipefail")[0]
    for directive in (
        "--nodes=4",
        "--gpus-per-node=4",
        "--signal=B:TERM@160",
        "--time=01:30:00",
        "--partition=gpu",
        "--account=lab",
        "--open-mode=append",
    ):
        assert f"#SBATCH {directive}\n" in head
    assert "'runs/my job.toml'" in text


def fake_slurm(folder: Path, job_status: str, slurm_state: str) -> dict[str, str]:
    """scontrol, srun and a python that note how they were called; the job waits for its signal."""
    tools = {
        "scontrol": 'case "$*" in "show hostnames"*) printf "n1\\nn2\\n";; '
        f'"show job"*) echo "   JobState={slurm_state} Reason=None";; *) echo "scontrol $*" >> "$NOTES";; esac',
        "srun": 'echo "srun $*" >> "$NOTES"; case "$*" in *hostname*) echo "127.0.1.1 fd00::5 10.0.0.1 10.9.9.9";; *"rm -rf"*|*mkdir*) ;; *) sleep 60;; esac',
        "python": f'case "$*" in *labeler*) trap \'echo drained >> "$NOTES"; exit {job_status}\' TERM;; esac\n'
        'echo "python $*" >> "$NOTES"\n'
        'case "$*" in *labeler*) for _ in $(seq 1200); do sleep 0.1; done;; esac',
    }
    for name, body in tools.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}:/usr/bin:/bin",
        "NOTES": str(folder / "notes"),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "4",
        "SLURM_JOB_ID": "77",
        "SLURM_CPUS_PER_TASK": "48",
    }


def traps_sigterm(process_id: int) -> bool:
    status = Path(f"/proc/{process_id}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught & 1 << (signal.SIGTERM - 1))


AS_A_TASK = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}
"""Of the array's last task, which has the array's own number."""


@pytest.mark.parametrize(
    ("slurm_state", "array", "turns"),
    [("RUNNING", {}, ["77"]), ("RUNNING", AS_A_TASK, ["77_3"]), ("CANCELLED", {}, [])],
)
def test_the_slurm_script_hands_the_warning_on_and_asks_for_another_turn(
    tmp_path: Path, slurm_state: str, array: dict[str, str], turns: list[str]
) -> None:
    script = tmp_path / "job.sh"
    cluster = one_kind(slurm={"setup": 'echo setup >> "$NOTES"'})
    script.write_text(render(cluster, "slurm", None, job_file="job.toml"))
    environment = fake_slurm(tmp_path, job_status="4", slurm_state=slurm_state)
    process = subprocess.Popen(["bash", str(script)], env=environment | array)
    notes = tmp_path / "notes"

    def is_under_way() -> bool:
        said = notes.read_text() if notes.exists() else ""
        return "labeler run" in said and "start --address" in said and traps_sigterm(process.pid)

    while not is_under_way():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) == 4
    said = notes.read_text()
    assert said.startswith("setup\n")
    assert "drained" in said
    assert re.findall(r"scontrol requeue (\S+)", said) == turns
    assert said.count("start --address=10.0.0.1:6456") == 1
    assert "srun --nodes=3" in said
    assert re.search(r"rm -rf /tmp/ray-\d+-77$", said, re.MULTILINE)


@pytest.mark.parametrize("container", ["", "pyxis"])
def test_a_warning_after_the_jobs_end_is_no_failure(tmp_path: Path, container: str) -> None:
    script = tmp_path / "job.sh"
    cluster = one_kind(slurm={"container": container})
    script.write_text(render(cluster, "slurm", None, job_file="job.toml"))
    environment = stub_pyxis(tmp_path)
    tools = {
        "srun": 'while [[ "$1" == --* ]]; do shift; done\n'
        'case "$*" in *hostname*) echo 10.0.0.1;; *"rm -rf"*) touch "$NOTES.cleaning"; sleep 1; exec "$@";; '
        '*) exec "$@";; esac',
        "python": 'case "$*" in *" start "*) sleep 60;; esac',
    }
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
    process = subprocess.Popen(["bash", str(script)], env=environment)
    while not (tmp_path / "notes.cleaning").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=30) == 0


def test_a_slurm_job_ends_when_its_head_has_died(tmp_path: Path) -> None:
    """Else it holds its GPUs for two minutes and then fails with something else."""
    script = tmp_path / "job.sh"
    script.write_text(render(one_kind(slurm={}), "slurm", None, job_file="job.toml"))
    environment = fake_slurm(tmp_path, job_status="0", slurm_state="RUNNING")
    (tmp_path / "srun").write_text(
        '#!/bin/bash\ncase "$*" in *hostname*) echo 10.0.0.1;; *mkdir*) ;; *) exit 7;; esac\n'
    )
    (tmp_path / "python").write_text("#!/bin/bash\nexit 1\n")
    done = subprocess.run(
        ["bash", str(script)], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "Ray's head on n1 has ended" in done.stderr


def test_what_a_slurm_site_demands_can_be_said(tmp_path: Path) -> None:
    slurm = {
        "gpu_types": {"L4": "l4"},
        "directives": ["--qos=high", "--mem=0", "--constraint=nvlink"],
        "interface": "ib0",
        "container": "apptainer",
    }
    text = render(one_kind(slurm=slurm), "slurm", None, job_file="job.toml")
    head, body = text.split("set -euo pipefail")
    assert "#SBATCH --gpus-per-node=l4:4\n" in head
    assert head.count("--mem=") == 1
    assert all(f"#SBATCH {line}\n" in head for line in slurm["directives"])
    assert "ip -4 -o addr show dev ib0" in body
    assert len(re.findall(r"apptainer exec --nv .*? docker://registry", body)) == 4
    assert_bash(tmp_path, text)
    for wrong in ("qos=high", "--a\nrm -rf /"):
        with pytest.raises(ValidationError, match="one line that starts with"):
            one_kind(slurm={"directives": [wrong]})


@pytest.mark.parametrize("container", ["", "apptainer", "pyxis"])
@pytest.mark.parametrize("cache", [{}, {"host_path": "/nvme/hf"}, {"size_gb": 200}])
@pytest.mark.parametrize("array", [0, 8])
def test_containers_caches_and_arrays_in_any_mixture_are_bash(
    tmp_path: Path, container: str, cache: dict[str, Any], array: int
) -> None:
    slurm: dict[str, Any] = {"container": container, "array": array}
    if container:
        slurm["mounts"] = ["/data", "/scratch/my-models:/models"]
    text = render(one_kind(slurm=slurm, cache=cache), "slurm", a_job(), job_file="my job.toml")
    assert_bash(tmp_path, text)
    head, body = text.split("set -euo pipefail")
    assert ("--tmp=200G" in head) == ("size_gb" in cache)
    assert ("export HF_HOME=" in body) == bool(cache)
    assert ("--array=0-7%4" in head) == bool(array)
    if container == "pyxis":
        assert "--container-image='registry.example#penumbra:1'" in body
        assert ",/data:/data,/scratch/my-models:/models\n" in body
        assert ('"$HF_HOME":"$HF_HOME"' in body) == ("host_path" in cache)
    if container == "apptainer":
        assert "--bind /scratch/my-models:/models" in body


@pytest.mark.parametrize(
    ("image", "written"),
    [
        ("registry.example/team/penumbra:1", "registry.example#team/penumbra:1"),
        ("docker://ghcr.io/a/b:2", "ghcr.io#a/b:2"),
        ("localhost/a:1", "localhost#a:1"),
        ("host:5000/a:1", "host:5000#a:1"),
        ("team/penumbra:1", "team/penumbra:1"),
        ("penumbra", "penumbra"),
        ("/images/penumbra.sqsh", "/images/penumbra.sqsh"),
    ],
)
def test_an_image_is_named_as_enroot_names_it(image: str, written: str) -> None:
    assert pyxis_image(image) == written


@pytest.mark.parametrize(
    ("slurm", "says"),
    [
        ({"mounts": ["/data"]}, "need slurm.container"),
        ({"container": "pyxis", "mounts": ["data"]}, "mounts"),
        ({"container": "pyxis", "mounts": ["/a,/b"]}, "mounts"),
        ({"container": "pyxis", "mounts": ["/$(touch x)"]}, "mounts"),
        ({"container": "enroot"}, "container"),
        ({"array": -1}, "array"),
    ],
)
def test_containers_and_arrays_that_cannot_be_are_refused(slurm: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        one_kind(slurm=slurm)


def test_an_array_needs_a_job_that_can_be_cut() -> None:
    cluster = one_kind(slurm={"array": 2})
    with pytest.raises(ConfigError, match="name the job file with --job"):
        render(cluster, "slurm", None, job_file="job.toml")
    with pytest.raises(ConfigError, match="has one machine"):
        render(cluster, "slurm", a_job(machines=2), job_file="job.toml")
    cut = a_job().model_copy(update={"input": a_job().input.model_copy(update={"slice": "0/2"})})
    with pytest.raises(ConfigError, match="remove one of the two"):
        render(cluster, "slurm", cut, job_file="job.toml")
    with pytest.raises(ConfigError, match="needs an image"):
        render(one_kind(image="", slurm={"container": "pyxis"}), "slurm", None, job_file="job.toml")


def test_a_task_of_an_array_has_as_many_replicas_as_its_machine_holds() -> None:
    text = render(one_kind(slurm={"array": 5}), "slurm", a_job(replicas=8), job_file="job.toml")
    assert "group l4: up to 2 on each of 1 machines" in text
    assert "--set workers.replicas=2 &" in text
    assert "penumbra store merge s3://bucket/store-part-{0..4} --out s3://bucket/store" in text


def test_changes_of_the_job_reach_the_labeler(tmp_path: Path) -> None:
    """The script names the job's file, so what --set changed when it was rendered must be said again."""
    job = tmp_path / "job.toml"
    job.write_text(
        '[teacher]\nengine = "fake"\n[input]\nuri = "s3://b/in"\nkind = "text"\n[output]\nuri = "s3://b/o"\n'
    )
    overrides = ["workers.gpus=1", "labels.top_k=32", 'input.fields={text = "body of it"}']
    text = render(
        one_kind(), "slurm", load_job(str(job), overrides, {}), job_file=str(job), overrides=overrides
    )
    assert "--set workers.gpus=1 --set labels.top_k=32 --set 'input.fields={text = \"body of it\"}' &" in text
    assert_bash(tmp_path, text)


def stub_pyxis(folder: Path) -> dict[str, str]:
    """Slurm for one node: srun notes its options and runs the command, in a container or not, here."""
    tools = {
        "scontrol": 'case "$*" in "show hostnames"*) echo n1;; "show job"*) echo "JobState=RUNNING";; '
        '*) echo "scontrol $*" >> "$NOTES";; esac',
        "srun": 'echo "srun $*" >> "$NOTES"\nwhile [[ "$1" == --* ]]; do shift; done\n'
        'case "$*" in *hostname*) echo 10.0.0.1;; *) exec "$@";; esac',
        "enroot": "exit 0",
        "python": 'case "$*" in *labeler*) trap "echo drained >> $NOTES; exit 4" TERM;; esac\n'
        'echo "python $*" >> "$NOTES"\n'
        'case "$*" in *" status "*) ;; *) for _ in $(seq 1200); do sleep 0.1; done;; esac',
    }
    for name, body in tools.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}:/usr/bin:/bin",
        "NOTES": str(folder / "notes"),
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_CPUS_PER_TASK": "48",
    }


@pytest.mark.parametrize("job_status", [0, 4])
def test_a_job_that_ends_while_it_is_warned_keeps_its_status(tmp_path: Path, job_status: int) -> None:
    """The wait for it is cut short by the warning, and it has ended before the script looks again."""
    script = tmp_path / "job.sh"
    script.write_text(render(one_kind(slurm={"container": "pyxis"}), "slurm", None, job_file="job.toml"))
    environment = stub_pyxis(tmp_path)
    tools = {
        "python": 'case "$*" in *" start "*) sleep 60;; *labeler*) touch "$NOTES.runs"\n'
        f'while [ ! -e "$NOTES.warned" ]; do sleep 0.05; done; exit {job_status};; esac',
        "cat": 'touch "$NOTES.warned"; sleep 1; exec /bin/cat "$@"',
    }
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    process = subprocess.Popen(["bash", str(script)], env=environment)
    while not (tmp_path / "notes.runs").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=30) == job_status
    assert ("scontrol requeue" in (tmp_path / "notes").read_text()) == (job_status == 4)


def test_in_pyxis_the_labeler_is_told_to_drain_and_not_its_step(tmp_path: Path) -> None:
    """A signal to srun ends the whole step at once; the labeler's own process must get it."""
    cluster = one_kind(slurm={"container": "pyxis"})
    script = assert_bash(tmp_path, render(cluster, "slurm", a_job(), job_file="job.toml"))
    environment, notes = stub_pyxis(tmp_path), tmp_path / "notes"
    process = subprocess.Popen(["bash", str(script)], env=environment)
    deadline = time.monotonic() + 60
    while not (notes.exists() and "python -P -m labeler run" in notes.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 4
    said = notes.read_text()
    assert "drained" in said
    assert f"scontrol requeue {os.getpid()}" in said
    imports = [line for line in said.splitlines() if "--container-image" in line]
    assert len(imports) == 1, "the image is unpacked once"
    named = [line for line in said.splitlines() if line.startswith("srun") and "--container-name=" in line]
    assert all(f"--container-name=penumbra-{os.getpid()}" in line for line in named)
    assert {"status", "start", "labeler"} <= {word for line in named for word in line.split()}
    assert "enroot remove --force pyxis_penumbra-" in said


USERS: dict[int, list[str]] = {
    0: [],
    # Reads the interpreter, which may lie in another's home, and writes nothing of others'.
    65534: ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"],
}  # fmt: skip


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may write to; pytest's own are its user's alone."""
    with tempfile.TemporaryDirectory(prefix="penumbra-users-") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.getuid() != 0, reason="two users need root")
def test_two_users_run_an_arrays_tasks_on_one_node_and_the_stores_merge(open_folder: Path) -> None:
    """Whole scripts with a real Ray and stubs of Slurm, one after the other: what the first user's Ray leaves
    on the node is in nobody's way."""
    tmp_path = open_folder
    records = [{"id": f"r{number}", "text": f"Sentence number {number}."} for number in range(7)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    job_file = tmp_path / "job.toml"
    job_file.write_text(
        f'[teacher]\nengine = "fake"\n[input]\nuri = "{tmp_path}/in.jsonl"\nkind = "text"\nid = "id"\n'
        f'[output]\nuri = "{tmp_path}/store"\nunit_size = 2\n[labels]\ntop_k = 8\n'
    )
    job = load_job(str(job_file), [], {})
    cluster = ClusterConfig.model_validate(
        {
            "name": "shared",
            "python": sys.executable,
            "groups": [{"name": "cpu", "count": 2, "cores": 1, "memory_gb": 2}],
            "slurm": {"array": 2},
        }
    )
    script = assert_bash(tmp_path, render(cluster, "slurm", job, job_file=str(job_file)))
    script.chmod(0o644)
    environment = stub_pyxis(tmp_path)
    (tmp_path / "python").unlink()
    (tmp_path / "srun").write_text(
        '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\n'
        'case "$*" in *hostname*) hostname --all-ip-addresses;; *) exec "$@";; esac\n'
    )
    for task, become in enumerate(USERS.values()):
        own = environment | {
            "SLURM_JOB_ID": str(os.getpid() % 400 * 2 + task),
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_CPUS_PER_TASK": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [*become, "bash", str(script)], env=own, cwd=tmp_path, capture_output=True, text=True,
            timeout=140, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    stores = [tmp_path / f"store-part-{task}" for task in range(2)]
    assert [path.stat().st_uid for path in stores] == list(USERS)
    ids = [{one.record_id for one in LogitStore.open(path).iter_sequences()} for path in stores]
    assert ids == [{f"r{number}" for number in range(7) if number % 2 == task} for task in range(2)]
    # The command that the script names, as bash reads it.
    program = f"{sys.executable} -m logitstore"
    command = merge_command(cluster, job).replace("penumbra store", program)
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    merged = LogitStore.open(tmp_path / "store")
    assert {one.record_id for one in merged.iter_sequences()} == {record["id"] for record in records}
