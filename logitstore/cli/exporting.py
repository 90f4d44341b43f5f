"""The command that writes a store's labels or texts as other software's files: export."""

from __future__ import annotations

import argparse
from pathlib import Path

from logitstore.cli import context
from logitstore.cli.arguments.making import EXPORT_FORMS, TABLE_FORMS, TEXT_FORMS
from logitstore.cli.selecting import selection_of, warn_of_top_k, warn_of_unmet
from logitstore.common.options import read_storage_options
from logitstore.common.whole_file import check_place
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.by_suffix import SUFFIXES
from logitstore.exchange.npz.export import export_npz
from logitstore.exchange.tables.export import FILE_BYTES, export_files, export_table
from logitstore.exchange.texts import export_texts
from logitstore.manifest.folders import refuse_in_store
from logitstore.objects.room import free_bytes
from logitstore.store import LogitStore


def export(args: argparse.Namespace) -> int:
    place: str = args.file
    args.to = args.to or _form_of_suffix(place)
    refuse_in_store(place, "the export")
    store = context.open_store(args)
    warn_of_top_k("export", args.top_k, [store])
    if "://" in place or place.endswith("/") or Path(place).is_dir():
        return _export_files(args, store, place)
    ignored = ("file_bytes", "out_storage_options")
    context.refuse_unused(args, ignored, f"is for several files, in a folder or at a URL, and {place} is one")
    path = Path(place)
    check_place(path, filter(None, (args.ids, args.without_ids, args.tokenizer)))
    if args.to in TEXT_FORMS:
        return _export_texts(args, store, path)
    _refuse_tokenizer(args)
    selection = selection_of(args)

    def announce(num_bytes: int) -> None:
        _say_room(args, place, num_bytes)

    with context.progress_bar(args) as progress:
        if args.to == "npz":
            count = export_npz(
                store, path, selection=selection, top_k=args.top_k, announce=announce, progress=progress
            )
        else:
            count = export_table(
                store,
                path,
                args.to,
                selection=selection,
                top_k=args.top_k,
                announce=announce,
                progress=progress,
            )
    warn_of_unmet("export", selection, count)
    what = "label rows" if args.to == "npz" else "sequences"
    context.say(args, f"{count:,} {what} to {path} ({context.size_text(path.stat().st_size)})")
    return context.OK


def _form_of_suffix(place: str) -> str:
    suffix = Path(place).suffix.lower()
    if suffix not in SUFFIXES:
        raise UnsupportedInputError(
            f"no form is named by the ending of {place}; give --to ({', '.join(EXPORT_FORMS)}), or a file "
            f"that ends in {', '.join(SUFFIXES)}"
        )
    return suffix.removeprefix(".")


def _export_files(args: argparse.Namespace, store: LogitStore, place: str) -> int:
    if args.to not in TABLE_FORMS:
        raise UnsupportedInputError(
            f"{place} is a folder or URL, and --to {args.to} is one local file; name a file, or export --to "
            f"{', '.join(TABLE_FORMS)}"
        )
    _refuse_tokenizer(args)
    selection = selection_of(args)
    with context.progress_bar(args) as progress:
        result = export_files(
            store,
            place,
            args.to,
            selection=selection,
            top_k=args.top_k,
            file_bytes=args.file_bytes or FILE_BYTES,
            storage_options=read_storage_options(args.out_storage_options) or context.storage_options(args),
            announce=lambda num_bytes: _say_room(args, place, num_bytes),
            progress=progress,
        )
    warn_of_unmet("export", selection, result.num_sequences)
    context.say(
        args,
        f"{result.num_sequences:,} sequences to {context.count_text(result.num_files, 'file')} below {place} "
        f"({context.size_text(result.num_bytes)})",
    )
    return context.OK


def _refuse_tokenizer(args: argparse.Namespace) -> None:
    if args.tokenizer is not None:
        raise UnsupportedInputError(f"--tokenizer is for texts; --to {args.to} holds ids")


def _say_room(args: argparse.Namespace, place: str, num_bytes: int) -> None:
    free = free_bytes(place)
    room = f"; {context.size_text(free)} are free" if free is not None else ""
    context.say(args, f"about {context.size_text(num_bytes)} to {place}{room}")


def _export_texts(args: argparse.Namespace, store: LogitStore, path: Path) -> int:
    if args.top_k is not None:
        raise UnsupportedInputError(f"--top-k is for labels; --to {args.to} holds text alone")
    selection = selection_of(args)
    with context.progress_bar(args) as progress:
        written, left_out = export_texts(
            store,
            path,
            args.to,
            selection=selection,
            tokenizer=args.tokenizer,
            progress=progress,
        )
    warn_of_unmet("export", selection, written)
    context.say(args, f"{written:,} sequences to {path} ({context.size_text(path.stat().st_size)})")
    if left_out:
        context.warn(
            "export",
            f"{left_out:,} sequences are left out, since no messages render to their prompts by the chat "
            "template; --to prompt-completion holds them",
        )
    return context.OK
