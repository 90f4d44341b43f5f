"""Reading from anywhere: addresses by what their servers offer, times the commands that read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow.parquet as pq
import pytest

from benchmarks.servers.serving import serving
from benchmarks.servers.web import WebHabits, run_web_server
from logitstore.__main__ import main
from logitstore.common.store_warning import StoreWarning
from logitstore.errors import AccessRefusedError, ObjectStoreError
from logitstore.exchange.npz.reading import read_npz
from logitstore.objects import ranged_file
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore
from logitstore.tools.inspection import inspect_store
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import commit_units, make_manifest, make_sequence, make_unit
from tests.servers.s3_dialects import Dialect, DialectServer, run_dialect

SIGNATURE = "Expires=1&Signature=secretsignature"
HABITS = {
    "all of it": WebHabits(),
    "no listing": WebHabits(lists=False),
    "listing is 404": WebHabits(lists=False, unlisted_status=404),
    "listing is 405": WebHabits(lists=False, unlisted_status=405),
    "no ranges": WebHabits(ranges=False),
    "no sizes": WebHabits(sizes=False),
    "a name, and nothing else": WebHabits(lists=False, ranges=False, sizes=False),
    "signed": WebHabits(lists=False, signature=SIGNATURE),
    "fails at first": WebHabits(failures=2),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """Of two compacted units."""
    store = LogitStore.create(tmp_path_factory.mktemp("anywhere") / "store", make_manifest())
    for unit_index in range(2):
        unit_id, sequences = make_unit(unit_index)
        store.commit_unit(unit_id, unit_index, sequences, seconds=0, worker="w")
    store.compact()
    return store


GET_ALONE = "s3 key that may get and not list"


@pytest.fixture(params=[*HABITS, GET_ALONE], scope="module")
def address(store: LogitStore, request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[list[str]]:
    """The store's URL and the options that it needs."""
    options = tmp_path_factory.mktemp("options") / "options.json"
    if request.param == GET_ALONE:
        with dialect_of(store, "no lists") as server:
            options.write_text(json.dumps(server.storage_options))
            yield ["s3://b/store", "--storage-options", str(options)]
        return
    habits = HABITS[request.param]
    options.write_text(json.dumps({"query": SIGNATURE} if habits.signature else {}))
    with run_web_server(Path(store.uri), habits) as server:
        yield [server.url, "--storage-options", str(options)]


@contextlib.contextmanager
def dialect_of(store: LogitStore, dialect: Dialect) -> Iterator[DialectServer]:
    """A server that has the store at s3://b/store."""
    with run_dialect(dialect) as server:
        for path in Path(store.uri).rglob("*"):
            if path.is_file():
                server.data[f"store/{path.relative_to(store.uri)}"] = path.read_bytes()
        yield server


pytestmark = pytest.mark.filterwarnings("ignore::logitstore.common.store_warning.StoreWarning")


