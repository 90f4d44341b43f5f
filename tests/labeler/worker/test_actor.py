"""The worker without Ray: units in, commits out, whatever goes wrong in between."""

import json
import pickle
import threading
import time
from dataclasses import replace

import pytest

from labeler.config.loading import JobConfig, load_job
from labeler.errors import EngineDiedError, TeacherMismatchError
from labeler.job.store_setup import StoreSetup
from labeler.records import GaveBack, Lease, PassedTrial
from labeler.teacher.protocol import build_teacher
from logitstore.errors import ObjectStoreError
from logitstore.manifest.fields import SEGMENTS
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.labeler.jobs import label_and_commit, planned


def records(count):
    return [{"prompt": f"question {i}", "response": f"answer {i}", "uid": i} for i in range(count)]


def set_up(tmp_path, items, *overrides, kind="prompt_response"):
    """A planned store with a started worker."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    base = [
        "teacher.engine=fake",
        f"input.uri='{tmp_path}/in.jsonl'",
        f"input.kind={kind}",
        "input.id=uid",
        "labels.top_k=8",
        f"output.uri='{tmp_path}/store'",
        "output.unit_size=4",
        "output.codebook_units=0",
    ]
    return planned(load_job(None, [*base, *overrides], {}))


def store_of(tmp_path):
    return LogitStore.open(tmp_path / "store")


def test_a_unit_is_committed_in_the_order_of_the_input(tmp_path):
    items = [{"prompt": "q", "response": "a" * (9 - i), "uid": i} for i in range(3)]
    items.append({"prompt": "q", "response": "a" * 30, "uid": 3})
    worker, units, setup = set_up(tmp_path, items)
    result = label_and_commit(worker, Lease(7, units[0], "w"))
    assert (result.lease_id, result.won) == (7, True)
    assert (result.entry.num_sequences, result.entry.num_rejects) == (4, 0)
    sequences = list(store_of(tmp_path).iter_sequences())
    assert [sequence.record_id for sequence in sequences] == ["0", "1", "2", "3"]
    job, prepared = setup.job, setup.prepared
    teacher = build_teacher(job.teacher, job.labels, job.sampling, cores=None)
    assert sequences[0].prompt_length == len("<user\nq>\n<assistant\n") - 2 + 2
    assert len(sequences[0].token_ids_T) - sequences[0].prompt_length == 10
    assert sequences[0].rows.num_rows == 10
    assert teacher.describe().vocab_size == prepared.limits.vocab_size
    heartbeat = worker.heartbeat()
    assert (heartbeat.num_sequences, heartbeat.in_engine, worker._buffered_bytes) == (4, (), 0)
    assert heartbeat.num_tokens == result.entry.num_tokens


def test_the_same_unit_twice_is_committed_once(tmp_path):
    worker, units, _ = set_up(tmp_path, records(4))
    assert label_and_commit(worker, Lease(0, units[0], "w")).won
    assert not label_and_commit(worker, Lease(1, units[0], "w")).won
    assert len(store_of(tmp_path).shards()) == 1


def test_a_trial_commits_nothing(tmp_path):
    worker, units, _ = set_up(tmp_path, records(4))
    result = worker.label_unit(Lease(0, units[0], "w", trial=(1, 2)))
    assert isinstance(result, PassedTrial)
    assert result.lease_id == 0
    assert result.engine_sec > 0
    assert worker.heartbeat().num_sequences == 2
    assert len(store_of(tmp_path).shards()) == 0


def test_convicted_records_become_rejects(tmp_path):
    worker, units, _ = set_up(tmp_path, records(4))
    result = label_and_commit(worker, Lease(0, units[0], "w", skip=((2, "it killed"),)))
    assert [reject.kind for reject in result.rejects] == ["killed_engine"]
    store = store_of(tmp_path)
    assert [sequence.record_id for sequence in store.iter_sequences()] == ["0", "1", "3"]
    reject = store.rejects()[0]
    assert (reject.file, reject.line, reject.record_id, reject.reason) == ("in.jsonl", 3, "2", "it killed")


def test_a_fatal_token_ends_the_worker_for_good(tmp_path):
    items = [*records(3), {"prompt": "q~", "response": "a", "uid": "bad"}]
    worker, units, _ = set_up(tmp_path, items, f"teacher.fake.fatal_token_id={ord('~')}")
    for lease_id in range(2):
        with pytest.raises(EngineDiedError, match="fatal token 126") as caught:
            worker.label_unit(Lease(lease_id, units[0], "w"))
        assert caught.value.culprits == (0,), "the second lease is not to blame"
        assert pickle.loads(pickle.dumps(caught.value)).culprits == (0,)
    assert worker.heartbeat().in_engine == (0,), "the driver must know whom to blame"


def test_filtered_responses_are_listed_and_the_others_flagged(tmp_path):
    items = [{"prompt": f"q{i}", "uid": i} for i in range(4)]
    overrides = ("labels.mode=generate", "sampling.max_tokens=12", "sampling.n=2", "filters.truncated=flag")
    worker, units, _ = set_up(tmp_path, items, *overrides, "filters.max_tokens=8", kind="prompt")
    results = [label_and_commit(worker, Lease(i, unit, "w")) for i, unit in enumerate(units)]
    stored = list(store_of(tmp_path).iter_sequences())
    rejects = store_of(tmp_path).rejects()
    found = sum(result.filtered.get("too_long", 0) for result in results)
    assert len(stored) + found == 8
    assert len(rejects) == found > 0
    assert {reject.kind for reject in rejects} == {"filter_too_long"}
    assert all("of 2: the response has" in reject.reason for reject in rejects)


def test_a_leaving_worker_gives_back_what_it_has_not_begun(tmp_path):
    worker, units, _ = set_up(tmp_path, records(4))
    worker.leave()
    assert worker.label_unit(Lease(0, units[0], "w")) == GaveBack(0)
    assert len(store_of(tmp_path).shards()) == 0
    worker.close()


def test_failing_storage_is_tried_again_with_the_labels_kept(tmp_path, monkeypatch):
    worker, units, _ = set_up(tmp_path, records(4))
    commit, failures = LogitStore.commit_unit, []

    def flaky(self, *args, **kwargs):
        if len(failures) < 2:
            failures.append(1)
            raise ObjectStoreError("503")
        return commit(self, *args, **kwargs)

    monkeypatch.setattr(LogitStore, "commit_unit", flaky)
    monkeypatch.setattr("labeler.patience.FIRST_PAUSE_SEC", 0.01)
    label_and_commit(worker, Lease(0, units[0], "w"))
    assert len(failures) == 2
    assert worker.heartbeat().num_sequences == 4, "labeled once"


def test_a_store_that_cannot_be_opened_yet_is_tried_again_while_the_heart_beats(tmp_path, monkeypatch):
    worker, units, _ = set_up(tmp_path, records(4))
    open_store, beats = LogitStore.open, []

    def flaky(*args, **kwargs):
        if len(beats) < 2:
            beat = threading.Thread(target=lambda: beats.append(worker.heartbeat()), daemon=True)
            beat.start()
            beat.join(30)
            raise ObjectStoreError("503")
        return open_store(*args, **kwargs)

    monkeypatch.setattr(LogitStore, "open", flaky)
    monkeypatch.setattr("labeler.patience.FIRST_PAUSE_SEC", 0.01)
    label_and_commit(worker, Lease(0, units[0], "w"))
    assert [beat.progress for beat in beats] == [0, 1], "waiting for storage keeps the lease"


def test_storage_that_stays_away_fails_the_unit_in_set_time(tmp_path, monkeypatch):
    worker, units, _ = set_up(tmp_path, records(4), "output.retry_sec=0.2")

    def dead(self, *args, **kwargs):
        raise ObjectStoreError("no route")

    monkeypatch.setattr(LogitStore, "commit_unit", dead)
    monkeypatch.setattr("labeler.patience.FIRST_PAUSE_SEC", 0.05)
    with pytest.raises(ObjectStoreError, match="no route"):
        label_and_commit(worker, Lease(0, units[0], "w"))
    assert worker._buffered_bytes == 0


def test_the_engine_waits_while_too_many_labels_wait_to_be_written(tmp_path, monkeypatch):
    worker, units, _ = set_up(tmp_path, records(8))
    monkeypatch.setattr("labeler.worker.actor.MAX_BUFFERED_BYTES", 1)
    commit, gate = LogitStore.commit_unit, threading.Event()

    def slow(self, *args, **kwargs):
        gate.wait(60)
        return commit(self, *args, **kwargs)

    monkeypatch.setattr(LogitStore, "commit_unit", slow)
    first = threading.Thread(target=worker.label_unit, args=(Lease(0, units[0], "w"),))
    first.start()
    while worker._buffered_bytes == 0 or worker.heartbeat().in_engine:
        time.sleep(0.001)
    second = threading.Thread(target=worker.label_unit, args=(Lease(1, units[1], "w"),))
    second.start()
    second.join(0.5)
    assert worker.heartbeat().num_sequences == 4, "the second unit is not in the engine yet"
    gate.set()
    first.join(60)
    second.join(60)
    assert len(store_of(tmp_path).shards()) == 2


def test_labels_of_another_head_do_not_join_a_store(tmp_path):
    """A job begun with rounded logits goes on only where they are rounded; the remedy names the setting."""
    _, _, setup = set_up(tmp_path, [{"prompt": "q", "response": "a", "uid": 0}])
    found = build_teacher(setup.job.teacher, setup.job.labels, setup.job.sampling, cores=None).describe()
    with_sums = replace(found, info=replace(found.info, dtype="bfloat16_float32_sums"))
    later = StoreSetup(setup.job, setup.prepared, setup.totals, lambda _: None)
    with pytest.raises(TeacherMismatchError, match=r"teacher\.dtype is .*teacher\.head_dtype decides on the"):
        later.take_description(with_sums)


def test_conversations_get_segments_and_texts_get_none(tmp_path):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>a</think>b"}]
    for name in ("chat", "text"):
        (tmp_path / name).mkdir()
    worker, units, _ = set_up(tmp_path / "chat", [{"messages": chat, "uid": 0}], kind="messages")
    label_and_commit(worker, Lease(0, units[0], "w"))
    store = store_of(tmp_path / "chat")
    (found,) = store.iter_sequences()
    assert store.manifest.features == (SEGMENTS,)
    assert found.segments_T is not None
    assert found.segments_T.tolist() == [0] * found.prompt_length + [2] * 17 + [4], "no marks, all is answer"
    assert not verify_store(store).errors
    worker, units, _ = set_up(tmp_path / "text", [{"text": "plain", "uid": 0}], kind="text")
    label_and_commit(worker, Lease(0, units[0], "w"))
    store = store_of(tmp_path / "text")
    assert store.manifest.features == ()
    assert next(iter(store.iter_sequences())).segments_T is None


def test_a_store_begun_without_segments_goes_on_without_them(tmp_path, monkeypatch):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    items = [{"messages": chat, "uid": number} for number in range(5)]
    with monkeypatch.context() as older:
        older.setattr(JobConfig, "has_segments", False)
        worker, units, _ = set_up(tmp_path, items, kind="messages")
        label_and_commit(worker, Lease(0, units[0], "w"))
    worker, units, _ = set_up(tmp_path, items, kind="messages")
    label_and_commit(worker, Lease(1, units[1], "w"))
    store = store_of(tmp_path)
    assert len(list(store.iter_sequences())) == 5
    assert all(one.segments_T is None for one in store.iter_sequences())


def test_a_store_goes_on_however_the_place_of_its_input_is_written(tmp_path, monkeypatch):
    """From another folder, and sent to a cluster, where a copy of the same input lies elsewhere."""
    items = records(12)
    worker, units, _ = set_up(tmp_path, items)
    label_and_commit(worker, Lease(0, units[0], "w"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "in.jsonl").write_bytes((tmp_path / "in.jsonl").read_bytes())
    known_as = f"input.known_as='{tmp_path}/in.jsonl'"
    for number, settings in enumerate((["input.uri=in.jsonl"], ["input.uri=sent/in.jsonl", known_as]), 1):
        worker, units, setup = set_up(tmp_path, items, *settings)
        assert setup.prepared.input_info.uri == ("in.jsonl" if number == 1 else f"{tmp_path}/in.jsonl")
        label_and_commit(worker, Lease(number, units[number], "w"))
    assert len(list(store_of(tmp_path).iter_sequences())) == 12
    assert store_of(tmp_path).manifest.input.uri == f"{tmp_path}/in.jsonl"


@pytest.mark.parametrize(("gpus", "arguments"), [(0, {}), (1, {}), (0.5, {"gpu_memory_utilization": 0.46})])
def test_an_engine_on_a_part_of_a_gpu_takes_that_part_of_its_memory(tmp_path, monkeypatch, gpus, arguments):
    given = []

    def build(teacher, *_, **others):
        given.append(teacher.engine_args)
        return build_teacher(teacher, *_, **others)

    monkeypatch.setattr("labeler.worker.actor.build_teacher", build)
    set_up(tmp_path, records(1), f"workers.gpus={gpus}")
    assert given == [arguments]
