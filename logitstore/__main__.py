"""`python -m logitstore`: look into, check, convert and join stores."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from logitstore.cli import context, looking, making, mending
from logitstore.cli.parser import build_parser
from logitstore.errors import (
    InputNotFoundError,
    SecretInManifestError,
    StoreChangedError,
    StoreError,
    StoreExistsError,
    StoreNotFoundError,
    TemperatureError,
    UnsupportedInputError,
)
from logitstore.viewer import cli as viewer_cli

COMMANDS = {
    "inspect": looking.inspect,
    "verify": looking.verify,
    "head": looking.head,
    "cat": looking.cat,
    "export": making.export,
    "import": making.import_store,
    "merge": making.merge,
    "codebook": making.codebook,
    "compact": making.compact,
    "rebuild-index": mending.rebuild_index,
    "uncommit": mending.uncommit,
    "view": viewer_cli.run,
}
USAGE_ERRORS = (
    InputNotFoundError,
    SecretInManifestError,
    StoreChangedError,
    StoreExistsError,
    StoreNotFoundError,
    TemperatureError,
    UnsupportedInputError,
)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return COMMANDS[args.command](args)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return context.OK
    except KeyboardInterrupt:
        return context.INTERRUPTED
    except USAGE_ERRORS as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return context.USAGE
    except (StoreError, OSError) as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return context.FAILED


if __name__ == "__main__":
    sys.exit(main())
