"""An image as registries name it, for whoever pulls it. Pure."""

from __future__ import annotations

import re

from logitstore.common.config_file import ConfigError

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?(?:@[A-Za-z0-9+._-]+:[0-9a-fA-F]{{32,}})?"
)


def reference_of(image: str) -> str:
    """The image; machines would ask for another form of name again and again, and never start.

    Raises ConfigError for a file, or a name with a scheme, a space or a capital letter.
    """
    if not _REFERENCE.fullmatch(image):
        raise ConfigError(
            f"image {image!r} is no name of an image in a registry; write it as registry.example/team/"
            "penumbra:1, in small letters and without docker://"
        )
    return image
