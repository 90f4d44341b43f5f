"""Labels at the ids of another store: from the job's settings to the store, without Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labeler.config.loading import identity, load_job
from labeler.errors import OtherSettingsError
from labeler.planning.plan import Plan
from labeler.planning.preflight import prepare
from labeler.planning.provenance import provenance_of
from labeler.records import Lease
from labeler.teacher.fake import FakeTeacher
from labeler.teacher.label_rows import ColumnLayout, columns_from_logits, rows_from_columns
from labeler.worker.actor import Worker
from logitstore.__main__ import main
from logitstore.common.config_file import ConfigError
from logitstore.errors import StoreChangedError, StoreError
from logitstore.exchange.mix import mix_stores
from logitstore.manifest.fields import GIVEN_ENTRIES, SEGMENTS, TEXTS_ONLY
from logitstore.records import LabeledSequence, LabelRows
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.labeler.jobs import label_and_commit
from tests.labeler.worker.test_actor import records, set_up, store_of

NUM_IDS = 5


def first_store(place: Path, items: list[dict[str, Any]], *overrides: str) -> LogitStore:
    """What a first teacher might have stored of the items: its own ids, and a row that does not count."""
    place.mkdir()
    worker, units, setup = set_up(place, items, f"labels.top_k={NUM_IDS}", *overrides)
    for number, unit in enumerate(units):
        label_and_commit(worker, Lease(number, unit, "w"))
    setup.finish()
    worker.close()
    labeled = store_of(place)
    store = LogitStore.create(place / "first", labeled.manifest)
    rng = np.random.default_rng(0)
    store.commit_unit(
        "u", 0, [_other_ids(one, rng) for one in labeled.iter_sequences()], seconds=0.0, worker="test"
    )
    return store


def _other_ids(sequence: LabeledSequence, rng: np.random.Generator) -> LabeledSequence:
    num_rows = sequence.rows.num_rows
    logits_NV = rng.normal(0, 3, (num_rows, 512)).astype(np.float32)
    ids_NK = np.argsort(-logits_NV, axis=1)[:, :NUM_IDS]
    ids_NK[::3, 2:] = -1
    layout = ColumnLayout(NUM_IDS, (1.0, 2.0, 4.0))
    labels_N = sequence.token_ids_T[sequence.label_start :]
    rows = rows_from_columns(columns_from_logits(logits_NV, labels_N, layout, ids_NK), layout, 512)
    mask_N = sequence.loss_mask_N.copy()
    mask_N[1] = False
    return replace(sequence, rows=rows, loss_mask_N=mask_N)


def label_at(place: Path, items: list[dict[str, Any]], given: LogitStore, *overrides: str) -> LogitStore:
    place.mkdir(exist_ok=True)
    worker, units, setup = set_up(
        place, items, f"labels.given='{given.uri}'", f"labels.top_k={NUM_IDS}", *overrides
    )
    for number, unit in enumerate(units):
        label_and_commit(worker, Lease(number, unit, "w"))
    setup.finish()
    worker.close()
    return store_of(place)


def test_rows_are_the_teachers_at_the_other_stores_ids(tmp_path: Path) -> None:
    items = records(6)
    first = first_store(tmp_path / "a", items)
    second = label_at(tmp_path / "b", items, first)
    assert not verify_store(second).errors
    assert second.manifest.labels.support == "given"
    assert second.manifest.features == (SEGMENTS, GIVEN_ENTRIES)
    made_from: Any = second.manifest.config["prompts_made_from"]
    assert made_from["store of given ids"] == f"blake2b:{first.digest}"
    with pytest.raises(StoreError, match="given"):
        list(second.iter_sequences(top_k=2))
    job = load_job(None, ["teacher.engine=fake", "input.uri=in", "input.kind=text", "output.uri=out"], {})
    teacher = FakeTeacher(job.teacher, job.labels, job.sampling)
    for theirs, found in zip(first.iter_sequences(), second.iter_sequences(), strict=True):
        assert found.token_ids_T.tolist() == theirs.token_ids_T.tolist()
        np.testing.assert_array_equal(found.loss_mask_N, theirs.loss_mask_N)
        logits_NV = teacher._logits(found.token_ids_T[:-1], found.label_start - 1).astype(np.float64)
        for row, logits_V in enumerate(logits_NV):
            count = int(theirs.rows.count_N[row])
            ids = found.rows.token_ids_NK[row, :count]
            assert found.rows.count_N[row] == count
            assert sorted(ids.tolist()) == sorted(theirs.rows.token_ids_NK[row, :count].tolist())
            np.testing.assert_allclose(found.rows.logits_NK[row, :count], logits_V[ids], atol=5e-3)
            for index, temperature in enumerate((1.0, 2.0, 4.0)):
                whole = np.logaddexp.reduce(logits_V / temperature)
                outside = np.logaddexp.reduce(np.delete(logits_V, ids) / temperature) - whole
                assert found.rows.logsumexp_NM[row, index] == pytest.approx(whole, abs=1e-3)
                assert found.rows.log_tail_mass_NM[row, index] == pytest.approx(outside, abs=5e-3)


def test_a_row_behind_the_last_token_is_left_out(tmp_path: Path) -> None:
    """Stores from elsewhere have one: the distribution of the token that would come next."""
    items = records(2)
    first = first_store(tmp_path / "a", items)
    longer = LogitStore.create(tmp_path / "longer", first.manifest)
    sequences = []
    for one in first.iter_sequences():
        last = [*range(one.rows.num_rows), one.rows.num_rows - 1]
        rows = LabelRows(*(getattr(one.rows, name)[last] for name in LabelRows.__slots__))
        sequences.append(replace(one, rows=rows, loss_mask_N=one.loss_mask_N[last]))
    longer.commit_unit("u", 0, sequences, seconds=0.0, worker="test")
    assert not verify_store(longer).errors
    found = label_at(tmp_path / "c", items, longer)
    wanted = label_at(tmp_path / "b", items, first)
    for one, other in zip(found.iter_sequences(), wanted.iter_sequences(), strict=True):
        np.testing.assert_array_equal(one.rows.token_ids_NK, other.rows.token_ids_NK)
        np.testing.assert_array_equal(one.loss_mask_N, other.loss_mask_N)


def test_both_teachers_mix_over_all_ids_of_the_first(tmp_path: Path) -> None:
    items = records(3)
    first = first_store(tmp_path / "a", items)
    second = label_at(tmp_path / "b", items, first)
    mixed = mix_stores((first, second), str(tmp_path / "mixed"), weights=(0.25, 0.75))
    for one, both in zip(first.iter_sequences(), mixed.iter_sequences(), strict=True):
        np.testing.assert_array_equal(both.rows.count_N, one.rows.count_N)


def test_responses_of_a_first_teacher_are_scored_where_it_has_rows(tmp_path: Path) -> None:
    """Exported tokens, as a second teacher reads those that a first one wrote: no prompt is told apart."""
    first = first_store(tmp_path / "a", records(2))
    exported = tmp_path / "first.parquet"
    assert main(["export", first.uri, str(exported), "--to", "parquet", "--quiet"]) == 0
    settings = (
        f"input.uri='{exported}'",
        "input.id=record_id",
        f"labels.given='{first.uri}'",
        f"labels.top_k={NUM_IDS}",
    )
    (tmp_path / "b").mkdir()
    worker, units, setup = set_up(tmp_path / "b", [], *settings, kind="token_ids")
    label_and_commit(worker, Lease(0, units[0], "w"))
    assert (setup.totals.num_planned, setup.totals.num_rejects) == (2, 0)
    for theirs, found in zip(first.iter_sequences(), store_of(tmp_path / "b").iter_sequences(), strict=True):
        assert (found.label_start, found.rows.num_rows) == (theirs.label_start, theirs.rows.num_rows)
        np.testing.assert_array_equal(found.rows.count_N, theirs.rows.count_N)


def test_one_of_several_responses_is_scored_and_mixed(tmp_path: Path) -> None:
    """As the labeler's page says."""
    (tmp_path / "a").mkdir()
    settings = ["labels.mode=generate", "sampling.n=3", "sampling.max_tokens=6", f"labels.top_k={NUM_IDS}"]
    worker, units, _ = set_up(tmp_path / "a", records(2), *settings, kind="prompt")
    label_and_commit(worker, Lease(0, units[0], "w"))
    one, exported = tmp_path / "one", tmp_path / "one.parquet"
    select = ["merge", f"{tmp_path}/a/store", "--out", str(one), "--where", "sample_index = 0", "--quiet"]
    assert main(select) == 0
    assert main(["export", str(one), str(exported), "--to", "parquet", "--quiet"]) == 0
    first = LogitStore.open(one)
    settings = [f"input.uri='{exported}'", "input.id=record_id", "input.kind=token_ids"]
    second = label_at(tmp_path / "b", [], first, *settings)
    mixed = mix_stores((first, second), str(tmp_path / "mixed"), weights=(0.5, 0.5))
    assert [sequence.record_id for sequence in mixed.iter_sequences()] == ["0", "1"]


