"""`python -m cluster`: run labeling jobs on a Ray cluster, and describe such clusters."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cluster.arguments import build_parser
from cluster.errors import ClusterError
from labeler.config import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; the exit status (documented in `--help`)."""
    args: argparse.Namespace = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return error.exit_status
    except ConfigError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    except TimeoutError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cluster: interrupted; a submitted job goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
