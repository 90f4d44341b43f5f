"""Arguments of the commands that make stores and files: export, import, merge, retokenize, mix, copy,
publish.
"""

from __future__ import annotations

from pathlib import Path

from logitstore.cli.arguments.command import Commands, add_command, add_cut
from logitstore.cli.selecting import add_selection
from logitstore.common.options import amount, positive

TABLE_FORMS = ("parquet", "arrow", "jsonl")
LABEL_FORMS = ("npz", *TABLE_FORMS)
TEXT_FORMS = ("messages", "prompt-completion")
EXPORT_FORMS = (*LABEL_FORMS, *TEXT_FORMS)
IMPORT_FORMS = (*LABEL_FORMS, "distillkit", "megatron")


def add_export(commands: Commands) -> None:
    parser = add_command(
        commands,
        "export",
        "write a store as an npz capture, Parquet, Arrow or JSONL, or its text for other trainers",
        "npz holds all rows in a few plain arrays: logits, ids, logsumexp and log tail mass by temperature,\n"
        "tokens. parquet, arrow and jsonl hold one sequence per row, with list columns. `import` takes each\n"
        "of them back. messages and prompt-completion are JSONL of text, for `datasets.load_dataset`:\n"
        "conversations with the teacher's answer last, reasoning apart; or prompts as the teacher saw them,\n"
        "and the students' own where they see others.",
        "export build/store capture.npz",
        "export build/store labels.parquet --where 'num_tokens <= 512'",
        "export s3://bucket/store --to parquet s3://bucket/tables",
        "export build/store some.jsonl --ids wanted.txt --top-k 16",
        "export build/store --to messages texts.jsonl --where 'finish_reason != length'",
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--to", choices=EXPORT_FORMS, help="the form of FILE (default: what its ending says)")
    parser.add_argument(
        "file",
        metavar="FILE",
        help="written whole or not at all; tables also as several files, below a folder (one that is "
        "there, or ends with a slash) or a URL",
    )
    parser.add_argument(
        "--file-bytes",
        metavar="N",
        type=positive,
        help="of several files: labels that one takes, as the store holds them (default 67108864)",
    )
    parser.add_argument(
        "--out-storage-options", metavar="FILE", type=Path, help="--storage-options of FILE's address"
    )
    add_selection(parser)
    add_cut(parser)
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="folder or tokenizer.json for texts (default: the store's own)"
    )


def add_import(commands: Commands) -> None:
    parser = add_command(
        commands,
        "import",
        "make a store of labels in another form",
        "npz: a capture of top-K logits, ids and logsumexp by temperature (its layout is in\n"
        "logitstore/exchange/npz/__init__.py). parquet, arrow, jsonl: what `export` wrote. distillkit:\n"
        "DistillKit's compressed captures. megatron: Megatron-LM's cached logits. The last two know T=1\n"
        "only, with the tail that their rounded values leave. Repeat the command where it was interrupted.",
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
        "--top-k", metavar="K", type=positive, help="keep K entries per row; the rest joins the tail (npz)"
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
        help="the teacher's name, where the source does not say it",
    )
    parser.add_argument("--revision", metavar="NAME", help="the teacher's revision")
    parser.add_argument("--teacher-dtype", metavar="DTYPE", help="of its logits (default float32)")
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="DistillKit's compression_config.yaml (default: beside FILE)",
    )
    parser.add_argument(
        "--vocab-size",
        metavar="V",
        type=positive,
        help="width of the teacher's logits (megatron, distillkit)",
    )
    parser.add_argument(
        "--tokens", metavar="FILE", type=Path, help="Megatron's training samples, .npy [samples, length]"
    )


def add_merge(commands: Commands) -> None:
    parser = add_command(
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
    add_cut(parser)


def add_retokenize(commands: Commands) -> None:
    parser = add_command(
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
        type=positive,
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


def add_mix(commands: Commands) -> None:
    parser = add_command(
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
        "--weights", nargs=2, type=amount, metavar="W", default=[0.5, 0.5], help="of each, adding up to 1"
    )


def add_copy(commands: Commands) -> None:
    parser = add_command(
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
        "--out-storage-options",
        metavar="FILE",
        type=Path,
        help="--storage-options of DST (default: those of SRC)",
    )


def add_publish(commands: Commands) -> None:
    parser = add_command(
        commands,
        "publish",
        "the labels alone, ready for the Hub: a dataset card and few large shards",
        "Writes README.md with teacher, licence, K, temperatures, sizes and an example, and joins shards so\n"
        "that a folder has fewer than 10,000 files. No plan, log, status, path, worker's name, rejected or\n"
        "deleted record is published. Repeat the command to go on, or to bring it up to date.",
        "publish labels/store hub/store --repo me/labels-of-teacher",
        "publish s3://bucket/store s3://public/store --licence apache-2.0",
    )
    parser.add_argument("store", metavar="SRC", help="a store, at any address")
    parser.add_argument("out", metavar="DST", help="a folder or URL that can be written")
    parser.add_argument("--json", action="store_true", help="one JSON object with the counts")
    parser.add_argument(
        "--repo", metavar="OWNER/NAME", default="OWNER/NAME", help="of the Hub, for the card's example"
    )
    parser.add_argument(
        "--licence", metavar="NAME", default="", help="of the labels (default: what the teacher's page says)"
    )
    parser.add_argument(
        "--new-card", action="store_true", help="write README.md anew; without it one that is there stays"
    )
    parser.add_argument(
        "--beside-job", action="store_true", help="publish what is committed while a job labels SRC"
    )
    parser.add_argument(
        "--allow-paths",
        action="store_true",
        help="publish also what says a place on a machine: a path in a file of the tokenizer, in a setting "
        "or in a record's id (without it such a store is refused)",
    )
    parser.add_argument(
        "--out-storage-options",
        metavar="FILE",
        type=Path,
        help="--storage-options of DST (default: those of SRC)",
    )
