"""Commands that write: export, import, merge, codebook, compact."""

from __future__ import annotations

import argparse
from pathlib import Path

from logitstore.cli import context
from logitstore.cli.arguments.making import EXPORT_FORMS, TABLE_FORMS, TEXT_FORMS
from logitstore.cli.selecting import selection_of, warn_of_unmet
from logitstore.codec.codebook_training import train_codebooks
from logitstore.codec.codebooks import CodebookSet
from logitstore.common.options import read_storage_options
from logitstore.errors import StoreChangedError, UnsupportedInputError
from logitstore.exchange.by_suffix import SUFFIXES
from logitstore.exchange.distillkit import read_distillkit
from logitstore.exchange.importing import Origin, Source, import_source
from logitstore.exchange.megatron import read_megatron
from logitstore.exchange.merge import merge_stores
from logitstore.exchange.mix import mix_stores
from logitstore.exchange.npz.export import export_npz
from logitstore.exchange.npz.reading import read_npz
from logitstore.exchange.tables.export import FILE_BYTES, export_files, export_table
from logitstore.exchange.tables.reading import read_table
from logitstore.exchange.texts import export_texts
from logitstore.manifest.folders import refuse_in_store
from logitstore.objects.opening import Objects
from logitstore.objects.room import free_bytes
from logitstore.store import LogitStore
from logitstore.tools.copying import copy_store

FORM_OPTIONS = {
    ("top_k", "value_kind"): ("npz",),
    ("config",): ("distillkit",),
    ("vocab_size",): ("distillkit", "megatron"),
    ("tokens",): ("megatron",),
    ("like",): TABLE_FORMS,
}
"""Options of `import`, and the forms that they say something of."""
DEFAULT_CODEBOOKS = 64


def export(args: argparse.Namespace) -> int:
    place: str = args.file
    args.to = args.to or _form_of_suffix(place)
    refuse_in_store(place, "the export")
    store = context.open_store(args)
    if "://" in place or place.endswith("/") or Path(place).is_dir():
        return _export_files(args, store, place)
    ignored = ("file_bytes", "out_storage_options")
    context.refuse_unused(args, ignored, f"is for several files, in a folder or at a URL, and {place} is one")
    path = Path(place)
    if not path.resolve().parent.is_dir():
        raise UnsupportedInputError(f"{path.parent} is no folder; make it, or export to another place")
    if args.to in TEXT_FORMS:
        return _export_texts(args, store, path)
    _refuse_tokenizer(args)
    selection = selection_of(args)
    with context.progress_bar(args) as progress:
        if args.to == "npz":
            count = export_npz(store, path, selection=selection, top_k=args.top_k, progress=progress)
        else:
            count = export_table(
                store,
                path,
                args.to,
                selection=selection,
                top_k=args.top_k,
                announce=lambda num_bytes: _say_room(args, place, num_bytes),
                progress=progress,
            )
    warn_of_unmet("export", selection)
    what = "label rows" if args.to == "npz" else "sequences"
    context.say(args, f"{count:,} {what} to {path} ({context.size_text(path.stat().st_size)})")
    return context.OK


def _form_of_suffix(place: str) -> str:
    suffix = Path(place).suffix
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
    warn_of_unmet("export", selection)
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
    warn_of_unmet("export", selection)
    context.say(args, f"{written:,} sequences to {path} ({context.size_text(path.stat().st_size)})")
    if left_out:
        context.warn(
            "export",
            f"{left_out:,} sequences are left out, since no messages render to their prompts by the chat "
            "template; --to prompt-completion holds them",
        )
    return context.OK


def import_store(args: argparse.Namespace) -> int:
    source = _read_source(args)
    codebooks = _codebooks_of(args, source.labels.vocab_size) if args.codebook else None
    if source.teacher is not None:
        ignored = ("teacher", "revision", "teacher_dtype")
        context.refuse_unused(args, ignored, f"is for sources that do not say it, as {args.file} does")
    known = Origin()
    origin = Origin(
        model=args.teacher or known.model,
        revision=args.revision,
        dtype=args.teacher_dtype or known.dtype,
    )
    with context.progress_bar(args) as progress:
        store = import_source(
            source,
            args.store,
            origin=origin,
            codebooks=codebooks,
            storage_options=context.storage_options(args),
            progress=progress,
        )
    _say_size(args, store)
    return context.OK


def merge(args: argparse.Namespace) -> int:
    sources = [context.open_store(args, uri) for uri in args.stores]
    selection = selection_of(args)
    with context.progress_bar(args) as progress:
        store = merge_stores(
            sources,
            args.out,
            selection=selection,
            top_k=args.top_k,
            storage_options=context.storage_options(args),
            progress=progress,
        )
    warn_of_unmet("merge", selection)
    _say_size(args, store)
    return context.OK


