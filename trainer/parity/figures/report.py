"""What a comparison leaves: its files, and what the command prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from logitstore.common.whole_file import write_whole
from trainer.parity.answering import Compared, Said, Work
from trainer.parity.contamination import NUM_WORDS
from trainer.parity.figures.gap import ENOUGH, Gap, Routing, gap_of, routing_of
from trainer.parity.figures.pictures import draw_routing
from trainer.parity.options import ParityOptions
from trainer.parity.records import Pair, Scored


def write_results(
    options: ParityOptions,
    work: Work,
    teacher: Said,
    student: Said,
    compared: Compared,
) -> dict[str, Any]:
    """items.jsonl, parity.json and, where there are curves, routing.png in the folder; the content of
    parity.json."""
    pairs = {
        name: _paired(scores.items, compared.student[name].items) for name, scores in compared.teacher.items()
    }
    gaps = {
        name: gap_of(found, options.seed, higher_is_better=compared.teacher[name].higher_is_better)
        for name, found in pairs.items()
        if found
    }
    curves = {
        name: curve
        for name, found in pairs.items()
        if found and (curve := routing_of(found, higher_is_better=gaps[name].higher_is_better))
    }
    lines = (
        json.dumps(one.to_dict(name), ensure_ascii=False) + "\n"
        for name, found in pairs.items()
        for one in found
    )
    write_whole(options.out / "items.jsonl", "".join(lines))
    (options.out / "routing.png").unlink(missing_ok=True)  # of an earlier comparison in the same folder
    if curves:
        draw_routing(options.out / "routing.png", curves)
    found = work.contamination
    record = {
        "student": options.student,
        "teacher": options.teacher,
        "seed": options.seed,
        "match": options.match,
        "judge": options.judge,
        "contamination": None
        if found is None
        else {"stores": list(found.stores), "num_prompts": found.num_prompts, "left_out": dict(found.met)},
        "emptied": list(work.emptied),
        "num_cut_prompts": {"teacher": teacher.num_cut_prompts, "student": student.num_cut_prompts},
        "num_cut_answers": {"teacher": teacher.num_cut_answers, "student": student.num_cut_answers},
        "num_empty_answers": {"teacher": teacher.num_empty_answers, "student": student.num_empty_answers},
        "num_changed_texts": dict(compared.num_changed_texts),
        "gaps": {name: asdict(gap) for name, gap in gaps.items()},
        "routing": {name: curve.to_dict() for name, curve in curves.items()},
    }
    write_whole(options.out / "parity.json", json.dumps(record, indent=1) + "\n")
    return record


def _paired(teacher: Sequence[Scored], student: Sequence[Scored]) -> list[Pair]:
    own = {one.item_id: one for one in student}
    return [
        Pair(one.item_id, one.question, one.reference, one, own[one.item_id])
        for one in teacher
        if one.item_id in own
    ]


def in_words(record: Mapping[str, Any], out: Path) -> str:
    """What the command prints."""
    checked = record["contamination"]
    lines = ["contamination was not checked (--unchecked)"]
    if checked is not None:
        lines = [
            f"contamination: {len(checked['left_out']):,} items share {NUM_WORDS} words in a row with one of "
            f"{checked['num_prompts']:,} training prompts and are left out"
        ]
    lines += [f"{name}: nothing is left to ask" for name in record["emptied"]]
    lines += [
        f"{role}: the beginning of {count:,} prompts was left out, since they are too long for it"
        for role, count in record["num_cut_prompts"].items()
        if count
    ]
    lines += [
        f"{role}: {count:,} answers were cut off before their end; --max-tokens allows longer ones, within "
        "the model's context"
        for role, count in record["num_cut_answers"].items()
        if count
    ]
    lines += [
        f"{role}: {count:,} answers are empty" for role, count in record["num_empty_answers"].items() if count
    ]
    lines += [
        f"{role}: its tokenizer drops or changes parts of {count:,} texts, whose bits per byte are too low "
        "by what it does not see"
        for role, count in record["num_changed_texts"].items()
        if count
    ]
    for name, fields in record["gaps"].items():
        gap = Gap(**fields)
        lines.append(
            f"{name}: {gap.num_items:,} items{'' if gap.higher_is_better else ', lower is better'}; teacher "
            f"{gap.teacher:.4f}, student {gap.student:.4f}, gap {gap.gap:+.4f} ({interval_in_words(gap)})"
        )
        if name in record["routing"]:
            lines.append("  " + routing_in_words(Routing(**record["routing"][name])))
    lines.append(f"each item: {out}/items.jsonl; all figures: {out}/parity.json")
    if record["routing"]:
        lines.append(f"routing: {out}/routing.png")
    return "\n".join(lines)


def interval_in_words(gap: Gap) -> str:
    """Items drawn from such that are all alike are alike too, which is no proof of anything."""
    if gap.low < gap.high:
        return f"95% interval {gap.low:+.4f} to {gap.high:+.4f}"
    alike = "its only item tells" if gap.num_items == 1 else "items that all show the same gap tell"
    return f"{alike} no interval"


def _as_said(routing: Routing, place: int) -> str | None:
    """The threshold in as few digits as still part the same requests, at least three."""
    upper = routing.threshold[place]
    if upper is None:
        return None
    lower = routing.threshold[place - 1] if place else None
    texts = (f"{upper:.{digits}g}" for digits in range(3, 17))
    fitting = (text for text in texts if float(text) <= upper and (lower is None or float(text) > lower))
    return next(fitting, repr(upper))


def routing_in_words(routing: Routing) -> str:
    if min(routing.quality) == max(routing.quality):
        return (
            f"routing: the mean score is {routing.quality[0]:.4f} whoever answers, so these items say "
            "nothing about who should"
        )
    if routing.is_student_enough():
        return "routing: the student alone is no worse than the teacher"
    place = routing.enough()
    threshold = _as_said(routing, place)
    below = "" if threshold is None else f", those with a confidence below {threshold},"
    return (
        f"routing: {routing.share[place]:.0%} of requests to the teacher{below} come within "
        f"{1 - ENOUGH:.0%} of its score (threshold chosen on these items)"
    )
