"""Runs of the batch script with stubs of Slurm: warnings, requeues, a dead head, containers, two users."""

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

import pytest

from cluster.describe.render import render
from cluster.describe.settings.cluster import ClusterConfig
from cluster.describe.slurm.script import merge_command
from labeler.config.loading import load_job
from logitstore.store import LogitStore
from tests.cluster.describe.descriptions import a_job, one_kind
from tests.cluster.describe.slurm.stub_slurm import assert_bash, fake_slurm, stub_pyxis, traps_sigterm

ROOT = Path(__file__).parents[4]
pytestmark = pytest.mark.slow  # shellcheck, and scripts that wait for processes

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
    # The line of the labeler itself, which handles the signal by then; that of its step comes before.
    while not (notes.exists() and "\npython -P -m labeler run" in notes.read_text()):
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


@pytest.mark.parametrize(
    ("turn", "seconds", "another"),
    [("0", "5400", True), ("2", "0", True), ("2", "5400", False)],
    ids=["first", "preempted", "third whose time is used up"],
)
def test_a_warning_before_the_labeler_has_begun_costs_no_turn_unless_no_turn_can_help(
    tmp_path: Path, turn: str, seconds: str, another: bool
) -> None:
    """While Ray starts: the script was ended by it, and nobody asked for another turn. Where Ray's start takes
    the whole time limit again and again, GPUs would be held for nothing for ever."""
    script = assert_bash(tmp_path, render(one_kind(slurm={}), "slurm", a_job(), job_file="job.toml"))
    environment, notes = stub_pyxis(tmp_path), tmp_path / "notes"
    (tmp_path / "python").write_text(
        '#!/bin/bash\necho "python $*" >> "$NOTES"\n'
        'case "$*" in *" status "*) exit 1;; *" start "*) exec sleep 60;; esac\n'
    )
    environment |= {"SLURM_RESTART_COUNT": turn, "SECONDS": str(4 * int(seconds))}
    process = subprocess.Popen(["bash", str(script)], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (notes.exists() and " status " in notes.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == (4 if another else 1)
    assert (f"scontrol requeue {os.getpid()}" in notes.read_text()) is another
    assert ("turn 3 has ended like this, so no other is asked for" in said) is not another
    assert "labeler" not in notes.read_text()


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
@pytest.mark.timeout(900)
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
            timeout=280, check=False,
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


@pytest.mark.parametrize("container", ["apptainer", "pyxis"])
def test_a_folder_that_no_mount_can_name_is_said_before_anything_starts(
    tmp_path: Path, container: str
) -> None:
    """`:` parts a mount from its place inside, and `,` parts mounts: another folder would have been mounted."""
    here = tmp_path / "run 1:a,b"
    here.mkdir()
    cluster = one_kind(slurm={"container": container})
    script = assert_bash(tmp_path, render(cluster, "slurm", a_job(), job_file="job.toml"))
    environment = stub_pyxis(tmp_path)
    done = subprocess.run(
        ["bash", str(script)],
        env=environment,
        cwd=here,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"a container cannot see {here}, " in done.stderr
    assert "start --head" not in (tmp_path / "notes").read_text()
