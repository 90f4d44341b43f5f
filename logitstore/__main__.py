"""`penumbra store`: look into, check, convert and join stores."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from logitstore.cli import exporting, looking, making, mending, publishing, retokenizing
from logitstore.cli.parser import PROGRAM, build_parser
from logitstore.common.command import run_program
from logitstore.viewer import cli as viewer_cli

COMMANDS = {
    "inspect": looking.inspect,
    "verify": looking.verify,
    "head": looking.head,
    "cat": looking.cat,
    "export": exporting.export,
    "import": making.import_store,
    "merge": making.merge,
    "mix": making.mix,
    "retokenize": retokenizing.retokenize,
    "copy": making.copy,
    "publish": publishing.publish,
    "codebook": making.codebook,
    "compact": mending.compact,
    "rebuild-index": mending.rebuild_index,
    "uncommit": mending.uncommit,
    "delete": mending.delete,
    "view": viewer_cli.run,
}


def main(argv: Sequence[str] | None = None) -> int:
    def command() -> int:
        args = build_parser().parse_args(argv)
        return COMMANDS[args.command](args)

    return run_program(PROGRAM, command)


if __name__ == "__main__":
    sys.exit(main())
