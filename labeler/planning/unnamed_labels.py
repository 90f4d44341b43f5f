"""Labels at the place of a job that no index names: told, or refused, before they are labeled again."""

from __future__ import annotations

from labeler.config.loading import JobConfig
from labeler.config.run_settings import MOST_LEASES
from logitstore.common.config_file import ConfigError
from logitstore.errors import IndexLostError, StoreNotFoundError
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore

STOPPED_RUNS = 10
"""Runs stopped before their first commit whose shards a job takes for what they are."""


def check_unnamed_labels(job: JobConfig, objects: Objects) -> str:
    """A sentence about shards that nothing names in a store without units; "" where there are none.

    Raises ConfigError if the index or the manifest is lost, or if there are more such shards than stopped
    runs leave: workers.replicas times workers.leases (at most) each.
    """
    output = job.output
    try:
        store = LogitStore.open(output.uri, storage_options=output.storage_options, writing=True)
    except StoreNotFoundError:
        return ""
    except IndexLostError as error:
        raise ConfigError(f"output.uri: {error}") from None
    if len(store.shards()):
        return ""
    shards = store.unnamed_shards()
    if not shards:
        return ""
    num_bytes = sum(info.num_bytes for info in shards)
    what = f"{len(shards):,} shards ({num_bytes:,} bytes) lie in {objects.uri} that no index names"
    at_most = STOPPED_RUNS * job.workers.replicas * (job.workers.leases or MOST_LEASES)
    if len(shards) > at_most:
        raise ConfigError(
            f"output.uri: {what}, more than the {at_most:,} that {STOPPED_RUNS} runs leave which are stopped "
            f"before their first commit, so the index may be lost; `penumbra store rebuild-index "
            f"{objects.uri}` takes them into the index, or choose another output.uri"
        )
    return (
        f"{what}, left by a run that was stopped before its first commit: their records are labeled again "
        f"(`penumbra store rebuild-index {objects.uri}` would take them into the index instead)"
    )