def test_records_without_ids_become_rejects(tmp_path: Path) -> None:
    first = first_store(tmp_path / "a", records(2))
    items = [*records(3), {"prompt": "question 1", "response": "answer 1", "uid": "x"}]
    items[0]["response"] = "another answer"
    second = label_at(tmp_path / "b", items, first)
    assert [one.record_id for one in second.iter_sequences()] == ["1"]
    reasons = {reject.record_id: (reject.kind, reject.reason) for reject in second.rejects()}
    assert {kind for kind, _ in reasons.values()} == {"no_given_ids"}
    assert "other tokens in" in reasons["0"][1]
    assert all("is not in" in reasons[name][1] for name in ("2", "x"))


def test_fewer_ids_are_the_likeliest_of_the_first_store(tmp_path: Path) -> None:
    items = records(2)
    first = first_store(tmp_path / "a", items)
    second = label_at(tmp_path / "b", items, first, "labels.top_k=2")
    for theirs, found in zip(first.iter_sequences(), second.iter_sequences(), strict=True):
        assert found.rows.token_ids_NK.shape[1] == 2
        for row in range(found.rows.num_rows):
            assert set(found.rows.token_ids_NK[row]) == set(theirs.rows.token_ids_NK[row, :2])
    with pytest.raises(ConfigError, match=r"top_k = 1.*have 2 ids, of which none comes first.*top_k = 2"):
        label_at(tmp_path / "c", items, second, "labels.top_k=1")


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (["labels.mode=generate", "input.kind=prompt"], 'labels.mode = "score"'),
        (["teacher.engine=vllm", "teacher.model=m", "teacher.capture=public_api"], "whole distribution"),
        (
            [
                "teacher.engine=openai",
                "teacher.model=m",
                "teacher.api.base_url='http://127.0.0.1:1/v1'",
                "labels.temperatures=[1.0]",
            ],
            "whole distribution",
        ),
    ],
)
def test_jobs_that_cannot_have_given_ids_are_refused(settings: list[str], rule: str) -> None:
    base = ["teacher.engine=fake", "input.uri=in", "input.kind=prompt_response", "output.uri=out"]
    with pytest.raises(ConfigError, match=rule):
        load_job(None, [*base, "labels.given=first", *settings], {})


