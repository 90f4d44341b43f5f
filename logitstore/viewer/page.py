"""The page itself: one HTML text with its style and script inside and no address outside.

The policy lets run exactly the one script and the one style that stand in the page, by their hashes, so
that nothing which comes from a label or a prompt can be interpreted. Values reach the page as a JSON
block, which no browser executes, and are shown as text nodes only.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

SCRIPTS = (
    "temperature.js",
    "source.js",
    "progress.js",
    "sequences.js",
    "heatmap.js",
    "lab.js",
    "detail.js",
    "app.js",
)
"""Joined in this order into one script."""


@dataclass(frozen=True, slots=True)
class Page:
    html: str
    policy: str
    """Content-Security-Policy, also in the page itself except for what only a header may say."""


def build_page(data: Mapping[str, object], *, title: str, connect: bool) -> Page:
    """The page with `data` for its start; `connect` lets it ask its own server for more."""
    style, script = _asset("viewer.css"), _script()
    reach = "'self'" if connect else "'none'"
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_source_hash(script)}'",
            f"style-src '{_source_hash(style)}'",
            f"connect-src {reach}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    parts = {
        "POLICY": _escape(policy),
        "TITLE": _escape(title),
        "STYLE": style,
        "DATA": script_json(data),
        "SCRIPT": script,
    }
    html = _asset("index.html")
    head, *rest = html.split("{{")
    pieces = [head]
    for part in rest:  # a single pass, so that values are never searched for placeholders
        name, _, text = part.partition("}}")
        pieces += [parts[name], text]
    return Page("".join(pieces), policy)


def script_json(value: object) -> str:
    """JSON that may stand inside a script element: "<", ">" and "&" are escaped, so no tag can end it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _asset(name: str) -> str:
    return (files("logitstore.viewer") / "assets" / name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    return '"use strict";\n(() => {\n' + "\n".join(map(_asset, SCRIPTS)) + "\n})();\n"


def _source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _escape(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text
