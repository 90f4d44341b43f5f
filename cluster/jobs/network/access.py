"""The token by which Ray knows who may use a cluster, found where Ray itself looks for it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"
HELP = (
    f"set {TOKEN_VARIABLE}, or {PATH_VARIABLE} to a file with it (default ~/.ray/auth_token); whoever runs "
    "the cluster has it, for example from `ray get-auth-token`"
)


def token_path() -> Path:
    return Path(os.environ.get(PATH_VARIABLE) or "~/.ray/auth_token").expanduser()


def find_token() -> str | None:
    """The token of the environment or of Ray's file; None where there is none."""
    given = os.environ.get(TOKEN_VARIABLE)
    if given:
        return given.strip()
    try:
        return token_path().read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def ensure_token() -> None:
    """Make a token where Ray looks for one, readable by this user only, unless there is one.

    The file has its token from the first moment, as other commands may read or make it at the same time. A
    file without a token is replaced.
    """
    if find_token() is not None:
        return
    path = token_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with open(made, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(secrets.token_hex(32))
    try:
        os.link(made, path)
    except FileExistsError:
        if find_token() is None:
            os.replace(made, path)
    finally:
        made.unlink(missing_ok=True)


def bearer_header(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}
