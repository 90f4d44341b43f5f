"""Commands that write stores: import, merge, mix, copy, codebook."""

from __future__ import annotations

import argparse
from pathlib import Path

from logitstore.cli import context
from logitstore.cli.arguments.making import TABLE_FORMS
from logitstore.cli.selecting import selection_of, warn_of_top_k, warn_of_unmet
from logitstore.codec.codebook_training import train_codebooks
from logitstore.codec.codebooks import CodebookSet
from logitstore.common.options import read_storage_options
from logitstore.common.whole_file import check_place, replacing
from logitstore.errors import StoreChangedError, UnsupportedInputError
from logitstore.exchange.distillkit import read_distillkit
from logitstore.exchange.importing import Origin, Source, import_source
from logitstore.exchange.megatron import read_megatron
from logitstore.exchange.merge import merge_stores
from logitstore.exchange.mix import NotMixed, mix_stores
from logitstore.exchange.npz.reading import read_npz
from logitstore.exchange.tables.reading import read_table
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore
from logitstore.tools.carried_deletions import left_out
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


def import_store(args: argparse.Namespace) -> int:
    _refuse_options_of_other_forms(args)
    like = context.open_store(args, args.like) if args.like is not None else None
    source = _read_source(args, like)
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
            like=like,
            codebooks=codebooks,
            storage_options=context.storage_options(args),
            progress=progress,
        )
    _say_size(args, store)
    return context.OK


def merge(args: argparse.Namespace) -> int:
    sources = [context.open_store(args, uri) for uri in args.stores]
    selection = selection_of(args)
    warn_of_top_k("merge", args.top_k, sources)
    with context.progress_bar(args) as progress:
        store = merge_stores(
            sources,
            args.out,
            selection=selection,
            top_k=args.top_k,
            storage_options=context.storage_options(args),
            progress=progress,
        )
    warn_of_unmet("merge", selection, int(store.shards().column("num_sequences").sum()))
    _say_size(args, store)
    return context.OK


def mix(args: argparse.Namespace) -> int:
    first, second = (context.open_store(args, uri) for uri in args.stores)
    told: list[NotMixed] = []
    with context.progress_bar(args) as progress:
        store = mix_stores(
            (first, second),
            args.out,
            weights=(args.weights[0], args.weights[1]),
            storage_options=context.storage_options(args),
            progress=progress,
            report=told.append,
        )
    _say_size(args, store)
    for one in told:
        _say_not_mixed(args, one, store, first, second)
    return context.OK


def _say_not_mixed(
    args: argparse.Namespace, lost: NotMixed, store: LogitStore, first: LogitStore, second: LogitStore
) -> None:
    if lost.num_masked:
        context.say(
            args,
            f"{store.uri}: {context.count_text(lost.num_masked, 'label row')} that count in {first.uri} do "
            f"not here, as {second.uri} has none there that counts",
        )
    if lost.num_other_segments:
        differ = f"the segments of {context.count_text(lost.num_other_segments, 'sequence')} differ"
        context.warn(
            "mix",
            f"{differ} in {second.uri}; those of {first.uri} are kept, so name the two the other way round "
            "to keep the other ones",
        )
    if lost.num_deleted:
        context.warn("mix", left_out(lost.num_deleted, store.uri))
    if lost.num_second_only:
        context.warn(
            "mix",
            f"only {second.uri} has {context.count_text(lost.num_second_only, 'sequence')} more, not in the "
            "mixture: only what both teachers labeled can be mixed",
        )


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
    if result.num_unindexed:
        context.say(
            args,
            f"{context.count_text(result.num_unindexed, 'unit')} of it are not in its index yet, so servers "
            f"that may not be listed do not show them; for those run `penumbra store compact {source.uri}` "
            "and copy again",
        )
    if result.num_left:
        context.warn(
            "copy",
            f"{context.count_text(result.num_left, 'shard')} of an earlier copy, which may hold deleted "
            f"records, stay there without a name; `penumbra store verify {target.uri} --repair` removes them",
        )
    return context.OK


def codebook(args: argparse.Namespace) -> int:
    store = context.open_store(args)
    if args.copy_from is not None:
        ignored = ("max_codebooks", "expected_rows")
        context.refuse_unused(args, ignored, "is for training a set, and --copy-from takes one")
    if args.out is not None:
        check_place(args.out)
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
        with replacing(args.out) as part:
            part.write_bytes(codebooks.to_bytes())
        context.say(args, f"{codebooks.hash} ({codebooks.num_codebooks} codebooks) to {args.out}")
        return context.OK
    winner = store.set_codebooks(codebooks)
    if winner.hash != codebooks.hash:
        raise StoreChangedError(f"{store.uri} got the codebook set {winner.hash} meanwhile, which stays")
    context.say(args, f"later shards of {store.uri} use {winner.hash} ({winner.num_codebooks} codebooks)")
    return context.OK


def _refuse_options_of_other_forms(args: argparse.Namespace) -> None:
    for names, forms in FORM_OPTIONS.items():
        if args.form not in forms:
            context.refuse_unused(args, names, f"is for --from {' and '.join(forms)}")


def _read_source(args: argparse.Namespace, like: LogitStore | None) -> Source:
    path: Path = args.file
    if not path.exists():
        raise UnsupportedInputError(f"{path} is not there; give the {args.form} file to import")
    if args.form == "npz":
        return read_npz(path, top_k=args.top_k, value_kind=args.value_kind)
    if args.form == "distillkit":
        return read_distillkit(path, config_path=args.config, vocab_size=args.vocab_size)
    if args.form == "megatron":
        return read_megatron(path, vocab_size=args.vocab_size, tokens_path=args.tokens)
    return read_table(path, None if like is None else like.manifest)


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
