"""The README.md saved with a student: what it was trained on, how, and how close it came."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import logitstore
from logitstore.manifest.fields import Manifest
from trainer.hf.evaluate import Evaluation
from trainer.run.texts import NO_TEACHER

TITLES = {
    "kl": "KL(teacher, student), nats",
    "cross_entropy": "cross-entropy, nats",
    "top1_agreement": "top token as the teacher's",
    "accuracy": "top token as in the text",
    "calibration_error": "expected calibration error",
    "teacher_mass": "teacher's mass on stored entries",
    "student_mass": "student's mass on them",
    "mass_beyond_tokenizer": "student's mass on unused ids",
    "acceptance_at_least": "accepted as a draft, at least",
    "acceptance_at_most": "accepted as a draft, at most",
}
"""What the figures of an Evaluation are called."""


def model_card(
    manifests: Sequence[tuple[Mapping[str, Any], Manifest]],
    settings: Mapping[str, Any],
    before: Evaluation | None,
    after: Evaluation,
    num_steps: int,
) -> str:
    """Markdown with the front matter of the Hugging Face hub. `manifests` pairs {uri, digest} with heads."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [distillation]",
        "---",
    ]
    lines += [
        "",
        "# Student of " + ", ".join(sorted({head.teacher.model for _, head in manifests} - {NO_TEACHER})),
        "",
    ]
    lines += [
        f"Trained for {num_steps} steps on stored teacher labels by Penumbra {logitstore.__version__}. The "
        "teacher itself was not loaded.",
        "",
        "| Teacher | Revision | Precision | Top K | Temperatures | Store digest |",
        "|---|---|---|---|---|---|",
    ]
    for place, head in manifests:
        teacher, labels = head.teacher, head.labels
        precision = teacher.dtype + (f", {teacher.quantization}" if teacher.quantization else "")
        stored = ", ".join(f"{temperature:g}" for temperature in labels.temperatures)
        lines.append(
            f"| {teacher.model} | {teacher.revision or '-'} | {precision} | {labels.top_k} | {stored} "
            f"| `{place['digest']}` |"
        )
    lines += ["", f"## On {after.num_sequences} held-out sequences ({after.num_rows} label rows)", ""]
    lines += ["| | Before | After |", "|---|---|---|"]
    figures = after.to_dict()
    earlier = {} if before is None else before.to_dict()
    for name, title in TITLES.items():
        if name in figures:
            first = f"{earlier[name]:.4f}" if name in earlier else "-"
            lines.append(f"| {title} | {first} | {figures[name]:.4f} |")
    lines += ["", "## Settings", "", "```json", json.dumps(settings, indent=2), "```", ""]
    return "\n".join(lines)
