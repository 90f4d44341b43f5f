"""`python -m cluster`: run labeling jobs on a Ray cluster, and describe such clusters."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cluster.errors import ClusterError
from labeler.config.loading import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; the exit status (documented in `--help`)."""
    try:
        from cluster.arguments import build_parser  # here, so that what is not installed is named below

        args = build_parser().parse_args(argv)
        return args.run(args)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("cluster", "labeler", "logitstore"):
            raise
        print(
            f"cluster: the package {error.name!r} is not installed: pip install 'penumbra[cluster]'",
            file=sys.stderr,
        )
        return 2
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return error.exit_status
    except ConfigError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a file that cannot be written, or a job that takes longer than it may
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cluster: interrupted; a submitted job goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