def test_stores_that_cannot_give_ids_are_refused(tmp_path: Path) -> None:
    items = records(2)
    first = first_store(tmp_path / "a", items)
    for name, change in (
        ("other", {"tokenizer": replace(first.manifest.tokenizer, fingerprint="sha256:" + "1" * 64)}),
        (
            "texts",
            {
                "labels": replace(first.manifest.labels, support="none", top_k=1, temperatures=(1.0,)),
                "features": (SEGMENTS, TEXTS_ONLY),
            },
        ),
    ):
        LogitStore.create(tmp_path / name, replace(first.manifest, **change))
    (tmp_path / "b").mkdir()
    for given, settings, rule in (
        (tmp_path / "nothing", [], "cannot be read"),
        (tmp_path / "other", [], "another tokenizer"),
        (tmp_path / "texts", [], "texts alone"),
        (first.uri, [f"labels.top_k={NUM_IDS + 1}"], f"set labels.top_k = {NUM_IDS} or less"),
    ):
        with pytest.raises(ConfigError, match=rule):
            set_up(tmp_path / "b", items, f"labels.given='{given}'", f"labels.top_k={NUM_IDS}", *settings)


def test_a_job_goes_on_with_the_same_ids_alone_wherever_they_lie(tmp_path: Path) -> None:
    items = records(2)
    first = first_store(tmp_path / "a", items)
    other = first_store(tmp_path / "c", records(3))
    (tmp_path / "b").mkdir()
    _, _, setup = set_up(tmp_path / "b", items, f"labels.given='{first.uri}'", f"labels.top_k={NUM_IDS}")

    def claim(uri: str) -> str:
        job = setup.job.model_copy(update={"labels": setup.job.labels.model_copy(update={"given": uri})})
        prepared = prepare(job)
        made_from = provenance_of(job, prepared.tokenizer)
        return Plan(prepared.objects).claim(identity(job), made_from, has_manifest=True, num_labeled=1)

    assert claim(first.uri) == ""
    Path(first.uri).rename(tmp_path / "moved")
    assert claim(str(tmp_path / "moved")) == ""
    with pytest.raises(OtherSettingsError, match="the store of given ids is another one"):
        claim(other.uri)
    assert "labels.given" not in json.dumps(identity(setup.job))


def test_a_worker_that_begins_later_is_not_given_other_ids(tmp_path: Path) -> None:
    """A replica that is started anew opens the store of given ids again, which may have grown."""
    items = records(8)
    first = first_store(tmp_path / "a", items[:4])
    (tmp_path / "b").mkdir()
    settings = (f"labels.given='{first.uri}'", f"labels.top_k={NUM_IDS}")
    worker, units, setup = set_up(tmp_path / "b", items, *settings)
    label_and_commit(worker, Lease(0, units[0], "w"))
    more = first_store(tmp_path / "c", items[4:])
    first.commit_unit("v", 1, list(more.iter_sequences()), seconds=0.0, worker="test")
    later = Worker(setup.job, "worker-0.1", setup.prepared.tokenizer.ends)
    later.start(None)
    with pytest.raises(StoreChangedError, match=r"labels\.given = .* has changed since the job was planned"):
        later.label_unit(Lease(1, units[1], "w"))
    assert label_and_commit(worker, Lease(2, units[1], "w")).entry.num_rejects == 4, "what it has read stays"
