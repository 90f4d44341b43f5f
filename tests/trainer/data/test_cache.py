"""The local cache: bounded, checked, shared, and an error where it cannot work."""

import contextlib
import errno
import os
import threading
from pathlib import Path
from typing import Any, Self

import pytest

from logitstore.errors import CorruptShardError
from logitstore.objects.opening import Objects
from tests.trainer.stores import make_store
from trainer.data.cache import download, shard_cache
from trainer.data.cache.shard_cache import FOLDER_NAME, ShardCache
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader
from trainer.data.sources import StoreSpec
from trainer.errors import CacheTooSmallError, SettingError, TrainingWarning


@pytest.fixture
def remote(tmp_path):
    """A store to be copied; the cache does not care how far away it is."""
    return make_store(tmp_path / "remote", (6, 6, 6, 6))


class CutConnection(Objects):
    """Objects whose reads break off, or lie, as told."""

    def __init__(self, objects: Objects, *, cuts=(), corrupt=0) -> None:
        super().__init__(objects.uri)
        self.cuts, self.corrupt, self.ranges = list(cuts), corrupt, []

    def get_range(self, name, start, end):
        self.ranges.append((start, end))
        if self.cuts and self.cuts.pop(0):
            raise ConnectionResetError("cut")
        data = super().get_range(name, start, end)
        if self.corrupt:
            self.corrupt -= 1
            return bytes(len(data))
        return data


def record_id(samples):
    return samples[0].sequence.record_id


def copies(directory: Path):
    return sorted(path.name for path in directory.joinpath(FOLDER_NAME).glob("*.arrow"))


def test_a_copy_is_the_object(remote, tmp_path):
    cache, entry = ShardCache(tmp_path / "c"), remote.shards()[0]
    with cache.open(remote.objects, entry) as file:
        assert file.read() == remote.objects.get(entry.name)
    assert cache.num_bytes() == entry.num_bytes


