"""Arguments of every command, with the examples that `--help` shows."""

from __future__ import annotations

import argparse
from pathlib import Path

from logitstore.cli.context import MAX_BLOCK_ENTRIES
from logitstore.cli.selecting import add_selection
from logitstore.common.command import EXIT_STATUSES, Program, new_parser
from logitstore.common.options import add_storage_options
from logitstore.tools.inspection import RECOMMENDED_MASS
from logitstore.tools.verify import DEFAULT_GRACE_SEC
from logitstore.viewer import cli as viewer_cli

LABEL_FORMS = ("npz", "parquet", "arrow", "jsonl")
TEXT_FORMS = ("messages", "prompt-completion")
EXPORT_FORMS = (*LABEL_FORMS, *TEXT_FORMS)
IMPORT_FORMS = (*LABEL_FORMS, "distillkit", "megatron")

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
    _add_inspect(commands)
    _add_verify(commands)
    _add_head(commands)
    _add_cat(commands)
    _add_export(commands)
    _add_import(commands)
    _add_merge(commands)
    _add_retokenize(commands)
    _add_mix(commands)
    _add_copy(commands)
    _add_codebook(commands)
    _add_compact(commands)
    _add_rebuild_index(commands)
    _add_uncommit(commands)
    _add_delete(commands)
    viewer_cli.add_arguments(commands.add_parser("view", help="show stores as a page in the browser"))
    return parser


_Commands = argparse._SubParsersAction  # argparse names no public type for what add_subparsers returns  # noqa: SLF001


def _command(
    commands: _Commands, name: str, summary: str, explanation: str, *examples: str
) -> argparse.ArgumentParser:
    lines = "\n".join(f"  penumbra store {example}" for example in examples)
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{explanation}",
        epilog=f"examples:\n{lines}\n\n{EXIT_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bar, nothing but what was asked for"
    )
    parser.add_argument(
        "--max-block-entries",
        metavar="N",
        type=_positive,
        default=MAX_BLOCK_ENTRIES,
        help="rows times K that are decoded at once (default 8388608, some 0.5 GB)",
    )
    add_storage_options(parser)
    return parser


