"""What every section of a configuration is. The only module here that imports pydantic; no store needs it."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

HomePath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, or a name that may be one: `~/x` is a place in the user's home, as in a shell."""


class Section(BaseModel):
    """Frozen, without unknown settings, each setting described by the docstring below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
