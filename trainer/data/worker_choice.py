"""How many of the loader workers that were asked for are of use.

Workers take every n-th step. Where the shards that are read side by side do not divide among them, several
read the same shard, and each decodes all of its blocks: eight workers at six shards do the decoding four
times. A smaller number may be faster, and never waits for cores that are busy with what another did too.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

LOOKED_STEPS = 512
"""Steps by which it is judged."""


def useful_workers(shards_by_step: Sequence[Collection[Hashable]], asked: int, cores: int) -> int:
    """The number, at most `asked`, that is through the steps first; the largest of those that are alike.

    `shards_by_step` names the shards that each step reads. Decoding a step's labels once takes about as long
    as making its batch.
    """
    visits = {shard for step in shards_by_step for shard in step}
    if not visits:
        return asked

    def seconds(workers: int) -> float:
        read = {(number % workers, shard) for number, step in enumerate(shards_by_step) for shard in step}
        return (len(read) / len(visits) + 1) / min(workers, cores)

    return min(range(asked, 0, -1), key=seconds)
