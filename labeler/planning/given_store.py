"""The store whose ids the rows of a job shall have (`labels.given`): opened, and fit for it or refused."""

from __future__ import annotations

from labeler.config.loading import JobConfig
from labeler.planning.plan_objects import MADE_FROM_KEY, load_object
from logitstore.common.config_file import ConfigError
from logitstore.common.secrets import redact_text, redact_uri
from logitstore.errors import StoreChangedError, StoreError
from logitstore.job_objects import PLAN_HEAD_NAME
from logitstore.manifest.fields import TokenizerInfo
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore

GIVEN_IDS = "store of given ids"
"""Among what the plan was made from."""


def open_given(job: JobConfig) -> LogitStore:
    """The store. Raises StoreError and OSError where there is none to be read."""
    return LogitStore.open(job.labels.given, storage_options=job.input.storage_options)


def given_ids_of(store: LogitStore) -> str:
    """What the plan keeps of a store of given ids."""
    return f"blake2b:{store.digest}"


def open_planned(job: JobConfig, objects: Objects) -> LogitStore:
    """The store for a worker of the job whose plan lies in `objects`.

    Raises StoreChangedError where it is not as it was when the job was planned: replicas that began at other
    times would be given other ids. StoreError and OSError where there is none to be read.
    """
    store = open_given(job)
    planned = load_object(objects, PLAN_HEAD_NAME).get(MADE_FROM_KEY, {}).get(GIVEN_IDS)
    if planned != given_ids_of(store):
        raise StoreChangedError(
            f"labels.given = {redact_uri(job.labels.given)!r} has changed since the job was planned "
            f"({given_ids_of(store)}, and {planned} then); all labels of a store are made alike: restore it "
            "as it was, or choose another output.uri"
        )
    return store


def check_given(job: JobConfig, tokenizer: TokenizerInfo) -> None:
    """Raises ConfigError for no store, and for one whose ids mean other tokens or are fewer than wanted."""
    if not job.labels.given:
        return
    shown = redact_uri(job.labels.given)
    try:
        manifest = open_given(job).manifest
    except (StoreError, OSError) as error:
        raise ConfigError(
            f"labels.given = {shown!r} cannot be read ({redact_text(str(error))}); give the store of labels "
            "whose ids are wanted, and check input.storage_options and the credentials in the environment"
        ) from None
    if manifest.labels.support == "none":
        raise ConfigError(
            f"labels.given = {shown!r} holds texts alone, which give no ids; name a store of label rows"
        )
    theirs = manifest.tokenizer.fingerprint
    if theirs and theirs != tokenizer.fingerprint:
        raise ConfigError(
            f"labels.given = {shown!r} has ids of another tokenizer ({theirs[:23]}...) than the teacher's "
            f"({tokenizer.fingerprint[:23]}...); map it first: penumbra store retokenize"
        )
    top_k, wanted = manifest.labels.top_k, job.labels.top_k
    if wanted > top_k or (wanted < top_k and manifest.labels.support == "given"):
        raise ConfigError(
            f"labels.top_k = {wanted}, and the rows of labels.given = {shown!r} have {top_k} ids"
            + (", of which none comes first" if wanted < top_k else "")
            + f"; set labels.top_k = {top_k}"
            + (" or less" if manifest.labels.support == "top" else "")
        )
