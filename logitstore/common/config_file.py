"""Reading a configuration file and its `--set section.key=value` overrides, the same for every command.

Knows nothing of what the settings mean: each package checks the document with its own models.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from typing import Any

from logitstore.common.exit_status import ExitStatus
from logitstore.common.secrets import redact_text, redacted
from logitstore.common.settings_list import Setting, settings_of

_LISTS = ("tuple_type", "list_type")
_TABLES = ("dict_type", "mapping_type", "model_type", "model_attributes_type")
"""Kinds of pydantic's errors about what TOML calls lists and tables."""


class ConfigError(ValueError):
    """The configuration is wrong; the message says which value breaks which rule and what to do."""

    exit_status = ExitStatus.WRONG


def read_document(path: str, *, what: str) -> dict[str, Any]:
    """The tables of a TOML (or resolved .json) file. `what` names its kind in errors, like "job"."""
    try:
        # Editors of Windows begin a file with a mark.
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read()
        document = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"no {what} file at {path!r}: correct the path, which is of a TOML file") from None
    except IsADirectoryError:
        raise ConfigError(
            f"cannot read the {what} file {path!r}: it is a folder; give the TOML file, or the resolved "
            ".json, that lies in it"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read the {what} file {path!r}: {error.strerror}; check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not a valid {what} file: byte {error.start} is {error.object[error.start]:#04x}, which "
            "is not UTF-8; correct the file, or save it as UTF-8 text"
        ) from None
    except (ValueError, RecursionError) as error:  # of the syntax, and of numbers with thousands of digits
        raise ConfigError(f"{path}: not a valid {what} file: {error}; correct the syntax") from None
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: not a valid {what} file: it holds {document!r:.40}, not an object; correct it, or give "
            "a TOML file"
        )
    return document


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in the document; the value is TOML, null for none, or a string."""
    name, separator, text = override.partition("=")
    keys = name.strip().split(".")
    if not separator or len(keys) < 2 or not all(keys):
        raise ConfigError(
            f"--set {redact_text(name)!r} must look like section.key=value: a section's name, a dot, a "
            "setting's name, an equals sign and the value"
        )
    try:
        value = None if text.strip() == "null" else tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):
        value = text
    table = document
    for depth, key in enumerate(keys[:-1]):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"--set {name.strip()}: {'.'.join(keys[: depth + 1])} is a value, not a section"
            )
    table[keys[-1]] = value


def apply_options(document: dict[str, Any], options: Mapping[str, str | None]) -> None:
    """Set `section.key` to the value of a command's own option, word for word, where it was given."""
    for name, value in options.items():
        section, _, key = name.partition(".")
        if value is None:
            continue
        table = document.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{section} = {table!r} must be a section with settings; correct the file")
        table[key] = value


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"labels": {"top_k": 8}} -> {"labels.top_k": 8}; an empty table stays as a value."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def explain_problem(problem: Mapping[str, Any], model: Any, *, what: str) -> str:
    """One sentence for one of pydantic's errors on `model`: the setting, its value, the rule, the remedy."""
    name = ".".join(str(part) for part in problem["loc"]) or what
    if problem["type"] == "extra_forbidden":
        return f"{name} is not a setting; {_correct_name(name, problem['loc'], model)}"
    if problem["type"] == "missing":
        return _what_is_missing(name, problem["loc"], model)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in _TABLES:
        message = "it should be a table, such as { name = 1 }"
    if problem["type"] in _LISTS and isinstance(problem["input"], dict):
        return f"{name}: it should be a list; write [[{name}]] for each of its tables"
    if isinstance(problem["input"], dict):
        return f"{name}: {message}"
    key = str(problem["loc"][-1]) if problem["loc"] else ""
    in_options = any(str(part).endswith("storage_options") for part in problem["loc"])
    shown = redacted({key: problem["input"]}, in_options=in_options)[key]
    if problem["type"] in _LISTS:
        message = f"it should be a list; [{shown!r}] is one of it alone"
    return f"{name} = {shown!r}: {redact_text(message)}"


def _correct_name(name: str, loc: tuple[str | int, ...], model: Any) -> str:
    """The nearest right name of the same section or, failing that, of another; else all of the section."""
    names = {setting.name: setting for setting in settings_of(model)}
    section = _general(loc[:-1])
    siblings = [known for known in names if known.rpartition(".")[0] == section]
    last = {known.rpartition(".")[2]: known for known in reversed([*names])}
    near = difflib.get_close_matches(_general(loc), siblings, n=1, cutoff=0.75)
    near = near or [
        last[word] for word in difflib.get_close_matches(str(loc[-1]), list(last), n=1, cutoff=0.8)
    ]
    if near:
        return f"did you mean {near[0]}? Correct its name or remove it"
    words = ", ".join(known.rpartition(".")[2] for known in siblings)
    return (
        f"correct its name or remove it; {'[' + section + ']' if section else 'the top level'} has: {words}"
    )


def _what_is_missing(name: str, loc: tuple[str | int, ...], model: Any) -> str:
    found = {setting.name: setting for setting in settings_of(model)}
    setting = found.get(_general(loc))
    if setting is not None and setting.kind == "sections":
        or_set = f" or give --set {name}={_example(setting)}" if "." in name else ""
        return f"{name} is missing; add a table [[{name}]] to the file{or_set}"
    if setting is not None and setting.kind == "section":
        inside = [one for one in found.values() if one.name.startswith(f"{name}.")]
        needed = [one for one in inside if _is_needed(one, found)] or inside[:1]
        given = " ".join(f"--set {one.name}={_example(one)}" for one in needed)
        return f"{name} is missing; add a table [{name}] to the file or give {given}"
    if any(isinstance(part, int) for part in loc):  # in a list of sections, which --set cannot reach
        return f"{name} is missing; add it to the file"
    if setting is None:
        return f"{name} is missing; add it to the file or give --set {name}=VALUE"
    return f"{name} is missing ({setting.kind}); add it to the file or give --set {name}={_example(setting)}"


def _is_needed(setting: Setting, found: Mapping[str, Setting]) -> bool:
    """Whether a setting has no default and stands in no section that may be absent."""
    if "[]" in setting.name:
        return False
    words = setting.name.split(".")
    holders = [".".join(words[:depth]) for depth in range(1, len(words))]
    return setting.default == "required" and all(found[holder].default != "absent" for holder in holders)


def _example(setting: Setting) -> str:
    """The first of several allowed words, else a word in capitals."""
    first = setting.kind.partition(" or ")[0]
    return first.strip('"') if first.startswith('"') else setting.name.rpartition(".")[2].upper()


def _general(loc: tuple[str | int, ...]) -> str:
    """("groups", 0, "machine") -> "groups[].machine", as settings are listed."""
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
