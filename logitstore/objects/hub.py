"""Objects of a repository of the Hugging Face Hub, which are read one by one and written by commits alone."""

from __future__ import annotations

import re
import shlex
from typing import Any
from urllib.parse import unquote

from logitstore.errors import UnsuitablePlaceError
from logitstore.objects.addresses import upload_command
from logitstore.objects.remote import RemoteBackend

_BUCKET = "hf://buckets/"
_REPOSITORY = re.compile(
    r"hf://((?P<kind>dataset|model|space)s/)?(?P<name>[^/@]+/[^/@]+)"
    r"(@(?P<revision>refs/(pr|convert)/[^/]+|[^/]+))?(/(?P<folder>.*))?"
)


class HubBackend(RemoteBackend):
    """Repositories of any kind, at any revision, and buckets, which take objects one by one."""

    def __init__(self, uri: str, storage_options: dict[str, Any]) -> None:
        # Its own names of what lies in a model's repository begin with the owner.
        super().__init__(re.sub("^hf://models/", "hf://", uri), storage_options)

    def put(self, name: str, data: bytes) -> None:
        self.require_puts()
        super().put(name, data)

    def delete(self, names: list[str]) -> None:
        if names:
            self.require_puts()
        super().delete(names)

    def require_puts(self) -> None:
        """Each put would be a commit: of several at once all but one fail, and the Hub takes few an hour."""
        if not self._uri.startswith(_BUCKET):
            raise self._unsupported("write one object")

    def _unsupported(self, what: str) -> UnsuitablePlaceError:
        found = _REPOSITORY.fullmatch(self._uri)
        if found is None:
            return super()._unsupported(what)
        command = upload_command(
            found["name"], "FOLDER", found["folder"] or ".", kind=found["kind"] or "model"
        )
        if found["revision"]:
            command += f" --revision {shlex.quote(unquote(found['revision']))}"
        return UnsuitablePlaceError(
            f"{self._uri}: the Hub takes whole commits and no single objects; make the store in a folder, as "
            "`penumbra store publish STORE FOLDER` does for others, then "
            f"`{command}`"
        )
