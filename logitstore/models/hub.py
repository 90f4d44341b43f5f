"""Whether a model's name can be had at all, asked once and before libraries try again and again.

Imports huggingface_hub where it is asked for, so that reading a store needs none of it.
"""

from __future__ import annotations

import os

from logitstore.common.config_file import ConfigError
from logitstore.common.terminal import first_line

ANSWER_SEC = 10.0
"""How long the hub may take to answer."""


def check_model_name(name: str, *, revision: str | None, setting: str) -> None:
    """Nothing where `name` is a folder, is in the cache of Hugging Face, or is known to its hub.

    Raises ConfigError, which names `setting`, where it is none of these, within `ANSWER_SEC`, since the hub
    is asked once, of a model with terms to accept twice. Libraries try a name again for half a minute for
    each of a model's files.
    """
    if os.path.isdir(name):
        return
    if name.startswith(("/", "./", "../", "~", ".")) or name.count("/") > 1 or os.path.exists(name):
        raise ConfigError(
            f"{setting} = {name!r} is no folder here; correct the path, or give a Hugging Face id such as "
            "Qwen/Qwen3-0.6B"
        )
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
        if HfApi().model_info(name, revision=revision, timeout=ANSWER_SEC).gated:
            HfApi().auth_check(name)  # of its files: what the page says of it is open to all
    except (HFValidationError, HfHubHTTPError, OfflineModeIsEnabled, request_error()) as error:
        if problem := _problem(error, name, revision, setting):
            raise ConfigError(f"{setting} = {name!r} {problem}") from None


def request_error() -> type[Exception]:
    """What a request to the hub raises that gets no answer: an error of httpx2, or of httpx, which
    huggingface_hub used before its version 2. Its own errors of answers are of this type too."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(one for one in HfHubHTTPError.__bases__ if one.__name__ == "HTTPError")


def _problem(error: Exception, name: str, revision: str | None, setting: str) -> str:
    """Why the model cannot be had, after its name; "" for trouble of the hub's own, which passes: libraries
    try again."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, HFValidationError):
        section = setting.removesuffix(".model")
        has_more = section != setting and any(sign in name for sign in "@:")
        hint = f" A revision is given as {section}.revision" if has_more else ""
        return f"is no folder here and no name of a model: {error}{hint}"
    if isinstance(error, GatedRepoError):
        return (
            "is a model whose terms must be accepted before its files can be fetched: do so on its page, "
            f"{ENDPOINT}/{name}, and set HF_TOKEN to a token of that account"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {revision!r} on the Hugging Face hub; correct it"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "is no folder here, and the Hugging Face hub has no such model that you may see "
            f"({first_line(error)}); correct the name, or set HF_TOKEN if access is limited"
        )
    if isinstance(error, HfHubHTTPError):
        return ""
    return (
        "is no folder here and not in the cache of Hugging Face, and its hub cannot be reached "
        f"({first_line(error)}); correct the name or path, or the network"
    )
