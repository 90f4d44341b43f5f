"""The token by which Ray knows who may use a cluster, found where Ray itself looks for it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from cluster.errors import WrongAccessError
from logitstore.objects.system import lock_file

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

    Raises WrongAccessError, without it, for what no header could carry: a library would show it.
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


def _no_token(where: str) -> WrongAccessError:
    return WrongAccessError(
        f"what {where} holds is no token, which is one word of plain letters and digits; look for what was "
        "copied along with it, or saved in another encoding"
    )


def ensure_token() -> None:
    """Make a token where Ray looks for one, readable by this user only, unless there is one.

    A new file has its token from the first moment, as other commands may read or make it at the same time. A
    file without a token is filled.
    """
    if find_token() is not None:
        return
    path, token = token_path(), secrets.token_hex(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with open(made, "x", encoding="utf-8", opener=_open_for_me) as file:
        file.write(token)
    try:
        os.link(made, path)
    except OSError:  # there is a file already, or the file system has no hard links
        _fill(path, token)
    finally:
        made.unlink()


def _fill(path: Path, token: str) -> None:
    """Write the token into a file that has none; of several commands, the first one's stays."""
    with open(path, "a+", encoding="utf-8", opener=_open_for_me) as file:
        with suppress(OSError):  # a file system without locks, or without modes
            lock_file(file.fileno())
            path.chmod(0o600)
        file.seek(0)
        if not file.read().strip():
            file.truncate(0)
            file.write(token)


def _open_for_me(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def bearer_headers(token: str | None, others: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The header that shows the token to Ray beside `others`: one of those may be a proxy's own password."""
    if token is None:
        return {}
    is_taken = any(name.lower() == "authorization" for name in others)
    return {"X-Ray-Authorization" if is_taken else "Authorization": f"Bearer {token}"}
