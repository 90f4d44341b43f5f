"""A model that cannot be had is told of after one question to the hub, by a server that counts questions."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from logitstore.common.config_file import ConfigError
from logitstore.models.hub import check_model_name


class Hub:
    """Takes connections and answers each, those after the last with the last answer; an empty one breaks the
    connection off."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = answers
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.num_asked = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                answer = self._answers[min(self.num_asked, len(self._answers) - 1)]
                self.num_asked += 1  # before the client has its answer and looks
                connection.sendall(answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(timeout=10)


@pytest.fixture
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(*request.param) if isinstance(request.param, tuple) else Hub(request.param)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield server
    server.close()


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nX-Error-Code: RepoNotFound\r\nContent-Length: 0\r\n\r\n"
NO_REVISION = NOT_FOUND.replace(b"RepoNotFound", b"RevisionNotFound")
BROKEN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("hub", "says"),
    [
        (b"", "its hub cannot be reached"),
        (NOT_FOUND, "has no such model"),
        (NO_REVISION, "has no revision 'v9'"),
    ],
    indirect=["hub"],
)
def test_a_wrong_name_is_asked_for_once(hub: Hub, says: str) -> None:
    with pytest.raises(ConfigError, match="no-such/model") as refused:
        check_model_name("no-such/model", revision="v9", setting="teacher.model")
    assert says in str(refused.value)
    assert hub.num_asked <= 2, "a client may open a broken connection once more; from_pretrained asks 6 times"


@pytest.mark.parametrize("hub", [b""], indirect=True)
def test_the_hub_is_asked_by_whatever_its_library_uses(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub 1, which transformers 5.19 takes too, asks by httpx and brings no httpx2."""
    assert hub.num_asked == 0
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ConfigError, match="its hub cannot be reached"):
        check_model_name("no-such/model", revision=None, setting="teacher.model")


INFO = b'{"id": "some/model", "gated": "manual"}'
GATED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
    % (len(INFO), INFO),
    NOT_FOUND.replace(b"404 Not Found", b"403 Forbidden").replace(b"RepoNotFound", b"GatedRepo"),
)


@pytest.mark.parametrize("hub", [GATED], indirect=True)
def test_a_model_with_terms_is_told_of_before_its_files_are_asked_for(hub: Hub) -> None:
    """Its page is open to all, so its name is right, and its files failed later, with advice on the name."""
    with pytest.raises(ConfigError, match=r"terms must be accepted.*/some/model, and set HF_TOKEN"):
        check_model_name("some/model", revision=None, setting="teacher.model")
    assert hub.num_asked == 2


@pytest.mark.parametrize("hub", [BROKEN], indirect=True)
@pytest.mark.parametrize("name", ["org/model@v2", "org/model:v2"])
def test_a_revision_behind_the_name_is_told_where_to_stand(hub: Hub, name: str) -> None:
    with pytest.raises(ConfigError, match=r"no name of a model.*A revision is given as student\.revision"):
        check_model_name(name, revision=None, setting="student.model")
    with pytest.raises(ConfigError, match="no name of a model") as refused:
        check_model_name(name, revision=None, setting="--student")
    assert "revision" not in str(refused.value)
    assert hub.num_asked == 0


@pytest.mark.parametrize("hub", [BROKEN], indirect=True)
def test_trouble_of_the_hub_is_left_to_those_who_try_again(hub: Hub) -> None:
    check_model_name("some/model", revision=None, setting="teacher.model")
    assert hub.num_asked == 1


@pytest.mark.parametrize("hub", [NOT_FOUND], indirect=True)
@pytest.mark.parametrize("name", ["./models/mine", "/nowhere/model", "a/b/c", "~/model"])
def test_a_path_is_never_asked_for(hub: Hub, name: str) -> None:
    with pytest.raises(ConfigError, match="is no folder here; correct the path"):
        check_model_name(name, revision=None, setting="student.model")
    assert hub.num_asked == 0
