"""`store retokenize`, and what it says of itself."""

from __future__ import annotations

import argparse
import dataclasses

from logitstore.cli import context
from logitstore.cli.rendering import report_lines
from logitstore.decoding.tokenizer_choice import tokenizer_folder
from logitstore.errors import UnsupportedInputError
from logitstore.retokenize.store_mapping import retokenize_store
from logitstore.retokenize.tokenization import load_tokenization


def retokenize(args: argparse.Namespace) -> int:
    pairs = _pairs(args.tokens)
    source = context.open_store(args)
    path = args.teacher_tokenizer or tokenizer_folder(source)
    if path is None:
        raise UnsupportedInputError(
            f"no tokenizer of {source.manifest.teacher.model!r} was found on this machine; name the folder "
            "of the tokenizer that the store was labeled with: --teacher-tokenizer PATH"
        )
    teacher = load_tokenization(path)
    student = load_tokenization(args.tokenizer, vocab_size=args.vocab_size)
    with context.progress_bar(args) as progress:
        target, report = retokenize_store(
            source,
            args.out,
            teacher=teacher,
            student=student,
            pairs=pairs,
            merge_spans=args.merged_spans,
            storage_options=context.storage_options(args),
            progress=progress,
        )
    if args.json:
        context.print_json(dataclasses.asdict(report))
    for line in report_lines(report):
        context.say(args, f"{target.uri}: {line}")
    if report.num_rows and not report.num_kept:
        example = next((f"; for example {one.reason}" for one in target.rejects()), "")
        context.warn("retokenize", f"no label row is left for this student{example}")
        return context.PROBLEMS
    return context.OK


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        left, sign, right = text.partition("=")
        if not (left and sign and right):
            raise UnsupportedInputError(
                f"--token {text!r} must be TEACHER=STUDENT, two special tokens that mean the same, for "
                "example --token '<|im_end|>=<|eot|>'"
            )
        if left in pairs:
            raise UnsupportedInputError(f"--token names {left!r} of the teacher twice; it can have one equal")
        pairs[left] = right
    return pairs
