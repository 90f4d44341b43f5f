"""A job that does not say the kind of its input: found here, so that the cluster is told the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import yaml

from cluster.__main__ import main
from cluster.jobs.submission import JOB_FILE, SubmitOptions, prepare
from labeler.config.found import load_found_job, load_input_found
from tests.labeler.planning.templates import byte_tokenizer

CLUSTER = 'name = "small"\nimage = "i:1"\n[[groups]]\nname = "cpu"\ncount = 2\n'


def job_file(folder: Path, *, kind: str = "", uri: str = "", teacher: str = 'engine = "fake"') -> Path:
    (folder / "in.jsonl").write_text('{"question": "why?"}\n')
    file = folder / "job.toml"
    file.write_text(
        f'[teacher]\n{teacher}\n[input]\nuri = "{uri or folder / "in.jsonl"}"\n{kind}\n'
        f'[output]\nuri = "s3://bucket/store"\n'
    )
    return file


@pytest.mark.parametrize("kind", ["", 'kind = "auto"'])
def test_what_is_sent_means_on_the_cluster_what_it_means_here(kind: str, tmp_path: Path) -> None:
    job, lines = load_input_found(str(job_file(tmp_path, kind=kind)), environ={})
    assert 'labels.mode = "generate"' in lines[0]
    folder = tmp_path / "send"
    folder.mkdir()
    prepare(job, SubmitOptions("ship", "python"), folder, owner="ada@lab")
    there, found = load_found_job(str(folder / JOB_FILE), environ={})
    assert found == []
    assert (there.input.kind, there.labels.mode, there.input.fields) == (
        "prompt", "generate", {"prompt": "question"},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["", 'kind = "auto"'])
def test_a_rendered_job_carries_what_its_input_tells(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fsspec.open("memory://found/in.jsonl", "w") as remote:
        remote.write('{"question": "why?"}\n')  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    job = job_file(tmp_path, kind=kind, uri="memory://found/in.jsonl")
    arguments = ["render", str(tmp_path / "cluster.toml"), "--kind", "kuberay-job", "--job", str(job)]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    carried = json.loads(next(yaml.safe_load_all(out))["data"]["job.json"])
    assert (carried["input"]["kind"], carried["labels"]["mode"]) == ("prompt", "generate")
    assert 'found: input.kind = "prompt"' in err


def test_an_input_that_cannot_be_read_here_must_be_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_file(tmp_path, uri=str(tmp_path / "on-the-nodes.jsonl"))
    assert main(["submit", str(job), "--address", "http://127.0.0.1:1"]) == 2
    assert "set input.kind and labels.mode" in capsys.readouterr().err


NO_TORCH = """
import sys
sys.modules["torch"] = None
from cluster.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_cost_of_a_job_is_told_where_torch_is_not(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    byte_tokenizer().save_pretrained(teacher)
    config = {"model_type": "llama", "vocab_size": 600, "max_position_embeddings": 1024}
    (teacher / "config.json").write_text(json.dumps(config))
    (teacher / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")  # of no tensor
    job = job_file(tmp_path, teacher=f'model = "{teacher}"')
    changed = ["--set", "input.chat_template=false", "--set", f"output.uri={tmp_path / 'store'}"]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, "cost", str(job), *changed, "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_labels"] == 512  # as many as the teacher may write
