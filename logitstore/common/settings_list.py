"""Every setting of a configuration with its kind, default and meaning, read from the pydantic models.

The commands `settings` print it, and the pages of the packages hold it, so that neither can differ from what
the models accept. Pydantic is used through the models alone and is not imported here.
"""

from __future__ import annotations

import argparse
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One setting: "labels.top_k", "int, at least 1", "64", and what it means."""

    name: str
    kind: str
    default: str
    meaning: str


def settings_of(model: Any, prefix: str = "") -> Iterator[Setting]:
    """All settings of a pydantic model, those of its sections with their section's name before theirs.

    A section comes before its settings, as a row of the kind "section", or "sections" where it is a list, and
    after the plain settings of the section that holds it, as TOML wants it.
    """
    plain_first = sorted(model.model_fields.items(), key=lambda item: bool(_section(item[1].annotation)[0]))
    for name, field in plain_first:
        full_name = f"{prefix}{name}"
        section, is_list = _section(field.annotation)
        meaning = " ".join((field.description or "").split())
        if section is None:
            yield Setting(full_name, _kind(field), _default(field), meaning)
            continue
        absent = "absent" if _default(field) in ("none", "[]") else "as below"
        kind = "sections" if is_list else "section"
        if is_list and field.is_required():
            absent = "required"
        yield Setting(full_name, kind, absent, meaning or _docstring(section))
        yield from settings_of(section, full_name + ("[]." if is_list else "."))


def add_form(parser: argparse.ArgumentParser) -> None:
    """The option of the commands `settings`."""
    parser.add_argument(
        "--form", choices=("text", "markdown"), default="text", help="for a terminal, or as a table"
    )


def listed(model: Any, form: str) -> str:
    return as_markdown(model) if form == "markdown" else as_text(model)


def as_text(model: Any) -> str:
    """For a terminal: sections as TOML writes them, each setting with its default, kind and meaning."""
    lines = []
    for setting in settings_of(model):
        if setting.kind in ("section", "sections"):
            header = f"[{setting.name}]" if setting.kind == "section" else f"[[{setting.name}]]"
            lines += ["", header + (" (absent unless written)" if setting.default == "absent" else "")]
            lines += [f"# {setting.meaning}"] if setting.meaning else []
            continue
        lines.append(f"{setting.name.rpartition('.')[2]} = {setting.default}    # {setting.kind}")
        lines += [f"    # {line}" for line in textwrap.wrap(setting.meaning, 100)]
    return "\n".join(lines).strip()


def as_markdown(model: Any) -> str:
    """For a page: a table of all settings."""
    rows = ["| setting | kind | default | meaning |", "|---|---|---|---|"]
    for setting in settings_of(model):
        cells = (f"`{setting.name}`", setting.kind, f"`{setting.default}`", setting.meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _section(annotation: Any) -> tuple[Any, bool]:
    """The model that an annotation holds, if any, and whether it holds a list of them."""
    if hasattr(annotation, "model_fields"):
        return annotation, False
    origin = typing.get_origin(annotation)
    for part in typing.get_args(annotation):
        section, is_list = _section(part)
        if section is not None:
            return section, is_list or origin in (list, tuple)
    return None, False


_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "length at least"}
"""Names of pydantic's rules, and how they are said."""


def _kind(field: Any) -> str:
    said = [
        f"{words} {getattr(rule, limit):g}"
        for rule in field.metadata
        for limit, words in _LIMITS.items()
        if isinstance(getattr(rule, limit, None), (int, float))
    ]
    return ", ".join([_words(field.annotation), *said])


def _words(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "none"
    if origin is typing.Literal:
        return " or ".join(_written(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in parts))
    if origin is typing.Annotated:
        return _words(parts[0])
    if origin in (list, tuple, set, frozenset):
        return "list of " + " and ".join(
            dict.fromkeys(_words(part) for part in parts if part is not Ellipsis)
        )
    if origin is not None:
        return "table"
    return {"str": "text", "bool": "true or false", "float": "number", "int": "integer"}.get(
        getattr(annotation, "__name__", str(annotation)), getattr(annotation, "__name__", str(annotation))
    )


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    return _written(field.get_default(call_default_factory=True))


def _written(value: Any) -> str:
    """A value as TOML has it, as far as it is a plain one."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(_written(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_written(item)}" for name, item in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _docstring(section: Any) -> str:
    return " ".join((section.__doc__ or "").split())
