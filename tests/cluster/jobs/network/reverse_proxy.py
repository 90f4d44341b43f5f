"""An ingress before a Ray cluster: a path of its own, a header that it wants, and no WebSocket."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.servers.serving import serving

PREFIX = "/team/ray"
HEADER = ("X-Team", "nlp")


@contextlib.contextmanager
def ingress_before(address: str) -> Iterator[str]:
    """Address of the ingress; it ends with the block."""

    class Handler(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            if self.headers.get(HEADER[0]) != HEADER[1]:
                self.send_error(403)
                return
            if "upgrade" in self.headers.get("Connection", "").lower() or not self.path.startswith(PREFIX):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
            kept = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("host", "connection")
            }
            request = urllib.request.Request(
                address + self.path.removeprefix(PREFIX), body, kept, method=self.command
            )
            try:
                answer = urllib.request.urlopen(request, timeout=60)
            except urllib.error.HTTPError as error:
                answer = error
            content = answer.read()
            self.send_response(answer.status or 500)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = _pass_on

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
