"""`verify --decontaminate EVAL...`: a store's prompts against evaluation sets."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from logitstore.cli import context
from logitstore.common.whole_file import check_place
from logitstore.contamination.evaluation_sets import DEFAULT_COSINE, DEFAULT_WORDS, Way
from logitstore.contamination.store_check import ContaminationCheck, check_contamination, ids_path
from logitstore.errors import UnsupportedInputError
from logitstore.inputs.listing import list_files
from logitstore.objects.addresses import is_local_uri
from logitstore.store import LogitStore
from logitstore.tools.findings import Findings

DEFAULT_WAYS = "ngram,cosine"
WAYS: dict[str, Way] = {"ngram": "ngram", "cosine": "cosine"}


@dataclass(frozen=True, slots=True)
class Compared:
    """What the comparison counted."""

    num_prompts_compared: int
    num_contaminated: int


def contamination_of(args: argparse.Namespace) -> ContaminationCheck | None:
    """What is asked for; None where it is not. Raises UnsupportedInputError for what cannot be."""
    if args.decontaminate is None:
        if args.found is not None:
            raise UnsupportedInputError(f"--found {args.found} belongs to --decontaminate EVAL; give both")
        alone = ("eval_field", "by", "words", "cosine", "tokenizer")
        context.refuse_unused(args, alone, "is for --decontaminate EVAL")
        return None
    if args.found is not None and args.found.suffix != ".jsonl":
        raise UnsupportedInputError(f"--found {args.found} must end in .jsonl, which is what is written")
    if args.found is not None:
        here = filter(is_local_uri, args.decontaminate)
        sets = [path.removeprefix("file://") for uri in here for path, _ in list_files(uri)]
        for path in (args.found, ids_path(args.found)):
            check_place(path, sets)
    names = [name.strip() for name in (args.by or DEFAULT_WAYS).split(",")]
    if unknown := [name for name in names if name not in WAYS]:
        raise UnsupportedInputError(f"--by {unknown[0]!r:.60} must be ngram, cosine, or both with a comma")
    return ContaminationCheck(
        args.decontaminate,
        args.eval_field,
        [WAYS[name] for name in dict.fromkeys(names)],
        DEFAULT_WORDS if args.words is None else args.words,
        DEFAULT_COSINE if args.cosine is None else args.cosine,
        context.storage_options(args),
        args.tokenizer,
    )


def check_for_contamination(
    args: argparse.Namespace, store: LogitStore, check: ContaminationCheck, findings: Findings
) -> Compared | None:
    """None where the store is not whole, so that its prompts cannot all be read."""
    if findings.errors:
        findings.note("not_compared", store.uri, "prompts were not compared, since the store has errors")
        return None
    with context.progress_bar(args) as progress:
        return Compared(*check_contamination(store, check, findings, args.found, progress))


def compared_text(args: argparse.Namespace, compared: Compared) -> str:
    """The counts as a person reads them."""
    counts = context.count_text(compared.num_prompts_compared, "prompt")
    text = f"{counts} compared with evaluation sets, {compared.num_contaminated:,} near one of their texts"
    if args.found is None or not compared.num_contaminated:
        return text
    ids = ids_path(args.found)
    return (
        f"{text}\nwritten: {args.found} and {ids}; leave them out of training by "
        f'data.stores = [{{uri = "{args.store}", without_ids = "{ids}"}}], or for good by '
        f"`penumbra store delete {args.store} --ids {ids} --reason TEXT`"
    )