@pytest.fixture
def here(store: LogitStore, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command says of the local store."""

    def said(*command: str) -> str:
        assert main([command[0], store.uri, *command[1:]]) == 0
        return capsys.readouterr().out

    return said


def test_verify_finds_no_fault(address: list[str], capsys) -> None:
    for extra in ((), ("--quick",)):
        assert main(["verify", *address, "--json", *extra]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["ok"], found["num_units"], found["garbage_bytes"]) == (True, 2, 0)
        assert {one["kind"] for one in found["problems"]} <= {"unlisted"}, found["problems"]


def test_verify_compares_an_input(address: list[str], tmp_path: Path, capsys) -> None:
    (tmp_path / "input.jsonl").write_text('{"text": "never labeled"}\n')
    assert main(["verify", *address, "--json", "--against", str(tmp_path / "input.jsonl")]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["num_input_records"] == 1
    assert {one["kind"] for one in found["problems"]} - {"unlisted"} == {"not_labeled", "not_in_input"}


@pytest.mark.parametrize(
    "command", [("inspect", "--json"), ("head", "--json"), ("cat",), ("cat", "--top-k", "2")]
)
def test_a_command_says_what_it_says_of_the_folder(address: list[str], here, command, capsys) -> None:
    expected = here(*command)
    assert main([command[0], *address, *command[1:]]) == 0
    found = capsys.readouterr().out
    if command[0] == "inspect":
        found, expected = (
            {key: value for key, value in json.loads(text).items() if key != "uri"}
            for text in (found, expected)
        )
    assert found == expected


def test_what_makes_stores_reads_from_there(store: LogitStore, address: list[str], tmp_path: Path) -> None:
    expected = [one.record_id for one in store]
    assert main(["merge", *address, "--out", str(tmp_path / "merged"), "--quiet"]) == 0
    assert main(["copy", *address[:1], str(tmp_path / "copy"), *address[1:], "--quiet"]) == 0
    assert main(["publish", *address[:1], str(tmp_path / "public"), *address[1:], "--quiet"]) == 0
    assert main(["export", *address[:1], "--to", "parquet", f"{tmp_path}/t/", *address[1:], "--quiet"]) == 0
    for place in ("merged", "copy", "public"):
        assert [one.record_id for one in LogitStore.open(tmp_path / place)] == expected, place
    assert pq.read_table(tmp_path / "t").num_rows == len(expected)


def test_export_and_view(store: LogitStore, address: list[str], tmp_path: Path) -> None:
    url, options = address[0], json.loads(Path(address[2]).read_text())
    assert main(["export", *address, "--to", "npz", str(tmp_path / "out.npz")]) == 0
    assert sum(1 for _ in read_npz(tmp_path / "out.npz").sequences) == 6
    assert main(["view", url, "--out", str(tmp_path / "page.html"), "--storage-options", address[2]]) == 0
    copy = LogitStore.open(url, storage_options=options)
    assert copy.digest == store.digest
    assert [one.record_id for one in copy.iter_sequences(top_k=1)] == [
        one.record_id for one in store.iter_sequences(top_k=1)
    ]


def test_a_refused_listing_is_said_once_and_hides_nothing_it_cannot_hide(store: LogitStore) -> None:
    with run_web_server(Path(store.uri), WebHabits(lists=False)) as server:
        with pytest.warns(StoreWarning, match="may not be listed") as seen:
            copy = LogitStore.open(server.url)
        copy.refresh()
        assert len(seen) == 1
        assert verify_store(copy).problems[0].kind == "unlisted"
        assert [request for request in server.requests if request.endswith("/commits")] == ["GET /commits"]


def test_404_for_a_folder_is_no_proof_that_nothing_lies_in_it(tmp_path: Path) -> None:
    """As of a CDN or an S3 website; but a server that lists may lack the empty folder of records."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    store.commit_unit("u0", 0, [make_sequence("a")], seconds=0, worker="w")
    store.compact()
    store.commit_unit("u1", 1, [make_sequence("b")], seconds=0, worker="w")
    hidden = WebHabits(lists=False, unlisted_status=404)
    with run_web_server(Path(store.uri), hidden) as server:
        with pytest.warns(StoreWarning, match="may not be listed, so units that were committed after"):
            assert len(LogitStore.open(server.url)) == 1
        with pytest.raises(AccessRefusedError, match="shows no listing of its folders"):
            Objects(server.url).list("shards/")
    with run_web_server(Path(store.uri)) as server:
        assert len(LogitStore.open(server.url)) == 2
        store.compact()
        Path(store.uri, "commits").rmdir()
        assert len(LogitStore.open(server.url)) == 2


class HdfsHandler(BaseHTTPRequestHandler):
    """What reading asks of HDFS's web interface, over the folder `root` of the server."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key.lower(): values[0] for key, values in parse_qs(url.query).items()}
        path: Path = self.server.root / unquote(url.path).removeprefix("/webhdfs/v1/")  # type: ignore[attr-defined]
        if not path.exists():
            gone = {"RemoteException": {"exception": "FileNotFoundException", "message": "gone"}}
            self.reply(404, json.dumps(gone).encode())
        elif query["op"] == "OPEN":
            first = int(query.get("offset", 0))
            self.reply(200, path.read_bytes()[first : first + int(query.get("length", 10**9))])
        elif query["op"] == "GETFILESTATUS":
            self.reply(200, json.dumps({"FileStatus": self.status(path)}).encode())
        else:
            found = [self.status(one) for one in path.iterdir()]
            self.reply(200, json.dumps({"FileStatuses": {"FileStatus": found}}).encode())

    def status(self, path: Path) -> dict[str, Any]:
        kind = "DIRECTORY" if path.is_dir() else "FILE"
        return {"pathSuffix": path.name, "type": kind, "length": path.stat().st_size}

    def reply(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_file_system_gets_the_host_of_its_url(store: LogitStore) -> None:
    """webhdfs:// (and sftp://, ftp://) was made without it: no such address could be read."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HdfsHandler)
    server.root = Path(store.uri).parent  # type: ignore[attr-defined]
    with serving(server):
        copy = LogitStore.open(f"webhdfs://127.0.0.1:{server.server_port}/store")
        assert [one.record_id for one in copy] == [one.record_id for one in store]
        assert verify_store(copy).errors == []


def test_a_place_without_index_that_refuses_to_be_listed_is_no_empty_store(tmp_path: Path) -> None:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    Path(store.uri, "index.json").unlink()
    Path(store.uri, "commits").mkdir(exist_ok=True)
    with run_web_server(Path(store.uri), WebHabits(lists=False)) as server, pytest.raises(AccessRefusedError):
        LogitStore.open(server.url)


def test_a_server_without_ranges_sends_a_shard_once(store: LogitStore, monkeypatch) -> None:
    size = max(entry.num_bytes for entry in store.shards())
    with run_web_server(Path(store.uri), WebHabits(ranges=False)) as server:
        copy = LogitStore.open(server.url)
        before = server.sent_bytes
        with copy.open_shard(copy.shards()[0]) as reader:
            assert len(list(reader.iter_sequences())) == 3
        assert server.sent_bytes - before <= 3 * size
        monkeypatch.setattr(ranged_file, "MAX_WHOLE_BYTES", 1)
        with pytest.raises(ObjectStoreError, match=r"ignores ranges.*copy the store"):
            list(copy.iter_sequences())


def test_a_range_beyond_the_end_is_empty_without_ranges_too(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(b"0123456789")
    (tmp_path / "empty").write_bytes(b"")
    for habits in HABITS.values():
        with run_web_server(tmp_path, habits) as server:
            objects = Objects(server.url, {"query": habits.signature} if habits.signature else None)
            assert objects.get_range("object", 4, 6) == b"45"
            assert objects.get_range("object", 8, 30) == b"89"
            assert objects.get_range("object", 20, 30) == b""
            assert (objects.get("object"), objects.get("empty")) == (b"0123456789", b"")
            assert (objects.stat("object").num_bytes, objects.stat("empty").num_bytes) == (10, 0)
            assert objects.get_many(["object", "missing"]) == [b"0123456789", None]
            with pytest.raises(FileNotFoundError):
                objects.get("missing")


def test_a_signature_is_in_no_message(store: LogitStore) -> None:
    with run_web_server(Path(store.uri), WebHabits(signature="sig=righthere")) as server:
        with pytest.raises(AccessRefusedError) as caught:
            LogitStore.open(server.url, storage_options={"query": "sig=wrongsecret"})
        assert "wrongsecret" not in str(caught.value)


def test_a_key_that_may_get_and_not_list(store: LogitStore) -> None:
    with dialect_of(store, "no lists") as server:
        copy = LogitStore.open("s3://b/store", storage_options=server.storage_options)
        assert copy.digest == store.digest
        findings = verify_store(copy)
        assert (findings.errors, findings.num_rows) == ([], 66)
        assert inspect_store(copy).other_bytes == inspect_store(store).other_bytes
        with pytest.raises(AccessRefusedError, match="credentials"):
            LogitStore.open("s3://b/nothing", storage_options=server.storage_options)


@pytest.mark.slow
def test_each_address_may_have_its_own_options(store: LogitStore, tmp_path: Path) -> None:
    """They were no file of options where the target's were given: a defect, by the command's own words."""
    expected = [one.record_id for one in store]
    options = tmp_path / "options.json"
    with run_dialect("plain") as server:
        options.write_text(json.dumps(server.storage_options))
        there = ["--out-storage-options", str(options), "--quiet"]
        assert main(["copy", store.uri, "s3://b/copy", *there]) == 0
        assert main(["publish", store.uri, "s3://b/public", *there]) == 0
        assert main(["export", store.uri, "--to", "arrow", "s3://b/tables/", *there]) == 0
        for place in ("s3://b/copy", "s3://b/public"):
            opened = LogitStore.open(place, storage_options=server.storage_options)
            assert [one.record_id for one in opened] == expected
        assert Objects("s3://b/tables", server.storage_options).list() == ["part-00000-of-00001.arrow"]


def test_units_that_no_index_has_are_not_shown_without_a_listing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said "check the credentials and what they permit"."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    commit_units(store, range(2))
    assert main(["copy", store.uri, str(tmp_path / "copy")]) == 0
    said = capsys.readouterr().out
    assert "2 units of it are not in its index yet, so servers that may not be listed do not show" in said
    assert f"`penumbra store compact {store.uri}` and copy again" in said
    with run_web_server(tmp_path / "copy", WebHabits(lists=False)) as server:
        with pytest.raises(AccessRefusedError, match="names no unit"):
            LogitStore.open(server.url)
        store.compact()
        assert main(["copy", store.uri, str(tmp_path / "copy")]) == 0
        assert "not in its index" not in capsys.readouterr().out
        assert LogitStore.open(server.url).digest == store.digest


@pytest.mark.parametrize("habits", [WebHabits(), WebHabits(lists=False)], ids=["lists", "does not list"])
def test_a_web_server_that_takes_nothing_says_so(
    store: LogitStore, tmp_path: Path, habits: WebHabits, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said "check the endpoint, the network and the credentials"."""
    with run_web_server(tmp_path, habits) as server:
        place = f"{server.url}/new"
        for command in (["copy", store.uri, place], ["publish", store.uri, place]):
            assert main([*command, "--quiet"]) == 2, command
            said = capsys.readouterr().err
            assert f"{place}: the server takes no PUT requests here (status 501)" in said, command
            assert "write to the folder that it serves" in said
        assert main(["merge", store.uri, "--out", place]) == 2
        assert "write to a folder of this machine" in capsys.readouterr().err


def test_a_shard_that_is_gone_where_nothing_is_listed_is_one_problem(store: LogitStore) -> None:
    """S3 refuses a key that may not list what is not there, which ended the whole check."""
    gone = store.shards()[0]
    with dialect_of(store, "no lists") as server:
        del server.data[f"store/{gone.name}"]
        findings = verify_store(LogitStore.open("s3://b/store", storage_options=server.storage_options))
    assert [(one.kind, one.where) for one in findings.errors] == [("missing_shard", gone.name)]
    assert f"merge STORE --out NEW --where 'unit_index != {gone.unit_index}'" in findings.errors[0].message
    assert findings.num_units - 1 == len(findings.labeled.digests) > 0
    assert not findings.bad_shards, "whether it is there is not known, so nothing is labeled anew for it"