def mix(args: argparse.Namespace) -> int:
    first, second = (context.open_store(args, uri) for uri in args.stores)
    masked: list[int] = []
    with context.progress_bar(args) as progress:
        store = mix_stores(
            (first, second),
            args.out,
            weights=(args.weights[0], args.weights[1]),
            storage_options=context.storage_options(args),
            progress=progress,
            masked=masked.append,
        )
    _say_size(args, store)
    if sum(masked):
        context.say(
            args,
            f"{store.uri}: {context.count_text(sum(masked), 'label row')} that count in {first.uri} do not "
            f"here, as {second.uri} has none there that counts",
        )
    return context.OK


def copy(args: argparse.Namespace) -> int:
    source = context.open_store(args)
    options = read_storage_options(args.out_storage_options) or context.storage_options(args)
    target = Objects(args.out, options)
    with context.progress_bar(args) as progress:
        result = copy_store(source, target, with_job=args.with_job, progress=progress)
    if args.json:
        context.print_json(result)
    context.say(
        args,
        f"{target.uri}: {context.count_text(result.num_shards, 'shard')}, {result.num_copied:,} objects "
        "copied "
        f"now ({context.size_text(result.num_bytes)})",
    )
    return context.OK


def codebook(args: argparse.Namespace) -> int:
    store = context.open_store(args)
    if args.copy_from is not None:
        ignored = ("max_codebooks", "expected_rows")
        context.refuse_unused(args, ignored, "is for training a set, and --copy-from takes one")
    existing = store.codebooks()
    if existing is not None and args.copy_from is None and args.out is None:
        context.say(args, f"the store uses {existing.hash} ({existing.num_codebooks} codebooks) already")
        return context.OK
    if args.copy_from is not None:
        codebooks = context.open_store(args, args.copy_from).codebooks()
        if codebooks is None:
            raise UnsupportedInputError(
                f"{args.copy_from} has no codebook set to copy; train one there first"
            )
    else:
        rows = (sequence.rows for sequence in store.iter_sequences())
        labels = store.manifest.labels
        codebooks = train_codebooks(
            rows,
            labels,
            max_codebooks=args.max_codebooks or DEFAULT_CODEBOOKS,
            expected_rows=args.expected_rows,
        )
    if args.out is not None:
        args.out.write_bytes(codebooks.to_bytes())
        context.say(args, f"{codebooks.hash} ({codebooks.num_codebooks} codebooks) to {args.out}")
        return context.OK
    winner = store.set_codebooks(codebooks)
    if winner.hash != codebooks.hash:
        raise StoreChangedError(f"{store.uri} got the codebook set {winner.hash} meanwhile, which stays")
    context.say(args, f"later shards of {store.uri} use {winner.hash} ({winner.num_codebooks} codebooks)")
    return context.OK


def _read_source(args: argparse.Namespace) -> Source:
    path: Path = args.file
    if not path.exists():
        raise UnsupportedInputError(f"{path} is not there; give the {args.form} file to import")
    for names, forms in FORM_OPTIONS.items():
        if args.form not in forms:
            context.refuse_unused(args, names, f"is for --from {' and '.join(forms)}")
    if args.form == "npz":
        return read_npz(path, top_k=args.top_k, value_kind=args.value_kind)
    if args.form == "distillkit":
        return read_distillkit(path, config_path=args.config, vocab_size=args.vocab_size)
    if args.form == "megatron":
        return read_megatron(path, vocab_size=args.vocab_size, tokens_path=args.tokens)
    like = context.open_store(args, args.like).manifest if args.like is not None else None
    return read_table(path, like)


def _codebooks_of(args: argparse.Namespace, vocab_size: int) -> CodebookSet:
    """The set of another store, or in a file that `codebook --out` wrote."""
    path = Path(args.codebook)
    if path.is_file():
        codebooks = CodebookSet.from_bytes(path.read_bytes())
    else:
        found = context.open_store(args, args.codebook).codebooks()
        if found is None:
            raise UnsupportedInputError(
                f"--codebook {args.codebook} has no codebook set; train one there first"
            )
        codebooks = found
    if codebooks.vocab_size != vocab_size:
        raise UnsupportedInputError(
            f"--codebook {args.codebook} is of a vocabulary of {codebooks.vocab_size}, the labels of "
            f"{vocab_size}; share codebooks only between stores of one teacher"
        )
    return codebooks


def _say_size(args: argparse.Namespace, store: LogitStore) -> None:
    shards = store.shards()
    num_rows = int(shards.column("num_rows").sum())
    size = int(shards.column("num_bytes").sum())
    context.say(
        args,
        f"{store.uri}: {int(shards.column('num_sequences').sum()):,} sequences, {num_rows:,} label rows, "
        f"{context.size_text(size)} ({size / max(1, num_rows):.1f} B per label row)",
    )
