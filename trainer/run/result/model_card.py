"""The README.md saved with a student: what it was trained on, how, and how close it came."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import logitstore
from logitstore.manifest.fields import Manifest
from trainer.hf.evaluation.calibration import STEP
from trainer.run.reading.texts import NO_TEACHER

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


RELIABILITY_NAME = "reliability.png"


@dataclass(frozen=True, slots=True)
class CardFigures:
    """What a card says of how good the student is: the fields of these names of `RunMetrics`."""

    before: Mapping[str, float] | None
    after: Mapping[str, float]
    teacher: Mapping[str, float] | None
    calibration: Mapping[str, Any] | None
    """The student's."""
    num_steps: int


def model_card(
    manifests: Sequence[tuple[Mapping[str, Any], Manifest]], settings: Mapping[str, Any], figures: CardFigures
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
        f"Trained for {figures.num_steps} steps on stored teacher labels by Penumbra "
        f"{logitstore.__version__}. "
        "The teacher itself was not loaded.",
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
    lines += _figures(figures)
    lines += ["", "## Settings", "", "```json", json.dumps(settings, indent=2), "```", ""]
    return "\n".join(lines)


def teachers_column(
    teacher: Mapping[str, float] | None, after: Mapping[str, float]
) -> tuple[Mapping[str, float] | None, str | None]:
    """The teacher's figures that may stand beside the student's `after`, and a sentence on the others.

    Both are of the same rows; earlier versions counted the rows with known tokens alone."""
    if teacher is None:
        return None, None
    num_rows = after["num_rows"]
    num_known = teacher.get("num_known_labels", teacher["num_rows"])
    if teacher["num_rows"] != num_rows:
        return None, f"the teacher's figures are left out, as they are of {teacher['num_rows']:,} other rows"
    if num_known == num_rows:
        return teacher, None
    return teacher, (
        f"the teacher's cross-entropy is left out, as its log-probability is known of {num_known:,} of the "
        f"{num_rows:,} actual tokens"
    )


def _figures(figures: CardFigures) -> list[str]:
    after, before = figures.after, figures.before or {}
    teacher, left_out = teachers_column(figures.teacher, after)
    lines = [
        "",
        f"## On {after['num_sequences']} held-out sequences ({after['num_rows']} label rows)",
        "",
        "| | Before | After | Teacher |",
        "|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        if name in after:
            cells = [
                f"{known[name]:.4f}" if name in known else "-" for known in (before, after, teacher or {})
            ]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    if left_out is not None:
        lines += ["", f"{left_out[0].upper()}{left_out[1:]}."]
    if figures.calibration is not None:
        lines += [
            "",
            f"Calibration: {calibration_in_words(figures.calibration)}.",
            "",
            f"![How often the top token is right, by confidence]({RELIABILITY_NAME})",
        ]
    return lines


def calibration_in_words(student: Mapping[str, Any]) -> str:
    """One sentence on the temperature of a `Calibration`."""
    temperature = student["temperature"]
    if abs(temperature - 1) < 1e-6:
        return "no other temperature gives the actual tokens more probability"
    beyond = ", the last one tried" if student["is_at_the_end"] else ""
    error, before = student["calibration_error"], student["calibration_error_before"]
    against = "and" if error < before else "no less than"
    return (
        f"divided by {temperature:.2f}{beyond}, the student's logits give the actual tokens the least "
        f"cross-entropy ({student['cross_entropy']:.4f}; fitted on these rows, 1/T in steps of {STEP}); "
        f"their calibration error is then {error:.4f}, {against} {before:.4f} as they are"
    )
