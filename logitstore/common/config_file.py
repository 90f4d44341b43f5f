"""Reading a configuration file and its `--set section.key=value` overrides, the same for every command.

Knows nothing of what the settings mean: each package checks the document with its own models.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from logitstore.common.secrets import redact_text, redacted


class ConfigError(ValueError):
    """The configuration is wrong; the message says which value breaks which rule and what to do."""


def read_document(path: str, *, what: str) -> dict[str, Any]:
    """The tables of a TOML (or resolved .json) file. `what` names its kind in errors, like "job"."""
    try:
        with open(path, "rb") as file:
            return json.load(file) if path.endswith(".json") else tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(
            f"no {what} file at {path!r}: give the path of a TOML file, or use --set alone"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read the {what} file {path!r}: {error.strerror}; check the path") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a valid {what} file: {error}; correct the syntax") from None


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in the document; the value is TOML, or a string if it is not."""
    name, separator, text = override.partition("=")
    keys = name.strip().split(".")
    if not separator or len(keys) < 2 or not all(keys):
        raise ConfigError(
            f"--set {redact_text(name)!r} must look like section.key=value, for example "
            "output.folder=build/run"
        )
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = document
    for depth, key in enumerate(keys[:-1]):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"--set {name.strip()}: {'.'.join(keys[: depth + 1])} is a value, not a section"
            )
    table[keys[-1]] = value


def explain_problem(problem: Mapping[str, Any], *, what: str) -> str:
    """One sentence for one of pydantic's errors: the setting, its value, the rule."""
    name = ".".join(str(part) for part in problem["loc"]) or what
    if problem["type"] == "extra_forbidden":
        return f"{name} is not a setting; remove it or correct its name (`--dry-run` prints all settings)"
    if problem["type"] == "missing":
        return f"{name} is missing; add it to the file or give --set {name}=..."
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict):
        return f"{name}: {message}"
    key = str(problem["loc"][-1]) if problem["loc"] else ""
    in_options = any(str(part).endswith("storage_options") for part in problem["loc"])
    shown = redacted({key: problem["input"]}, in_options=in_options)[key]
    return f"{name} = {shown!r}: {redact_text(message)}"
