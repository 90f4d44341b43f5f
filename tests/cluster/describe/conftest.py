"""What all descriptions are rendered without."""

from __future__ import annotations

import pytest

from logitstore.common.config_file import ConfigError


@pytest.fixture(autouse=True)
def _without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks Hugging Face how large a teacher is."""

    def refuse(name: str, *, revision: str | None, setting: str) -> None:
        raise ConfigError(f"{setting} = {name!r} is not asked for here")

    monkeypatch.setattr("labeler.planning.fit.gpu_memory.check_model_name", refuse)
