"""`penumbra store view`: serve the page on loopback, or write it as one file."""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from logitstore.cli.context import refuse_unused, warn
from logitstore.cli.selecting import add_selection, selection_of
from logitstore.common.exit_status import EXIT_STATUSES
from logitstore.common.options import add_storage_options, count, positive, read_storage_options
from logitstore.common.whole_file import check_place
from logitstore.errors import StoreError, UnsupportedInputError
from logitstore.manifest.folders import refuse_in_store

if TYPE_CHECKING:
    from logitstore.viewer.overview import StoreView
    from logitstore.viewer.student_view import StudentView

DEFAULT_PORT = 8400
DEFAULT_SEQUENCES = 20
DEFAULT_TOP_K = 32
DESCRIPTION = """\
Show stores as a page: progress, sequences, and the teacher's distribution at every token.

examples:
  penumbra store view runs/demo                      serve on http://127.0.0.1:8400/
  penumbra store view s3://bucket/run --tokenizer models/teacher --port 0
  penumbra store view runs/demo --out labels.html    one file, no server, no network
  penumbra store view runs/demo --student build/student     its bars beside the teacher's, and how they moved
  penumbra store view runs/demo --where 'flags has truncated and num_tokens > 1000'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `view`."""
    parser.description = DESCRIPTION
    parser.epilog = EXIT_STATUSES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("stores", nargs="*", metavar="STORE", help="URI of a store; it may not exist yet")
    parser.add_argument("--port", type=count, help="loopback port, 0 for any free one (default 8400)")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="write one self-contained file instead")
    parser.add_argument(
        "--tokenizer", help="folder or tokenizer.json for the tokens' text (default: the job's)"
    )
    parser.add_argument(
        "--student",
        type=Path,
        metavar="DIR",
        help="folder of a student: its snapshots beside the labels",
    )
    parser.add_argument(
        "--max-sequences", type=positive, help="sequences of each store in --out (default 20)"
    )
    parser.add_argument("--top-k", type=count, help="entries of each label row in --out (default 32; 0: all)")
    add_selection(parser)
    add_storage_options(parser)
    parser.add_argument(
        "--jobs-file", type=Path, help="JSON list of a cluster's jobs, read again at every refresh"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted, or write the file; the exit status."""
    if not args.stores and args.jobs_file is None:
        raise UnsupportedInputError("name at least one STORE, for example: penumbra store view labels/demo")
    if args.out is not None:
        refuse_unused(args, ("port", "jobs_file"), "is for a page that is served, and --out writes a file")
    else:
        refuse_unused(args, ("max_sequences", "top_k"), "is for the file that --out writes")
    return _write(args) if args.out else _serve(args)


def _write(args: argparse.Namespace) -> int:
    from logitstore.viewer.static import write_static_page

    refuse_in_store(args.out, "the page")
    check_place(args.out, filter(None, (args.ids, args.without_ids, args.tokenizer)))
    size = write_static_page(
        args.stores,
        args.out,
        max_sequences=DEFAULT_SEQUENCES if args.max_sequences is None else args.max_sequences,
        top_k=DEFAULT_TOP_K if args.top_k is None else args.top_k or None,
        tokenizer=args.tokenizer,
        storage_options=read_storage_options(args.storage_options),
        selection=selection_of(args),
        student=_student(args),
    )
    print(f"{args.out}: {size:,} bytes")
    return 0


def _warn_of_nothing(view: StoreView) -> None:
    """A job's store may be looked at before it is there; a misspelt place is shown as long as one likes."""
    try:
        view.open()
    except (StoreError, OSError) as error:
        warn("penumbra store view", f"{error} (the page looks again whenever it is asked)")


def _student(args: argparse.Namespace) -> StudentView | None:
    from logitstore.viewer.student_view import StudentView

    return None if args.student is None else StudentView(args.student)


def _serve(args: argparse.Namespace) -> int:
    from logitstore.viewer.overview import StoreView
    from logitstore.viewer.server import ViewerServer

    options = read_storage_options(args.storage_options)
    student = _student(args)
    views = [StoreView(uri, args.tokenizer, options, selection_of(args), student) for uri in args.stores]
    port = DEFAULT_PORT if args.port is None else args.port
    try:
        server = ViewerServer(views, port, args.jobs_file, args.tokenizer)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"port {port} of 127.0.0.1 cannot be had ({error}); choose another with --port, or 0 for any"
        ) from None
    # SIGTERM ends like Ctrl-C; shutdown() would wait for the very thread that runs the handler.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"serving {server.address}  (Ctrl-C ends it)", flush=True)
    try:
        for view in views:
            _warn_of_nothing(view)
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0
