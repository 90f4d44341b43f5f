"""A secret planted in a job by twelve ways is found in no object of the store, log, message or submission."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import labeler.__main__ as labeler_command
import logitstore.__main__ as store_command
from cluster.errors import JobRefusedError
from cluster.jobs.submission import SubmitOptions, prepare
from labeler.config.loading import load_job, resolved
from logitstore.common.config_file import ConfigError

PLANTED = "hunter2XQZ"

KEPT = {
    "a key of the storage": f'output.storage_options={{key = "{PLANTED}"}}',
    "a table within": f'output.storage_options={{client_kwargs = {{aws_secret_access_key = "{PLANTED}"}}}}',
    "a list of tables": f'input.storage_options={{list = [{{secret = "{PLANTED}"}}]}}',
    "a list": f'input.storage_options={{auth = ["me", "{PLANTED}"]}}',
    "a connection string": f'output.storage_options={{connection_string = "AccountKey={PLANTED}"}}',
    "a header": f'input.storage_options={{client_kwargs = {{headers = {{Authorization = "{PLANTED}"}}}}}}',
    "a proxy": f'input.storage_options={{proxies = {{https = "http://me:{PLANTED}@proxy:1"}}}}',
    "a signed endpoint": f'output.storage_options={{endpoint_url = "https://h/?sig={PLANTED}"}}',
}
"""Ways in which a job may hold a secret and run: its own machine needs it."""

REFUSED = {
    "an engine argument": f'teacher.engine_args={{hf_token = "{PLANTED}"}}',
    "one deep within": f'teacher.engine_args={{hf_overrides = {{list = [{{api_key = "{PLANTED}"}}]}}}}',
}

URIS = {
    "a signed query": f"https://127.0.0.1:1/in.jsonl?X-Amz-Signature={PLANTED}",
    "a user of the web": f"http://user:{PLANTED}@127.0.0.1:1/in.jsonl?sig={PLANTED}",
    "a user of a bucket": f"s3://AKIA:{PLANTED}@bucket/in.jsonl",
}


def arguments(folder: Path, *more: str) -> list[str]:
    """A job whose records are all rejected: it writes all that comes before an engine, and ends."""
    (folder / "in.jsonl").write_text("".join(f'{{"text": {i}}}\n' for i in range(3)))
    settings = ["teacher.engine=fake", "input.kind=text", "limits.min_records=1"]
    settings += [f"input.uri='{folder}/in.jsonl'", f"output.uri='{folder}/store'", *more]
    return [part for setting in settings for part in ("--set", setting)]


def assert_nowhere(folder: Path, told: str) -> None:
    assert PLANTED not in told
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [str(path) for path in files if PLANTED.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("setting", KEPT.values(), ids=KEPT)
def test_nothing_of_a_job_that_runs_tells_its_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    for flags in ([], ["--dry-run"], ["--dry-run", "--json"]):
        assert labeler_command.main(["run", *arguments(tmp_path, setting), *flags]) in (1, 2)
    told = capsys.readouterr()
    assert (tmp_path / "store/job.json").exists()
    assert list((tmp_path / "store/logs").iterdir())
    assert_nowhere(tmp_path, told.out + told.err)


@pytest.mark.parametrize("setting", REFUSED.values(), ids=REFUSED)
def test_a_secret_for_the_engine_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    assert labeler_command.main(["run", *arguments(tmp_path, setting)]) == 2
    told = capsys.readouterr()
    assert "in the environment" in told.err
    assert not (tmp_path / "store").exists()
    assert_nowhere(tmp_path, told.out + told.err)


@pytest.mark.parametrize("uri", URIS.values(), ids=URIS)
@pytest.mark.parametrize("setting", ["input.uri", "output.uri"])
def test_messages_about_an_address_keep_its_secret(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert labeler_command.main(["run", *arguments(tmp_path, f"{setting}='{uri}'")]) == 2
    told = capsys.readouterr()
    assert setting in told.err
    assert_nowhere(tmp_path, told.out + told.err)


@pytest.mark.parametrize("uri", URIS.values(), ids=URIS)
def test_the_verifier_keeps_the_secret_of_an_input(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    golden = Path(__file__).parents[2] / "golden/fb88290/job/store"
    assert store_command.main(["verify", str(golden), "--against", uri]) != 0
    told = capsys.readouterr()
    assert PLANTED not in told.out + told.err


@pytest.mark.parametrize("setting", [*KEPT.values(), *(f"input.uri='{uri}'" for uri in URIS.values())])
def test_no_secret_travels_to_a_cluster(tmp_path: Path, setting: str) -> None:
    overrides = arguments(tmp_path, setting)[1::2]
    send = tmp_path / "send"
    send.mkdir()
    with pytest.raises(JobRefusedError) as caught:
        prepare(load_job(None, overrides, {}), SubmitOptions("same", "python"), send, owner="me")
    assert PLANTED not in str(caught.value)
    assert list(send.iterdir()) == []


def test_a_secret_left_out_is_asked_for_again(tmp_path: Path) -> None:
    overrides = arguments(tmp_path, KEPT["a key of the storage"])[1::2]
    (tmp_path / "job.json").write_text(json.dumps(resolved(load_job(None, overrides, {}))))
    with pytest.raises(ConfigError, match=r"output\.storage_options\.key holds '\*\*\*'"):
        load_job(str(tmp_path / "job.json"), [], {})


def test_a_wrong_value_is_shown_without_its_secret(tmp_path: Path) -> None:
    for wrong in (f"output.storage_options='https://u:{PLANTED}@h'", f"input.kind.password={PLANTED}"):
        with pytest.raises(ConfigError) as caught:
            load_job(None, arguments(tmp_path, wrong, "input.kind=text")[1::2], {})
        assert PLANTED not in str(caught.value)
