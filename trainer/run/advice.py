"""What people who distill agree on, said once before a run: advice, never a refusal."""

from __future__ import annotations

from collections.abc import Sequence

from logitstore.tokenizer_objects import stored_tokenizer
from trainer.data.outlines import CUT
from trainer.data.sources import Source
from trainer.run.config import TrainConfig
from trainer.run.teacher_size import teacher_parameters

FEW_SEQUENCES = 500
"""Guides to distillation name about this many examples as the least that carries over to other prompts."""

MANY_CUT = 0.2
"""Share of answers cut off by their limit above which it is said."""


def advice_on(sources: Sequence[Source], student_parameters: int | None = None) -> tuple[str, ...]:
    """One sentence each on what these stores are too few, too small or too bound for; reads no labels.

    Without `student_parameters` nothing is said of the teacher's size.
    """
    advice: list[str] = []
    num_sequences = sum(sum(source.lengths) for source in sources)
    if num_sequences < FEW_SEQUENCES:
        advice.append(
            f"{num_sequences:,} sequences are few: below about {FEW_SEQUENCES} a student learns them by "
            "heart; label more prompts (`penumbra label expand` makes some), or watch held-out records"
        )
    num_cut = sum(int(outline.is_cut_S.sum()) for source in sources for outline in source.outlines())
    if num_cut > MANY_CUT * num_sequences:
        advice.append(
            f"{num_cut:,} of {num_sequences:,} answers ({num_cut / num_sequences:.0%}) were cut off at the "
            "labeler's limit of tokens, so a student sees few that end: label with a higher "
            f'sampling.max_tokens, or leave them out (data.stores: where = "finish_reason != {CUT}")'
        )
    if student_parameters is not None:
        advice += _advice_on_size(sources, student_parameters)
    for licence in sorted({licence for source in sources if (licence := licence_of(source))}):
        advice.append(
            f"the teacher's licence is {licence}: see that it allows to train other models on its output"
        )
    return tuple(advice)


def notes_on_run(config: TrainConfig) -> tuple[str, ...]:
    """What a run will not do that somebody may count on."""
    notes = []
    if config.training.save_steps is None:
        notes.append(
            "no checkpoints are saved but at SIGTERM, so a run that is killed or interrupted begins anew; "
            "--set training.save_steps=100 saves one every 100 steps"
        )
    student, is_sharded_by_deepspeed = config.student, config.training.deepspeed is not None
    if student.dtype == "bfloat16" and student.lora is None and not is_sharded_by_deepspeed:
        notes.append(
            "the student's weights are trained in bfloat16, whose numbers lie up to 1/128 of their size "
            "apart: changes below half of that are lost; to keep them, --set student.dtype=float32 with "
            "--set training.precision=bf16, which computes in bfloat16 all the same"
        )
    return tuple(notes)


def notes_on_temperatures(config: TrainConfig, sources: Sequence[Source]) -> tuple[str, ...]:
    """Which temperatures lie between those of a store, so that the tail's mass is interpolated."""
    notes = []
    for source, store in zip(sources, config.data.stores, strict=False):  # texts follow, without a teacher
        alpha = config.loss.alpha if store.alpha is None else store.alpha
        temperature = config.loss.temperature if store.temperature is None else store.temperature
        stored = source.manifest.labels.temperatures
        is_between = stored[0] < temperature < stored[-1] and temperature not in stored
        if alpha and is_between and config.loss.tail in ("bucket", "uniform"):
            notes.append(
                f"{source.uri} stores T = {', '.join(f'{one:g}' for one in stored)}, and for T = "
                f"{temperature:g} the mass outside the {source.manifest.labels.top_k} stored ids is "
                "interpolated: the table in logitstore/FORMAT.md says how well, worst between 1 and 2 at "
                "small K; label with it among labels.temperatures to have it exactly"
            )
    return tuple(notes)


def notes_on_held_out(held_out: Sequence[Source]) -> tuple[str, ...]:
    """What the figures of an evaluation mean on stores that do not hold the teacher's likeliest tokens."""
    meant = {
        "none": "{} holds texts alone, so that on its sequences KL is the cross-entropy of the text and "
        "agreement the accuracy: nothing of the teacher's is known",
        "given": "{} has its rows at given ids, so that agreement is with the likeliest of those, and the "
        "teacher's accuracy and calibration are not known",
        "mapped": "{} was mapped to another tokenizer, in which the teacher's likeliest token may have no "
        "equal: agreement is with the likeliest that has one, and the teacher's accuracy and calibration are "
        "not known",
    }
    kinds = [
        (source.uri, "mapped" if source.manifest.retokenized else source.manifest.labels.support)
        for source in held_out
    ]
    return tuple(meant[kind].format(uri) for uri, kind in kinds if kind in meant)


def _advice_on_size(sources: Sequence[Source], student_parameters: int) -> list[str]:
    found = {
        (source.manifest.teacher.model, size)
        for source in sources
        if (size := teacher_parameters(source)) is not None and size <= student_parameters
    }
    return [
        f"the teacher {model} has {size:,} parameters and the student {student_parameters:,}: a teacher that "
        "is no larger seldom teaches more than its text does; label with a larger one, or train a smaller "
        "student"
        for model, size in sorted(found)
    ]


def licence_of(source: Source) -> str:
    """What the teacher's page said of its licence when it labeled; "" where the store does not say."""
    found = stored_tokenizer(source.objects)
    return "" if found is None else found.licence
