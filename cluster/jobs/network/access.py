"""The token by which Ray knows who may use a cluster, found where Ray itself looks for it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from cluster.errors import ClusterUnreachableError

TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"
HELP = (
    f"set {TOKEN_VARIABLE}, or {PATH_VARIABLE} to a file with it (default ~/.ray/auth_token); whoever runs "
    "the cluster has it, for example from `ray get-auth-token`"
)


def token_path() -> Path:
    return Path(os.environ.get(PATH_VARIABLE) or "~/.ray/auth_token").expanduser()


def find_token() -> str | None:
    """The token of the environment or of Ray's file; None where there is none.

    Raises ClusterUnreachableError, without it, for what no header could carry: a library would show it.
    """
    given = os.environ.get(TOKEN_VARIABLE, "").strip()
    if given:
        return _checked(given, TOKEN_VARIABLE)
    path = token_path()
    try:
        return _checked(path.read_text(encoding="utf-8").strip(), str(path)) or None
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise _no_token(str(path)) from None


def _checked(token: str, where: str) -> str:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise _no_token(where)
    return token


def _no_token(where: str) -> ClusterUnreachableError:
    return ClusterUnreachableError(
        f"what {where} holds is no token, which is one word of plain letters and digits; look for what was "
        "copied along with it, or saved in another encoding"
    )


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


def bearer_headers(token: str | None, others: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The header that shows the token to Ray beside `others`: one of those may be a proxy's own password."""
    if token is None:
        return {}
    is_taken = any(name.lower() == "authorization" for name in others)
    return {"X-Ray-Authorization" if is_taken else "Authorization": f"Bearer {token}"}
