"""What huggingface_hub's client asks of the Hub to read and to commit, over repositories in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from benchmarks.servers.serving import serving

_API = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.*))?)?)?")
_RESOLVE = re.compile(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.*)")
_LFS_BATCH = re.compile(r"/.*\.git/info/lfs/objects/batch")
LFS_ENDINGS = (".arrow", ".bin")
"""Of such files the Hub keeps the content elsewhere, and redirects to it."""


HEAD = "a" * 40
"""The commit that "main" is at, whatever was committed."""


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.trees: dict[tuple[str, str, str], dict[str, bytes]] = {}
        """Files by kind ("dataset"), name and revision of a repository, and path."""
        self.large: dict[str, bytes] = {}
        self.commits: list[list[str]] = []
        """The paths that each commit changed."""
        self.requests: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def run_hub() -> Iterator[HubServer]:
    with serving(HubServer()) as server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {self.path}")
        if path.startswith("/large/"):
            self._send_file(self.server.large[path.removeprefix("/large/")])
        elif found := _RESOLVE.fullmatch(path):
            self._resolve(found[1] or "model", found[2], unquote(found[3]), unquote(found[4]))
        elif found := _API.fullmatch(path):
            kind, name, action, revision = found[1], found[2], found[3], unquote(found[4] or "main")
            tree = self._tree(kind, name, revision)
            if tree is None:
                return
            if action == "tree":
                recursive = (
                    parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
                )
                self._list(tree, unquote(found[5] or ""), recursive=recursive)
            else:
                about = {"id": name, "sha": HEAD, "siblings": [], "private": False, "tags": []}
                self._reply(200, {**about, "downloads": 0, "likes": 0})
        else:
            self._reply(404, {"error": "no such page"})

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        data = self._body()
        self.server.large[urlsplit(self.path).path.removeprefix("/large/")] = data
        self._reply(200)

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self._body()
        self.server.requests.append(f"POST {self.path}")
        if path == "/api/validate-yaml":
            self._reply(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            about = json.loads(body)
            kind = "" if about.get("type", "model") == "model" else f"{about['type']}s/"
            place = f"{self.server.url}/{kind}{about.get('organization')}/{about['name']}"
            self._reply(409, {"error": "You already created this repo", "url": place})
        elif _LFS_BATCH.fullmatch(path):
            self._reply(
                200,
                {"transfer": "basic", "objects": [self._action(one) for one in json.loads(body)["objects"]]},
            )
        elif (found := _API.fullmatch(path)) and found[3] in ("preupload", "commit", "paths-info"):
            tree = self._tree(found[1], found[2], unquote(found[4]))
            if tree is not None:
                answer = {
                    "preupload": self._preupload,
                    "commit": self._commit,
                    "paths-info": self._paths_info,
                }
                self._reply(200, answer[found[3]](tree, body))
        else:
            self._reply(404, {"error": "no such page"})

    def _tree(self, kind: str, name: str, revision: str) -> dict[str, bytes] | None:
        trees = self.server.trees
        revision = "main" if revision == HEAD else revision
        if not any(key[:2] == (kind, name) for key in trees):
            self._reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif (kind, name, revision) not in trees:
            self._reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return trees.get((kind, name, revision))

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        tree = self._tree(kind, name, revision)
        if tree is None:
            return
        if path not in tree:
            self._reply(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        elif path.endswith(LFS_ENDINGS):
            oid = hashlib.sha256(tree[path]).hexdigest()
            self.server.large[oid] = tree[path]
            self._reply(302, b"", {"Location": f"{self.server.url}/large/{oid}", "X-Repo-Commit": HEAD})
        else:
            self._send_file(tree[path])

    def _list(self, tree: dict[str, bytes], folder: str, *, recursive: bool) -> None:
        start = f"{folder}/" if folder else ""
        below = [path for path in sorted(tree) if path.startswith(start)]
        if folder and not below:
            self._reply(404, {"error": "no such entry"}, {"X-Error-Code": "EntryNotFound"})
            return
        parts = [path.removeprefix(start).split("/") for path in below]
        folders = {start + "/".join(one[:depth]) for one in parts for depth in range(1, len(one))}
        entries = [_entry(tree, path) for path in sorted({*folders, *below})]
        self._reply(200, [one for one in entries if recursive or "/" not in one["path"].removeprefix(start)])

    def _paths_info(self, tree: dict[str, bytes], body: bytes) -> list[dict[str, Any]]:
        try:
            paths = json.loads(body)["paths"]
        except ValueError:
            paths = parse_qs(body.decode())["paths"]
        return [_entry(tree, path) for path in paths if path in tree]

    def _preupload(self, tree: dict[str, bytes], body: bytes) -> dict[str, Any]:
        def mode(path: str) -> str:
            return "lfs" if path.endswith(LFS_ENDINGS) else "regular"

        paths = [file["path"] for file in json.loads(body)["files"]]
        return {"files": [{"path": one, "uploadMode": mode(one), "shouldIgnore": False} for one in paths]}

    def _action(self, one: dict[str, Any]) -> dict[str, Any]:
        there = one["oid"] in self.server.large
        upload = {"actions": {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}}
        return {"oid": one["oid"], "size": one["size"], **({} if there else upload)}

    def _commit(self, tree: dict[str, bytes], body: bytes) -> dict[str, Any]:
        changed: list[str] = []
        with self.server.lock:
            for line in body.splitlines():
                kind, value = (json.loads(line)[name] for name in ("key", "value"))
                if kind == "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                elif kind == "lfsFile":
                    tree[value["path"]] = self.server.large[value["oid"]]
                elif kind.startswith("deleted"):
                    for path in [
                        one for one in tree if one == value["path"] or one.startswith(value["path"] + "/")
                    ]:
                        del tree[path]
                if kind != "header":
                    changed.append(value["path"])
            self.server.commits.append(changed)
        oid = f"{len(self.server.commits):040x}"
        repository = urlsplit(self.path).path.removeprefix("/api/").partition("/commit/")[0]
        url = f"{self.server.url}/{repository.removeprefix('models/')}/commit/{oid}"
        return {"commitUrl": url, "commitOid": oid, "hookOutput": ""}

    def _body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _send_file(self, data: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": HEAD}
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self._reply(200, data, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            self._reply(416)
            return
        self._reply(
            206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        )

    def _reply(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data if self.command != "HEAD" else b"")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def _entry(tree: dict[str, bytes], path: str) -> dict[str, Any]:
    if path not in tree:
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
    return {
        "type": "file",
        "oid": hashlib.sha1(tree[path]).hexdigest(),
        "size": len(tree[path]),
        "path": path,
    }
