"""Objects of S3 and of what speaks its protocol, with conditional requests and deletion in batches."""

from __future__ import annotations

import functools
from typing import Any

from fsspec.asyn import sync

from logitstore.errors import UnsuitablePlaceError
from logitstore.objects.opening import MAX_TAGGED_BYTES
from logitstore.objects.remote import RemoteBackend, error_code

S3FS_ATTEMPTS = 2
"""s3fs repeats a whole call, botocore each request inside it: the two multiply, so both are bounded."""
BOTOCORE_CONFIG = {
    "retries": {"max_attempts": 4, "mode": "standard"},
    "connect_timeout": 10,
    "read_timeout": 60,
}
NO_BATCH_CODES = ("MissingContentMD5", "NotImplemented", "MethodNotAllowed", "501", "405")
"""How servers say that they do not take DeleteObjects as it is sent."""
CONFLICT_ATTEMPTS = 5
"""Tries of a conditional PUT that S3 answers with 409: another one on the same key is in flight."""


class S3Backend(RemoteBackend):
    """S3 and what speaks its protocol, with If-None-Match and If-Match on single PUTs."""

    _deletes_batches = True

    def require_conditions(self) -> None:
        """S3 has them; whether this server keeps them, a request shows."""

    def get_with_etag(self, name: str) -> tuple[bytes, str]:
        bucket, key, _ = self._fs.split_path(self._path(name))

        async def fetch() -> tuple[bytes, str]:
            reply = await self._fs._call_s3("get_object", Bucket=bucket, Key=key)  # noqa: SLF001
            data = bytearray()
            async with reply["Body"] as body:
                while len(data) <= MAX_TAGGED_BYTES and (part := await body.read(MAX_TAGGED_BYTES + 1)):
                    data += part
            return bytes(data[: MAX_TAGGED_BYTES + 1]), reply["ETag"]

        with self._translated(name):
            found: Any = sync(self._fs.loop, fetch)
            return found

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return self._put_conditionally(name, data, "IfNoneMatch", "*")

    def put_if_match(self, name: str, data: bytes, etag: str) -> bool:
        return self._put_conditionally(name, data, "IfMatch", etag)

    def delete(self, names: list[str]) -> None:
        if not names:
            return
        with self._translated(names[0], writing=True):
            bucket, _, _ = self._fs.split_path(self._root)
            sync(self._fs.loop, self._delete_all, bucket, [self._path(name) for name in names])

    async def _delete_all(self, bucket: str, paths: list[str]) -> None:
        """DeleteObjects in batches of S3's limit. Unlike `rm`, absent keys are no error."""
        for first in range(0, len(paths), 1000):
            keys = [path.removeprefix(f"{bucket}/") for path in paths[first : first + 1000]]
            await self._delete_batch(bucket, keys)

    async def _delete_batch(self, bucket: str, keys: list[str]) -> None:
        """One by one for servers that want a Content-MD5, which is sent no more, or know no DeleteObjects."""
        call = self._fs._call_s3  # noqa: SLF001
        if self._deletes_batches:
            objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            try:
                reply = await call("delete_objects", Bucket=bucket, Delete=objects)
            except Exception as error:
                if error_code(error) not in NO_BATCH_CODES:
                    raise
                self._deletes_batches = False
            else:
                if errors := reply.get("Errors"):
                    key, code = errors[0].get("Key"), errors[0].get("Code")
                    raise OSError(f"{len(errors)} objects were not deleted, such as {key}: {code}")
                return
        for key in keys:
            await call("delete_object", Bucket=bucket, Key=key)

    def _connect(self) -> Any:
        options = {"use_listings_cache": False, "skip_instance_cache": True, **self._storage_options}
        options["config_kwargs"] = {**BOTOCORE_CONFIG, **(options.get("config_kwargs") or {})}
        file_system = self._file_system_of(options)
        file_system.retries = S3FS_ATTEMPTS
        if file_system.session is None:
            file_system.session = _session(file_system.kwargs)
        return file_system

    def _put_conditionally(self, name: str, data: bytes, condition: str, value: str) -> bool:
        bucket, key, _ = self._fs.split_path(self._path(name))
        attempt = 0
        while True:
            attempt += 1
            with self._translated(name, writing=True):
                try:
                    self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **{condition: value})
                except Exception as error:
                    code = error_code(error)
                    if code in ("PreconditionFailed", "412"):
                        return False
                    if condition == "IfMatch" and code in ("NoSuchKey", "404"):
                        return False
                    if code in ("NotImplemented", "501"):
                        raise UnsuitablePlaceError(
                            f"{self._uri}: the server does not know conditional PUTs ({condition}: {code}), "
                            "by which one of several writers wins; write to a server that keeps them, as "
                            "AWS S3 does, or to a local directory"
                        ) from None
                    if code != "ConditionalRequestConflict" or attempt == CONFLICT_ATTEMPTS:
                        raise
                else:
                    return True


def _session(settings: dict[str, Any]) -> Any:
    """A session of botocore, as s3fs would make it, that does not read what another one has read."""
    from aiobotocore.session import AioSession  # a store on disk needs none of it

    session = AioSession(**settings)
    session.lazy_register_component(
        "data_loader", lambda: _descriptions(session.get_config_variable("data_path"))
    )
    return session


@functools.cache
def _descriptions(data_path: str | None) -> Any:
    """botocore's descriptions of services. To read them takes a fifth of a second, for each connection."""
    from botocore.loaders import create_loader

    return create_loader(data_path)
