"""Which package reads which kind of address, and what to do where it is missing."""

from __future__ import annotations

from logitstore.common.command import nearest
from logitstore.errors import UnsupportedInputError

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "oci": "ocifs",
    "oss": "ossfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "webdav": "webdav4",
    "webhdfs": "requests",
}
"""Packages by scheme. The first two come with Penumbra, `huggingface_hub` with its [train] and [label]."""
SPEAKS_S3 = ("r2", "b2", "minio", "cos", "wasabi", "spaces", "do")
"""Schemes that people write for servers which speak S3."""


NEEDED_OPTIONS = {"webdav": '{"base_url": "https://HOST/FOLDER"}'}
"""Storage options, by scheme, without which no address of it says where the server is."""


def wrong_options(uri: str, scheme: str, error: TypeError) -> UnsupportedInputError:
    """Why the storage options do not open a file system."""
    needed = NEEDED_OPTIONS.get(scheme)
    remedy = (
        f"give --storage-options FILE with {needed} and write {scheme}://PATH"
        if needed
        else "the documentation of its package names its options"
    )
    reason = str(error).partition("__init__() ")[2] or str(error)
    return UnsupportedInputError(
        f"{uri}: the storage options do not fit {scheme}:// ({reason:.200}); {remedy}"
    )


def no_file_system(uri: str, scheme: str, error: Exception) -> UnsupportedInputError:
    """Why no file system opens this address, and what to install or write instead."""
    if isinstance(error, ImportError):
        package = PACKAGES.get(scheme)
        what = f"`pip install {package}`" if package else f"install what it needs ({error})"
        return UnsupportedInputError(
            f"{uri}: {scheme}:// needs a package that is not installed here: {what}, or copy the store to a "
            "folder and read that"
        )
    if scheme in SPEAKS_S3:
        return UnsupportedInputError(
            f"{uri}: no file system is called {scheme}://; where the server speaks S3, write "
            f"s3://{uri.partition('://')[2]} and give its address in AWS_ENDPOINT_URL"
        )
    return UnsupportedInputError(f"{uri}: no file system is called {scheme}://; {nearest(scheme, PACKAGES)}")
