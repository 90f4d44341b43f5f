"""`penumbra cluster`: run labeling jobs on a Ray cluster, and describe such clusters."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from logitstore.common.command import Program, run_program

PROGRAM = Program(
    name="cluster",
    description="""\
Run labeling jobs on a Ray cluster, from a machine that needs neither a GPU nor vLLM.

  penumbra cluster up --local 2                     a cluster on this machine, to try things out
  penumbra cluster submit job.toml --follow         check the job, send it, show its log to the end
  penumbra cluster status                           how far it is: units, rows, tokens per second
  penumbra cluster stop ID ; resume ID              drain it; continue where it stopped
  penumbra cluster dashboard http://HEAD:8265       all jobs and what they labeled, as a page
  penumbra cluster down

The cluster is --address, else RAY_API_SERVER_ADDRESS, else the local one that is up.
""",
    extra="cluster",
    interrupted="interrupted; a submitted job goes on",
)


def main(argv: Sequence[str] | None = None) -> int:
    def command() -> int:
        from cluster.arguments import build_parser  # here, so that what is not installed is named

        args = build_parser(PROGRAM).parse_args(argv)
        return args.run(args)

    return run_program(PROGRAM, command)


if __name__ == "__main__":
    sys.exit(main())