def _add_inspect(commands: _Commands) -> None:
    parser = _command(
        commands,
        "inspect",
        "sizes, entries per row, entropy, tail mass, and the mass each K would keep",
        "The last table says how much of the teacher's distribution each K would keep, and which is the\n"
        "least that keeps --mass of it. Bytes are what lies in the store; `per row` also names what the\n"
        "entries and the T=1 normaliser alone take.",
        "inspect build/demo/store",
        "inspect s3://bucket/store --max-rows 100000 --json",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument(
        "--max-rows",
        metavar="N",
        type=_positive,
        help="look at an even choice of shards of about that many rows",
    )
    parser.add_argument(
        "--mass",
        metavar="SHARE",
        type=_share,
        default=RECOMMENDED_MASS,
        help="mass at T=1 the recommended K keeps (default 0.99)",
    )


def _add_verify(commands: _Commands) -> None:
    parser = _command(
        commands,
        "verify",
        "read everything and list every problem, one per line",
        "Checks names, sizes and checksums of every object, every rule of FORMAT.md for every row, that no\n"
        "record is labeled twice, and with --against that every record of the input is labeled or rejected.\n"
        "Status 1 if anything is wrong. Garbage (losing or dead writers' objects) is listed, but no error.",
        "verify build/demo/store",
        "verify s3://bucket/store --against s3://bucket/prompts/ --json",
        "verify build/demo/store --repair",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--json", action="store_true", help="one JSON object with all problems")
    parser.add_argument("--quick", action="store_true", help="compare sizes only, read no shard")
    parser.add_argument(
        "--against",
        metavar="INPUT",
        help="check that every record of this input is labeled or rejected, once",
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=_positive,
        help="only the first N records of INPUT belong to the store (default: the job's)",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="remove garbage: what losing or dead writers left, never what could be the only copy",
    )
    parser.add_argument(
        "--remove-most",
        action="store_true",
        help="let --repair remove more bytes of shards than stay",
    )
    parser.add_argument(
        "--grace-sec",
        metavar="SEC",
        type=float,
        default=DEFAULT_GRACE_SEC,
        help="uncommitted objects younger than this may have a living writer (default 3600)",
    )


def _add_head(commands: _Commands) -> None:
    parser = _command(
        commands,
        "head",
        "the first label rows, with tokens as text where the tokenizer is at hand",
        "A row is one position: the token that stands there (dim where a loss would not count it), the\n"
        "teacher's probability and rank of it, the teacher's own first choices, and the mass outside all\n"
        "stored entries.",
        "head build/demo/store --rows 20",
        "head build/demo/store --tokenizer models/teacher --temperature 2 --json",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--rows", metavar="N", type=_positive, default=20, help="rows shown (default 20)")
    parser.add_argument(
        "--alternatives", metavar="N", type=_positive, default=4, help="choices shown per row (default 4)"
    )
    parser.add_argument(
        "--temperature", metavar="T", type=float, default=1.0, help="of the probabilities (default 1)"
    )
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="folder or tokenizer.json (default: the job's teacher)"
    )


def _add_cat(commands: _Commands) -> None:
    parser = _command(
        commands,
        "cat",
        "the sequences of one or several stores as lines of JSON",
        "The lines are those of `export --to jsonl`; numbers that JSON lacks (-inf, NaN) become null.",
        "cat build/a build/b --limit 10",
        "cat build/store --top-k 4 --where 'record_id >= doc-100 and record_id < doc-200'",
    )
    parser.add_argument("stores", nargs="+", metavar="STORE")
    add_selection(parser)
    parser.add_argument("--top-k", metavar="K", type=_positive, help="read only so many entries of each row")
    parser.add_argument("--limit", metavar="N", type=_positive, help="stop after so many sequences")


def _add_export(commands: _Commands) -> None:
    parser = _command(
        commands,
        "export",
        "write a store as an npz capture, Parquet, Arrow or JSONL, or its text for other trainers",
        "npz holds all rows in a few plain arrays: logits, ids, logsumexp and log tail mass by temperature,\n"
        "tokens. parquet, arrow and jsonl hold one sequence per row, with list columns. `import` takes each\n"
        "of them back. messages and prompt-completion are JSONL of text, for `datasets.load_dataset`:\n"
        "conversations with the teacher's answer last, reasoning apart; or prompts as the teacher saw them.",
        "export build/store --to npz capture.npz",
        "export build/store --to parquet labels.parquet --where 'num_tokens <= 512'",
        "export build/store --to jsonl some.jsonl --ids wanted.txt --top-k 16",
        "export build/store --to messages texts.jsonl --where 'finish_reason != length'",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--to", required=True, choices=EXPORT_FORMS, help="the form of FILE")
    parser.add_argument("file", type=Path, metavar="FILE", help="written whole or not at all")
    add_selection(parser)
    _add_cut(parser)
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="folder or tokenizer.json for texts (default: the store's own)"
    )


def _add_import(commands: _Commands) -> None:
    parser = _command(
        commands,
        "import",
        "make a store of labels in another form",
        "npz: a capture of top-K logits, ids and logsumexp by temperature (the layout stands in\n"
        "logitstore/exchange/npz.py). parquet, arrow, jsonl: what `export` wrote. distillkit: DistillKit's\n"
        "compressed captures. megatron: Megatron-LM's cached logits. The last two know T=1 only, with the\n"
        "tail that their rounded values leave. An interrupted import goes on when the command is repeated.",
        "import --from npz capture.npz build/store --top-k 64",
        "import --from npz capture.npz build/store --codebook build/other-store",
        "import --from distillkit logits/ build/store --config compression_config.yaml",
        "import --from megatron logits/ build/store --vocab-size 128256 --tokens samples.npy",
    )
    parser.add_argument("--from", required=True, choices=IMPORT_FORMS, dest="form", help="the form of FILE")
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a file, or a folder of them (distillkit, megatron)"
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument(
        "--top-k", metavar="K", type=_positive, help="keep K entries per row; the rest joins the tail (npz)"
    )
    parser.add_argument(
        "--value-kind", choices=("logit_f16", "gap_f16"), help="default: what loses nothing (npz)"
    )
    parser.add_argument(
        "--like",
        metavar="STORE",
        help="take teacher and labels of this store, for a table that lost its manifest on the way through "
        "datasets, polars, DuckDB or pandas (parquet, arrow, jsonl)",
    )
    parser.add_argument(
        "--codebook", metavar="STORE|FILE", help="code ids with this set instead of training one"
    )
    parser.add_argument(
        "--teacher",
        metavar="NAME",
        default="unknown",
        help="the teacher's name, where the source does not say it",
    )
    parser.add_argument("--revision", metavar="NAME", help="the teacher's revision")
    parser.add_argument(
        "--teacher-dtype", metavar="DTYPE", default="float32", help="of its logits (default float32)"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="DistillKit's compression_config.yaml (default: beside FILE)",
    )
    parser.add_argument(
        "--vocab-size",
        metavar="V",
        type=_positive,
        help="width of the teacher's logits (megatron, distillkit)",
    )
    parser.add_argument(
        "--tokens", metavar="FILE", type=Path, help="Megatron's training samples, .npy [samples, length]"
    )


def _add_merge(commands: _Commands) -> None:
    parser = _command(
        commands,
        "merge",
        "join stores of one teacher, or select from one, into a new store",
        "Stores must agree in teacher, tokenizer, temperatures and value kind; K may differ. Their records\n"
        "must be distinct. Rejects come along as far as their ids are selected. The new\n"
        "store uses the codebook set of the first that has one.",
        "merge build/a build/b --out build/both",
        "merge build/store --out build/short --where 'num_tokens <= 256'",
        "merge build/store --out build/kept --without-ids taken-down.txt",
        "merge build/store --out build/small --top-k 16",
    )
    parser.add_argument("stores", nargs="+", metavar="STORE")
    parser.add_argument("--out", required=True, metavar="STORE", help="the new store")
    add_selection(parser)
    _add_cut(parser)


def _add_retokenize(commands: _Commands) -> None:
    parser = _command(
        commands,
        "retokenize",
        "labels for a student of another tokenizer, from a store of the teacher's",
        "A row stays where both tokenizers begin a token at the same byte. Its entries get the student's id\n"
        "of the same bytes; the mass of those that have none joins the tail, exactly at every stored\n"
        "temperature. Other rows are masked. An interrupted command goes on when it is repeated.",
        "retokenize build/labels build/labels-for-student --tokenizer models/student",
        "retokenize s3://b/labels s3://b/for-student --tokenizer models/student --token '<|im_end|>=<|eot|>'",
    )
    parser.add_argument("store", metavar="STORE", help="labels of the teacher's tokenizer")
    parser.add_argument("out", metavar="OUT", help="the new store")
    parser.add_argument("--json", action="store_true", help="one JSON object with what is kept")
    parser.add_argument(
        "--tokenizer",
        metavar="STUDENT",
        required=True,
        help="the student's: a folder or tokenizer.json; beginnings and ends of text are those of its "
        "tokenizer_config.json",
    )
    parser.add_argument(
        "--teacher-tokenizer", metavar="PATH", help="folder or tokenizer.json (default: the job's teacher)"
    )
    parser.add_argument(
        "--vocab-size",
        metavar="V",
        type=_positive,
        help="width of the student's logits (default: of its config.json, else of its tokenizer)",
    )
    parser.add_argument(
        "--token",
        metavar="TEACHER=STUDENT",
        action="append",
        default=[],
        dest="tokens",
        help="special tokens that mean the same, such as the ends of a turn (repeatable)",
    )
    parser.add_argument(
        "--merged-spans",
        action="store_true",
        help="where the actual token is several of the teacher's, give it their product as its probability: "
        "assumes that the teacher writes this text in no other way",
    )


def _add_mix(commands: _Commands) -> None:
    parser = _command(
        commands,
        "mix",
        "two teachers' labels of the same tokens as those of one, by the sum of their probabilities",
        "Both stores hold the same sequences, token by token; the mixture is exact at T=1, over the ids\n"
        "that both know and for the mass outside them. Its rows are at given ids, so no prefix of them can\n"
        "be read. An interrupted command goes on when it is repeated.",
        "mix build/teacher-a build/teacher-b --out build/both",
        "mix build/teacher-a build/teacher-b --out build/both --weights 0.7 0.3",
    )
    parser.add_argument("stores", nargs=2, metavar="STORE")
    parser.add_argument("--out", required=True, metavar="STORE", help="the new store")
    parser.add_argument(
        "--weights", nargs=2, type=float, metavar="W", default=[0.5, 0.5], help="of each, adding up to 1"
    )


def _add_copy(commands: _Commands) -> None:
    parser = _command(
        commands,
        "copy",
        "the store at another address, also while its job runs",
        "Copies what was committed when the copy began: shards first, compared with their checksums, the\n"
        "index last, so that a copy that was cut off is refused by readers. Repeat the command to go on,\n"
        "or to bring a copy up to date. The teacher's tokenizer comes along; the plan, by which a job can\n"
        "go on, only with --with-job, and logs never.",
        "copy build/store s3://bucket/store",
        "copy https://example.org/store build/store",
    )
    parser.add_argument("store", metavar="SRC", help="a store, at any address")
    parser.add_argument("out", metavar="DST", help="a folder or URL that can be written")
    parser.add_argument("--json", action="store_true", help="one JSON object with the counts")
    parser.add_argument("--with-job", action="store_true", help="also the job's settings and plan")
    parser.add_argument(
        "--out-storage-options", metavar="FILE", help="--storage-options of DST (default: those of SRC)"
    )


def _add_codebook(commands: _Commands) -> None:
    parser = _command(
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
    parser.add_argument(
        "--max-codebooks", metavar="N", type=_positive, default=64, help="at most so many (default 64)"
    )
    parser.add_argument(
        "--expected-rows",
        metavar="N",
        type=_positive,
        help="label rows the set will serve (default: those there)",
    )


def _add_compact(commands: _Commands) -> None:
    parser = _command(
        commands,
        "compact",
        "move commit records into the index, so that opening stays cheap; safe beside writers",
        "A labeling job does it by itself. Nothing that a reader sees changes.",
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


def _add_rebuild_index(commands: _Commands) -> None:
    parser = _command(
        commands,
        "rebuild-index",
        "write the index anew from the shards, where it was lost or damaged",
        "Reads every shard, and takes from the old index, from commit records and from segments what can be\n"
        "read of them: rejects stand there alone. Nothing is deleted. Run it while no job labels the store.",
        "rebuild-index s3://bucket/store",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--json", action="store_true", help="one JSON object with the counts")


def _add_uncommit(commands: _Commands) -> None:
    parser = _command(
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


def _add_delete(commands: _Commands) -> None:
    parser = _command(
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


def _add_cut(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--top-k",
        metavar="K",
        type=_positive,
        help="keep only so many entries of each row; the mass of the others joins the tail, exactly",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value} must lie in (0, 1]")
    return value
