"""`penumbra store publish`."""

from __future__ import annotations

import argparse
import sys

from logitstore.cli import context
from logitstore.common.options import read_storage_options
from logitstore.job_objects import CARD_NAME
from logitstore.objects.addresses import upload_command
from logitstore.objects.opening import Objects
from logitstore.publishing.card import CardSettings
from logitstore.publishing.publish import publish_store


def publish(args: argparse.Namespace) -> int:
    source = context.open_store(args)
    target = Objects(
        args.out, read_storage_options(args.out_storage_options) or context.storage_options(args)
    )
    with context.progress_bar(args) as progress:
        result = publish_store(
            source,
            target,
            CardSettings(args.repo, args.licence),
            new_card=args.new_card,
            beside_job=args.beside_job,
            allow_paths=args.allow_paths,
            progress=progress,
        )
    if args.json:
        context.print_json(result)
    if not result.wrote_card:
        print(
            f"publish: {CARD_NAME} was there and stays as it is; --new-card writes it anew", file=sys.stderr
        )
    if result.not_removed:
        context.warn("publish", f"older objects stay there: {result.not_removed}")
    context.warn_of_ids("publish", result.not_indexed)
    context.say(
        args,
        f"{target.uri}: {result.num_sequences:,} sequences in "
        f"{context.count_text(result.num_shards, 'shard')} ({context.size_text(result.num_bytes)}), "
        f"{result.num_written:,} written now; {result.num_rejects:,} records without labels are left out",
    )
    if target.is_local:
        context.say(args, f"to the Hub: {upload_command(args.repo, args.out)}")
    return context.OK
