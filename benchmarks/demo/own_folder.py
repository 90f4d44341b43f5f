"""The demo makes folders anew that an earlier version left; those of others are never replaced."""

from __future__ import annotations

from pathlib import Path

from logitstore.common.config_file import ConfigError

DEMO_FOLDER = ".demo"
"""What lies in a folder of this name is the demo's."""


def refuse_others(folder: Path, option: str) -> None:
    """Raises ConfigError for a place with something in it that lies in no folder of the demo's.

    A model put there takes the place of the whole folder.
    """
    place = folder.absolute()  # .demo may be a link
    is_empty = not place.exists() or (place.is_dir() and not any(place.iterdir()))
    if not is_empty and place.parent.name != DEMO_FOLDER:
        raise ConfigError(
            f"{option} {folder} holds something, and all of it would be replaced; give a new folder, or "
            "remove it"
        )
