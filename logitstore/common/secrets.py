"""The one rule for what is a secret, and how it is kept out of stores, logs, clusters and messages.

A value is a secret by its name (`password`, `hf_token`, `Authorization`), by its place (every HTTP header,
every `key` of storage options), by its form (a private key, an `AKIA...` id), or as part of a URI: the user
and password before the host, and the signature of its query. The rule looks into tables and lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

BLANKED = "***"
"""What stands in the place of a secret."""

_WORD_BORDER = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+")
_SECRET_WORD = re.compile(
    r"secrets?|passwords?|passwd|passphrase|pwd|credentials?|auth|authorization|bearer|cookies?|keyfile"
    r"|creds?|jwt|otp|oauth|hmac|apikey|accesskey|secretkey|authtoken|hftoken"
)
_SECRET_LAST_WORDS = frozenset(("pass", "sas", "sig", "signature"))
"""Words that make a name secret only at its end: `signature_version` is no secret."""
_SECRET_PAIRS = re.compile(
    r"(^|_)((api|access|account|auth|private|secret|shared|signing|master|encryption|storage|ssh)_keys?"
    r"|(auth|hf|api|access|session|security|refresh|bearer|id|sas|github|hub|oauth|login)_tokens?"
    r"|connection_string|connectionstring|conn_str)(_|$)"
)
_LAST_IN_OPTIONS = re.compile(r"(^|_)(key|keys|token|key_id|query)$")
"""`query` is a signature that is added to every address of a web server."""
_TABLES_OF_SECRETS = frozenset(("headers", "cookies"))
_TABLES_OF_OPTIONS = ("storage_options", "client_kwargs", "env_vars")
_SECRET_FORM = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END[A-Z ]*-----|\Z)|\b(AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\b(AccountKey|SharedAccessSignature|SharedAccessKey)=\S+|\bBearer \S{16,}",
    re.DOTALL,
)
_URI = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s'\"<>]+")
_QUERY_PART = re.compile(r"(?<=[?&;])([^=?&;#\s'\"<>]+)=([^&;#\s'\"<>]*)")
_LONG_VALUE = 32
"""A value of a query that is longer than this, without a space or slash, is taken for a signature."""


def names_secret(name: str, *, in_options: bool = False) -> bool:
    """Whether a setting of this name holds a secret. In storage options `key`, `token` and `query` do too."""
    words = [word.lower() for word in _WORD_BORDER.split(name) if word]
    plain = "_".join(words)
    if any(map(_SECRET_WORD.fullmatch, words)) or _SECRET_LAST_WORDS.intersection(words[-1:]):
        return True
    if _SECRET_PAIRS.search(plain):
        return True
    return in_options and bool(_LAST_IN_OPTIONS.search(plain))


def redacted(value: Any, *, in_options: bool = False) -> Any:
    """The same value with every secret in it replaced by BLANKED, tables and lists included."""
    if isinstance(value, Mapping):
        return {name: _redacted_item(str(name), item, in_options) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redacted(item, in_options=in_options) for item in value)
    if isinstance(value, bytes):
        return BLANKED
    return redact_text(value) if isinstance(value, str) else value


def secret_places(value: Any, where: str = "") -> Iterator[str]:
    """Dotted names of the secrets in `value`, a setting called `where`."""
    cleaned = redacted(value, in_options=_opens_options(where.rpartition(".")[2]))
    return _changed_places(value, cleaned, where)


def blanked_places(value: Any, where: str = "") -> Iterator[str]:
    """Dotted names of the settings in `value` that a secret was taken out of."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from blanked_places(item, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from blanked_places(item, f"{where}[{index}]")
    elif isinstance(value, str) and (value == BLANKED or f"://{BLANKED}@" in value or f"={BLANKED}" in value):
        yield where


def redact_text(text: str) -> str:
    """The text without the secrets of its URIs and what is a secret by its form."""
    text = _SECRET_FORM.sub(BLANKED, text)
    if "://" in text:
        text = _URI.sub(lambda found: redact_uri(found.group()), text)
    return redact_query(text)


def redact_about(uri: str, text: str) -> str:
    """A text about `uri`, such as a library's error, without the secrets of the URI, in whole or in parts."""
    user = re.split(r"[/?#]", uri.partition("://")[2], maxsplit=1)[0].rpartition("@")[0]
    signed = [found.group(2) for found in _QUERY_PART.finditer(uri) if _redacted_part(found) != found.group()]
    for secret in (user, *user.split(":"), *signed):
        if secret:
            text = text.replace(secret, BLANKED)
    return redact_text(text)


def redact_uri(uri: str) -> str:
    """The URI with user, password and signed parts of its query blanked; other parts stay as they are."""
    scheme, separator, rest = uri.partition("://")
    if separator:
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        user, at, host = authority.rpartition("@")
        if at and user:
            rest = f"{BLANKED}@{host}{rest[len(authority) :]}"
        uri = f"{scheme}://{rest}"
    return redact_query(uri)


def redact_query(text: str) -> str:
    """`name?sig=...` with the values of signed parts blanked; for what is left of a URI, such as its name."""
    return _QUERY_PART.sub(_redacted_part, text) if "?" in text else text


def _redacted_item(name: str, item: Any, in_options: bool) -> Any:
    if name.lower() in _TABLES_OF_SECRETS and isinstance(item, Mapping):
        return dict.fromkeys(item, BLANKED)
    if name.lower() in _TABLES_OF_SECRETS and isinstance(item, list | tuple) and item:
        return [BLANKED] * len(item)
    if names_secret(name, in_options=in_options) and _can_be_secret(item):
        return BLANKED
    return redacted(item, in_options=in_options or _opens_options(name))


def _can_be_secret(item: Any) -> bool:
    """Switches such as `hf_token = true` and things left empty are none."""
    return item is not None and not isinstance(item, bool) and item not in ("", b"", [], (), {})


def _opens_options(name: str) -> bool:
    return name in _TABLES_OF_OPTIONS


def _redacted_part(found: re.Match[str]) -> str:
    name, value = found.groups()
    is_long = len(value) > _LONG_VALUE and "/" not in value
    return (
        f"{name}={BLANKED}" if value and (is_long or names_secret(name, in_options=True)) else found.group()
    )


def _changed_places(value: Any, cleaned: Any, where: str) -> Iterator[str]:
    if isinstance(value, Mapping) and isinstance(cleaned, Mapping):
        for name, item in value.items():
            yield from _changed_places(item, cleaned[name], f"{where}.{name}" if where else str(name))
    elif isinstance(value, list | tuple) and isinstance(cleaned, list | tuple):
        for index, item in enumerate(value):
            yield from _changed_places(item, cleaned[index], f"{where}[{index}]")
    elif value is not cleaned and value != cleaned:
        yield where
