"""What to tell a user whose installation lacks an optional part of the project."""

from __future__ import annotations

EXTRA_OF_PACKAGE = {
    "datasketch": "curate",
    "wordllama": "curate",
    "scipy": "curate",
    "openai": "api",
    "lm_eval": "parity",
}
"""Packages of single subcommands; all others come with the extra of their command."""
OF_NO_EXTRA = ("peft",)
"""Packages that single settings need and no extra brings."""
ALSO = {"label": "; '.[label-cpu]' without a GPU, '.[api]' for a teacher behind an API"}
"""What else brings the packages of an extra, and where that is enough."""
OURS = ("logitstore", "labeler", "trainer", "cluster", "benchmarks")


def explain_missing(error: ModuleNotFoundError, extra: str) -> str:
    """Which package a command lacks and the extra that brings it.

    Raises `error` again if the missing module is one of the project's own: that is a defect, not an
    installation without the extra.
    """
    name = (error.name or "").split(".")[0]
    if not name or name in OURS:
        raise error
    extra = EXTRA_OF_PACKAGE.get(name, extra)
    remedy = f"in the project's folder: pip install '.[{extra}]'{ALSO.get(extra, '')}"
    if name in OF_NO_EXTRA:
        remedy = f"pip install {name}"
    return f"this command needs the package {name!r}, which is not installed; {remedy}"