def test_a_cut_connection_goes_on_where_it_stopped(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(download, "BACKOFF_SEC", 0.001)
    entry = remote.shards()[0]
    objects = CutConnection(remote.objects, cuts=[False, True, True, False, True])
    with ShardCache(tmp_path / "c").open(objects, entry) as file:
        assert file.read() == remote.objects.get(entry.name)
    starts = [start for start, _ in objects.ranges]
    assert starts[:6] == [0, 1000, 1000, 1000, 2000, 2000]
    assert len(starts) == len(set(starts)) + 3


def test_a_download_that_died_is_continued_by_the_next_process(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(download, "READ_ATTEMPTS", 1)
    cache, entry = ShardCache(tmp_path / "c"), remote.shards()[0]
    with pytest.raises(ConnectionResetError):
        cache.fetch(CutConnection(remote.objects, cuts=[False, False, True]), entry)
    objects = CutConnection(remote.objects)
    cache.fetch(objects, entry)
    assert objects.ranges[0][0] == 2000
    assert copies(tmp_path / "c") == [entry.checksum.partition(":")[2] + ".arrow"]


def test_a_wrong_checksum_is_downloaded_again(remote, tmp_path):
    cache, entry = ShardCache(tmp_path / "c"), remote.shards()[0]
    objects = CutConnection(remote.objects, corrupt=2)
    with cache.open(objects, entry) as file:
        assert file.read() == remote.objects.get(entry.name)
    assert len(objects.ranges) == 3


def test_a_shard_that_is_always_wrong_is_named(remote, tmp_path):
    entry = remote.shards()[0]
    cache = ShardCache(tmp_path / "c")
    with pytest.raises(CorruptShardError, match=f"{entry.name} .* downloaded 3 times"):
        cache.fetch(CutConnection(remote.objects, corrupt=99), entry)
    assert cache.num_bytes() == 0


def test_a_copy_that_went_bad_on_disk_is_replaced(remote, tmp_path):
    cache, entry = ShardCache(tmp_path / "c"), remote.shards()[0]
    cache.fetch(remote.objects, entry)
    (path,) = (tmp_path / "c" / FOLDER_NAME).glob("*.arrow")
    path.write_bytes(b"x" * entry.num_bytes)
    with cache.open(remote.objects, entry) as file:
        assert file.read() == remote.objects.get(entry.name)


def test_the_copy_used_longest_ago_goes_first(remote, tmp_path):
    entries = list(remote.shards())
    limit = sum(sorted(entry.num_bytes for entry in entries)[-2:]) + 10
    cache = ShardCache(tmp_path / "c", limit)
    for number, entry in enumerate((entries[0], entries[1], entries[0])):
        with cache.open(remote.objects, entry) as file:
            os.utime(file.fileno(), (number, number))
    cache.fetch(remote.objects, entries[2])
    assert cache.num_bytes() <= limit
    left = {name.removesuffix(".arrow") for name in copies(tmp_path / "c")}
    assert left == {entries[index].checksum.partition(":")[2] for index in (0, 2)}


def test_copies_being_read_stay_and_too_many_of_them_are_an_error(remote, tmp_path):
    entries = list(remote.shards())
    cache = ShardCache(tmp_path / "c", max(entry.num_bytes for entry in entries) + 10)
    with cache.open(remote.objects, entries[0]) as file:
        with pytest.raises(CacheTooSmallError, match=r"every other copy is being read; raise cache_limit"):
            cache.fetch(remote.objects, entries[1])
        assert file.read() == remote.objects.get(entries[0].name)
    cache.fetch(remote.objects, entries[1])


def test_threads_download_a_shard_once(remote, tmp_path):
    cache, entry, objects = ShardCache(tmp_path / "c"), remote.shards()[0], CutConnection(remote.objects)
    threads = [threading.Thread(target=cache.fetch, args=(objects, entry)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(objects.ranges) == 1


def test_a_reader_waits_for_room_that_others_are_about_to_give(remote, tmp_path):
    entries = list(remote.shards())
    cache = ShardCache(tmp_path / "c", max(entry.num_bytes for entry in entries) + 10)
    with contextlib.ExitStack() as first:
        first.enter_context(cache.open(remote.objects, entries[0]))
        threading.Timer(0.3, first.close).start()
        with cache.open(remote.objects, entries[1]) as file:
            assert file.read() == remote.objects.get(entries[1].name)


def test_a_reader_without_room_gives_up_in_time(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "ROOM_WAIT_SEC", 0.2)
    entries = list(remote.shards())
    cache = ShardCache(tmp_path / "c", max(entry.num_bytes for entry in entries) + 10)
    with (
        cache.open(remote.objects, entries[0]),
        pytest.raises(CacheTooSmallError, match="would be"),
        cache.open(remote.objects, entries[1]),
    ):
        pass


def test_what_a_dead_process_left_unfinished_makes_room(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "READ_ATTEMPTS", 1)
    entries = list(remote.shards())
    cache = ShardCache(tmp_path / "c", max(entry.num_bytes for entry in entries) + 10)
    with pytest.raises(ConnectionResetError):
        cache.fetch(CutConnection(remote.objects, cuts=[True]), entries[0])
    assert cache.num_bytes() == entries[0].num_bytes, "its room stays claimed until someone needs it"
    cache.fetch(remote.objects, entries[1])
    assert copies(tmp_path / "c") == [entries[1].checksum.partition(":")[2] + ".arrow"]


class BytesOnDisk(threading.Thread):
    """Looks at a folder all the time and remembers the most bytes it held."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.most, self.looks, self.stopped = folder, 0, 0, threading.Event()

    def run(self) -> None:
        is_last = False
        while not is_last:
            is_last, total = self.stopped.is_set(), 0
            for path in self.folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # evicted since the listing
                    total += path.stat().st_size
            self.most, self.looks = max(self.most, total), self.looks + 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_reads_an_epoch_through_a_cache_of_a_few_shards(remote, tmp_path, num_workers):
    limit = 2 * max(entry.num_bytes for entry in remote.shards())
    reader = StreamingLogitDataset(
        remote.uri, num_splits=1, cache_dir=tmp_path / "c", cache_limit=limit, predownload=1
    )
    loader = LogitDataLoader(reader, record_id, num_workers=num_workers)
    with BytesOnDisk(tmp_path / "c" / FOLDER_NAME) as seen:
        names = [name for _ in range(3) for name in loader]
        while seen.looks <= 20:  # on a busy machine
            list(loader)
    assert sorted(names) == sorted([f"r{n}" for n in range(24)] * 3)
    assert max(entry.num_bytes for entry in remote.shards()) < seen.most <= limit


def test_a_cache_below_what_an_epoch_needs_is_refused_at_once(remote, tmp_path):
    largest = max(entry.num_bytes for entry in remote.shards())
    with pytest.raises(CacheTooSmallError, match=r"num_splits=2 and predownload=1 may need at once"):
        StreamingLogitDataset(remote.uri, num_splits=2, cache_dir=tmp_path / "c", cache_limit=2 * largest)


def epoch(remote, folder: Path, limit: int) -> list[str]:
    reader = StreamingLogitDataset(
        remote.uri, num_splits=1, cache_dir=folder, cache_limit=limit, predownload=1
    )
    return sorted(name for name in LogitDataLoader(reader, record_id))


def test_files_of_others_are_neither_counted_nor_removed(remote, tmp_path):
    """Hugging Face datasets end in .arrow too; a folder for everybody's caches holds all sorts of files."""
    folder, own = tmp_path / "c", tmp_path / "c" / FOLDER_NAME
    own.mkdir(parents=True)
    outside = tmp_path / "outside.arrow"
    outside.write_bytes(b"precious")
    foreign = [
        folder / "train-00000.arrow",
        own / "train-00000.arrow",
        own / "movie.mkv.part",
        own / f"{'0' * 31}.arrow",
        own / f"{'0' * 32}.x.part",
    ]
    for path in foreign:
        path.write_bytes(b"y" * 100_000)
    (own / f"{'0' * 32}.arrow").symlink_to(outside)
    (own / f"{'1' * 32}.arrow").mkdir()
    for path in [*foreign, outside]:
        os.utime(path, (1, 1))
    limit = 2 * max(entry.num_bytes for entry in remote.shards())
    assert epoch(remote, folder, limit) == sorted(f"r{n}" for n in range(24))
    assert all(path.stat().st_size == 100_000 for path in foreign)
    assert outside.read_bytes() == b"precious"
    assert (own / f"{'0' * 32}.arrow").is_symlink()
    assert len(copies(folder)) >= 3


@pytest.mark.parametrize("name", ["evict.lock", "a copy", FOLDER_NAME])
def test_a_link_in_the_place_of_a_file_is_not_followed(remote, tmp_path, name):
    own, entry = tmp_path / "c" / FOLDER_NAME, remote.shards()[0]
    target = tmp_path / "bashrc"
    target.write_bytes(b"precious")
    if name == FOLDER_NAME:
        own.parent.mkdir()
        (tmp_path / "elsewhere").mkdir()
        own.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(SettingError, match="is a symbolic link; the cache follows none"):
            ShardCache(tmp_path / "c")
        return
    cache = ShardCache(tmp_path / "c")
    link = own / (f"{entry.checksum.partition(':')[2]}.arrow" if name == "a copy" else name)
    link.symlink_to(target)
    with (
        pytest.raises(SettingError, match="is a link, a folder or a device"),
        cache.open(remote.objects, entry),
    ):
        pass
    assert target.read_bytes() == b"precious"
    assert link.is_symlink()


def test_a_full_disk_is_said_once_and_reading_goes_on(remote, tmp_path, monkeypatch):
    append, calls = shard_cache.continue_download, []

    def full_after_two(objects, entry, partial) -> None:
        calls.append(entry.name)
        if len(calls) > 2:
            partial.write(b"x")
            raise OSError(errno.ENOSPC, "No space left on device")
        append(objects, entry, partial)

    monkeypatch.setattr(shard_cache, "continue_download", full_after_two)
    with pytest.warns(TrainingWarning, match="the disk of .* is full .* Free some space") as told:
        names = epoch(remote, tmp_path / "c", 10**9)
    assert names == sorted(f"r{n}" for n in range(24))
    assert (len(told), len(calls)) == (1, 3)
    assert list((tmp_path / "c" / FOLDER_NAME).glob("*.part")) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        SettingError, match=r"cache_dir: .*file/penumbra-shards cannot be made \(Not a directory"
    ):
        ShardCache(tmp_path / "file")


@pytest.mark.s3
@pytest.mark.slow
def test_epochs_from_s3_with_and_without_a_cache(s3_place, tmp_path):
    store = make_store(s3_place.uri, (6, 7, 5), storage_options=s3_place.storage_options)
    spec = StoreSpec(store.uri, storage_options=s3_place.storage_options)
    local = make_store(tmp_path / "local", (6, 7, 5))
    assert local.digest == store.digest, "the order depends on content, not on the place"
    expected = [sample.sequence.record_id for sample in StreamingLogitDataset(local.uri, num_splits=2)]
    choices: list[dict[str, Any]] = [{}, {"cache_dir": tmp_path / "c"}]
    for settings in choices:
        for num_workers in (0, 2):
            reader = StreamingLogitDataset(spec, num_splits=2, **settings)
            assert list(LogitDataLoader(reader, record_id, num_workers=num_workers)) == expected
    assert len(copies(tmp_path / "c")) == 3
