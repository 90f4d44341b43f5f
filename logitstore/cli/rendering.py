"""Tables of `inspect` and `head` for a terminal."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from logitstore.cli.context import count_text, size_text
from logitstore.common.terminal import printable
from logitstore.retokenize.report import Report
from logitstore.tools.head import HeadRow
from logitstore.tools.inspection import Inspection

_BAR_WIDTH = 30
_SMALL_SHARE = 0.001
"""Columns below this share of the bytes are shown as one."""


def print_inspection(found: Inspection, console: Console) -> None:
    labels = found.labels
    console.print(
        Text(printable(found.uri), style="bold").append(f"  digest {found.digest}", style="not bold")
    )
    console.print(printable(f"teacher  {found.teacher}"), highlight=False, markup=False)
    held = {
        "unit": found.num_units,
        "shard": found.num_shards,
        "sequence": found.num_sequences,
        "label row": found.num_rows,
        "token": found.num_tokens,
        "reject": found.num_rejects,
    }
    sizes = {"shards": found.shard_bytes, **found.other_bytes}
    lines = (
        f"labels   K={labels['top_k']} of V={labels['vocab_size']}, temperatures {labels['temperatures']}, "
        f"{labels['value_kind']}, {labels['support']} entries, mode {labels['mode']}, "
        f"positions {labels['positions']}",
        "holds    " + ", ".join(count_text(count, name) for name, count in held.items()),
        "size     " + ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items()),
        f"per row  {found.bytes_per_row:.1f} B in shards, of which {found.needed_bytes_per_row:.1f} B are "
        f"entries and the T=1 normaliser; {found.store_bytes_per_row:.1f} B in all",
    )
    for line in lines:
        console.print(printable(line), highlight=False, markup=False)
    if found.tokenizer is not None:
        licence = f"; the model's licence: {found.tokenizer.licence}" if found.tokenizer.licence else ""
        kept = f"tokens   {len(found.tokenizer.files)} files of the tokenizer are kept here{licence}"
        console.print(printable(kept), highlight=False, markup=False, soft_wrap=True)
    if found.retokenized is not None:
        told = report_lines(found.kept)[0] if found.kept else _without_report(found)
        console.print(printable(f"mapped   {told}"), highlight=False, markup=False, soft_wrap=True)
    if found.num_inspected_rows == found.num_silent_rows:
        console.print(
            "texts alone, no label rows" if labels["support"] == "none" else "no label rows to look at"
        )
        return
    console.print(_columns(found))
    console.print(_entries(found))
    console.print(_distribution(found))
    console.print(_mass(found))
    if labels["support"] == "top":
        console.print(_advice(found), highlight=False)


def _without_report(found: Inspection) -> str:
    """The store that `retokenize` makes keeps a report; what is made of that store has none."""
    if found.is_being_mapped:
        return "not finished: repeat `penumbra store retokenize`"
    return "from another tokenizer than the teacher's; how much was kept, the store says that was retokenized"


def _columns(found: Inspection) -> Table:
    table = Table("column", "B per label row", "share", "", title="Size by column", box=box.SIMPLE)
    total = sum(found.column_bytes.values())
    sizes = {name: size for name, size in found.column_bytes.items() if size >= _SMALL_SHARE * total}
    small = total - sum(sizes.values())
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    others = len(found.column_bytes) - len(sizes)
    for name, num_bytes in [*ordered, *([(f"{others} others", small)] if others else [])]:
        share = num_bytes / total
        bar = "█" * round(share * _BAR_WIDTH)
        table.add_row(name, f"{num_bytes / found.num_inspected_rows:.2f}", f"{share:.1%}", bar)
    return table


def _entries(found: Inspection) -> Table:
    table = Table("entries", "rows", "share", "", title="Stored entries per row", box=box.SIMPLE)
    most_common = sorted(found.entries_histogram.items(), key=lambda item: -item[1])[:12]
    for count, rows in sorted(most_common):
        share = rows / (found.num_inspected_rows - found.num_silent_rows)
        table.add_row(str(count), f"{rows:,}", f"{share:.1%}", "█" * round(share * _BAR_WIDTH))
    if len(found.entries_histogram) > len(most_common):
        rest = len(found.entries_histogram) - len(most_common)
        table.add_row(f"{rest} others", "", "", "")
    return table


def _distribution(found: Inspection) -> Table:
    names = list(found.entropy.quantiles)
    table = Table("over label rows", "mean", *names, title="Distribution", box=box.SIMPLE)
    rows = {"entropy, nats": found.entropy}
    rows |= {f"tail mass at T={name}": spread for name, spread in found.tail_mass.items()}
    for name, spread in rows.items():
        table.add_row(name, f"{spread.mean:.4f}", *(f"{spread.quantiles[key]:.4f}" for key in names))
    first = "no rank is known"
    if not math.isnan(found.label_top1):
        first = f"{found.label_top1:.1%} of those with a known rank are the teacher's first choice"
    table.caption = f"actual tokens: mean negative log-likelihood {found.label_nll:.4f} nats, {first}"
    if found.num_silent_rows:
        table.caption += (
            f"; without {count_text(found.num_silent_rows, 'row')} between others that say nothing"
        )
    return table


def _mass(found: Inspection) -> Table:
    names = list(found.mass_by_k[0].mass)
    headings = [f"mass at T={name}" for name in names]
    table = Table(
        "K", *headings, f"rows ≥ {found.target_mass:g} at T=1", title="Mass kept by K", box=box.SIMPLE
    )
    for item in found.mass_by_k:
        style = "bold" if item.top_k == found.recommended_k else ""
        cells = [f"{item.mass[name]:.4f}" for name in names]
        table.add_row(str(item.top_k), *cells, f"{item.rows_above_target:.1%}", style=style)
    return table


def _advice(found: Inspection) -> str:
    if found.recommended_k is None:
        return (
            f"even K={found.mass_by_k[-1].top_k} keeps less than {found.target_mass:g} of the mass at T=1; "
            "the exact tail still makes the loss right, a larger K would make it sharper"
        )
    return f"K={found.recommended_k} keeps {found.target_mass:g} of the mass at T=1 on average"


def print_head(rows: list[HeadRow], temperature: float, console: Console) -> None:
    title = f"label rows, probabilities of the teacher's choices at T={temperature:g}"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1), collapse_padding=True)
    for name in ("record", "pos", "token", "p", "rank"):
        table.add_column(name, no_wrap=True)
    for place in range(max((len(row.alternatives) for row in rows), default=0)):
        table.add_column(f"#{place + 1}")  # these give way where the terminal is narrow
    table.add_column("tail", no_wrap=True)
    previous = None
    for row in rows:
        key = (row.record_id, row.sample_index)
        name = f"{row.record_id[:24]}" + f"#{row.sample_index}" * bool(row.sample_index)
        choices = [Text(f"{_visible(text)} {probability:.3f}") for _, text, probability in row.alternatives]
        table.add_row(
            Text("" if key == previous else name),
            str(row.position),
            Text(_visible(row.token), style="" if row.counts_in_loss else "dim"),
            "" if row.probability is None else f"{row.probability:.3f}",
            "" if row.rank is None else str(row.rank),
            *choices,
            *[""] * (len(table.columns) - 6 - len(choices)),
            f"{row.tail_mass:.3f}",
        )
        previous = key
    console.print(table)


def report_lines(report: Report) -> list[str]:
    """What was kept, in sentences; the first is the summary."""
    lines = [
        f"{report.num_kept:,} of {report.num_rows:,} label rows kept "
        f"({_share(report.num_kept, report.num_rows)}), with "
        f"{_share(report.mass_kept, report.mass_stored)} of the mass that they store; the actual token of "
        f"{_share(report.num_known_labels, report.num_kept)} of them has a known probability"
    ]
    if report.unequal_tokens:
        named = ", ".join(f"{text!r} ({count:,})" for text, count in sorted(report.unequal_tokens.items()))
        lines.append(
            f"special tokens that the student lacks stand there as text: {named}; name what means the same "
            "with --token"
        )
    if report.num_rejects:
        lines.append(
            f"{count_text(report.num_rejects, 'sequence')} left out, since the student's tokenizer "
            "cannot write them; the reasons are among the store's rejects"
        )
    return lines


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.2%}" if whole else "none"


def _visible(text: str) -> str:
    """Token text with its blanks and control characters showing, so that nothing moves the cursor."""
    shown = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(
        character if character.isprintable() else f"\\x{ord(character):02x}" for character in shown
    )
