"""Arguments of the commands that change a store: codebook, compact, rebuild-index, uncommit, delete."""

from __future__ import annotations

from pathlib import Path

from logitstore.cli.arguments.command import Commands, add_command
from logitstore.common.options import positive


def add_codebook(commands: Commands) -> None:
    parser = add_command(
        commands,
        "codebook",
        "train the codebook set that a store's later shards are coded with, or share another store's",
        "A set of orders of the vocabulary, fitted to kinds of label rows, makes ids smaller. It is never\n"
        "changed once set; shards written before stay as they are. Stores of one teacher can share a set:\n"
        "it serves documents it was not trained on nearly as well. More expected rows pay for more.",
        "codebook build/store",
        "codebook build/new-store --copy-from build/old-store",
        "codebook build/store --out teacher.codebooks --expected-rows 100000000",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--copy-from", metavar="STORE", help="take that store's set")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the set to a file and leave the store alone"
    )
    parser.add_argument("--max-codebooks", metavar="N", type=positive, help="at most so many (default 64)")
    parser.add_argument(
        "--expected-rows",
        metavar="N",
        type=positive,
        help="label rows the set will serve (default: those there)",
    )


def add_compact(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compact",
        "move commit records into the index, so that opening stays cheap; safe beside writers",
        "A labeling job does it by itself. Nothing that a reader sees changes. A store of\n"
        "earlier versions gets its index of record ids.",
        "compact s3://bucket/store",
        "compact s3://bucket/store --purge",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--json", action="store_true", help="one JSON object with the counts")
    parser.add_argument(
        "--purge",
        action="store_true",
        help="also write the shards anew that hold deleted sequences, and take deleted records out of the "
        "plan and the rejects; not while a job labels the store. Logs are not searched",
    )


def add_rebuild_index(commands: Commands) -> None:
    parser = add_command(
        commands,
        "rebuild-index",
        "write the index anew from the shards, where it was lost or damaged",
        "Reads every shard, and takes from the old index, from commit records and from segments what can be\n"
        "read of them: rejects stand there alone. Nothing is deleted. Run it while no job labels the store.",
        "rebuild-index s3://bucket/store",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--json", action="store_true", help="one JSON object with the counts")


def add_uncommit(commands: Commands) -> None:
    parser = add_command(
        commands,
        "uncommit",
        "take units out of the store, so that their job labels them again",
        "--bad reads every shard and takes the units whose shard is gone or damaged. Labels of a unit that\n"
        "was un-committed never count again, whoever still has them; `verify --repair` removes them.",
        "uncommit build/store --bad",
        "uncommit build/store --unit 3fa94c0de1b2a567",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--json", action="store_true", help="one JSON object with the units")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--bad", action="store_true", help="units whose shard is gone or damaged")
    which.add_argument(
        "--unit", metavar="UNIT_ID", action="append", dest="units", help="this unit (repeatable)"
    )
    parser.add_argument(
        "--most", action="store_true", help="let --bad take more than half of the store's units"
    )


def add_delete(commands: Commands) -> None:
    parser = add_command(
        commands,
        "delete",
        "take records out of the store: no reader hands them out from then on",
        "All samples of the records are skipped at once, by every command and in training, and the "
        "records are\n"
        "not labeled again. Their bytes stay until `compact --purge`. Versions of Penumbra that do not know\n"
        "deletions refuse the store. Not while a job labels it.",
        "delete build/store --ids taken-down.txt --reason 'asked for on 2026-11-28, ticket 1234'",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--json", action="store_true", help="one JSON object with the counts")
    parser.add_argument("--ids", type=Path, metavar="FILE", required=True, help="one record id a line")
    parser.add_argument("--reason", metavar="TEXT", required=True, help="kept in the store, for others")
