"""The parser of `penumbra store`, with the examples that `--help` shows."""

from __future__ import annotations

import argparse

from logitstore.cli.arguments import looking, making, mending
from logitstore.common.command import Program, new_parser
from logitstore.viewer import cli as viewer_cli

PROGRAM = Program(
    name="store",
    description="Look into, check, convert and join stores of teacher labels.",
    extra="fast",
    examples="""examples:
  penumbra store inspect labels/demo
  penumbra store verify s3://bucket/store --against prompts.jsonl
  penumbra store head labels/demo --rows 20 --tokenizer models/teacher
  penumbra store import --from npz capture.npz labels/demo --top-k 64

A STORE is a folder or a URL: s3://bucket/prefix, to read also https://, hf://, gs://, az://
(logitstore/README.md says which needs which package). Credentials and endpoints come from the
environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...) or from the JSON file of --storage-options.
""",
)


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(PROGRAM)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    looking.add_inspect(commands)
    looking.add_verify(commands)
    looking.add_head(commands)
    looking.add_cat(commands)
    making.add_export(commands)
    making.add_import(commands)
    making.add_merge(commands)
    making.add_retokenize(commands)
    making.add_mix(commands)
    making.add_copy(commands)
    making.add_publish(commands)
    mending.add_codebook(commands)
    mending.add_compact(commands)
    mending.add_rebuild_index(commands)
    mending.add_uncommit(commands)
    mending.add_delete(commands)
    viewer_cli.add_arguments(commands.add_parser("view", help="show stores as a page in the browser"))
    return parser
