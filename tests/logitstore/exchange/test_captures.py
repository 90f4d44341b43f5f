"""Captures of others whose numbers a cast would change, whose rows are not those of the tokens beside them, and
what of a store a capture does not hold."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from logitstore.common.store_warning import StoreWarning
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.distillkit import read_distillkit
from logitstore.exchange.importing import Origin, import_source
from logitstore.exchange.megatron import read_megatron
from logitstore.exchange.npz.export import export_npz
from logitstore.exchange.npz.reading import read_npz
from logitstore.exchange.rows import rows_from_logprobs
from logitstore.rows.silent_rows import no_rows
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_sequence

BEYOND = 2**32


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Two sequences of 11 rows, K = 8."""
    folder = tmp_path_factory.mktemp("capture")
    store = LogitStore.create(folder / "store", make_manifest())
    store.commit_unit("unit", 0, [make_sequence("a"), make_sequence("b")], seconds=0.0, worker="test")
    export_npz(store, folder / "capture.npz")
    with np.load(folder / "capture.npz") as found:
        return dict(found)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("token_ids_NK", lambda one: one.astype(np.int64) + BEYOND, "the ids of 'a' hold 4294967296"),
        ("input_token_N", lambda one: one.astype(np.int64) + BEYOND, "the tokens of 'a' hold"),
        ("label_token_N", lambda one: one.astype(np.int64) - BEYOND, "the labels of 'a' hold -"),
        ("token_ids_NK", lambda one: one + 0.5, "token_ids_NK is float64"),
        ("input_token_N", lambda one: one.astype(str), "input_token_N is <U"),
        ("logits_NK", lambda one: one.astype(complex), "logits_NK is complex128"),
        ("vocab_size", lambda one: np.array(101.7), "vocab_size is float64"),
        ("vocab_size", lambda one: np.array([101, 5]), r"vocab_size is int64 of the shape \(2,\)"),
        ("record_id", lambda one: one.astype(bytes), "record_id is |S1"),
        ("logits_NK", lambda one: one[:, 0], r"logits_NK is float32 of the shape \(22,\)"),
        ("temperatures", lambda one: one[0], r"temperatures is float32 of the shape \(\)"),
        ("temperatures", lambda one: one * 2, r"bad\.npz: temperatures .* must ascend from 1\.0"),
        ("vocab_size", lambda one: np.array(5), r"bad\.npz: top_k 8 must lie in 1\.\.vocab_size"),
        ("temperatures", lambda one: one[:2], "logsumexp_NT has 3 of axis T, and temperatures 2"),
        ("token_ids_NK", lambda one: one[:, :4], "logits_NK has 8 of axis K, and token_ids_NK 4"),
        ("label_token_N", lambda one: one[:3], "logits_NK has 22 of axis N, and label_token_N 3"),
    ],
)
def test_an_array_that_a_cast_would_change_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], name: str, change: Any, message: str
) -> None:
    np.savez(tmp_path / "bad.npz", **{**arrays, name: change(arrays[name])})
    with pytest.raises(UnsupportedInputError, match=message):
        list(read_npz(tmp_path / "bad.npz").sequences)


def _with_flags(data: bytes, at: int, value: int) -> bytes:
    """The archive with another byte in the head of each member; `at` counts in the local one."""
    changed = bytearray(data)
    for sign, place in ((b"PK\x03\x04", at), (b"PK\x01\x02", at + 2)):
        for found in re.finditer(re.escape(sign), data):
            changed[found.start() + place] = value
    return bytes(changed)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:300] + bytes([data[300] ^ 255]) + data[301:], "cannot be read .*CRC"),
        (lambda data: _with_flags(data, 6, 1), "is encrypted"),
        (lambda data: _with_flags(data, 8, 99), "compression method is not supported"),
    ],
)
def test_a_damaged_archive_is_told_of(
    tmp_path: Path, arrays: dict[str, np.ndarray], damage: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UnsupportedInputError, match=message):
        list(read_npz(path).sequences)


def test_a_member_of_fewer_rows_than_its_head_says_and_a_pipe_are_told_of(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        for name, values in arrays.items():
            member = io.BytesIO()
            np.save(member, values)
            cut = values[:1].nbytes if name == "logits_NK" else 0
            archive.writestr(f"{name}.npy", member.getvalue()[: len(member.getvalue()) - cut])
    with pytest.raises(UnsupportedInputError, match="array logits_NK is cut off"):
        list(read_npz(tmp_path / "short.npz").sequences)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(UnsupportedInputError, match="is no file"):
        read_npz(tmp_path / "pipe.npz")


def test_a_capture_without_what_it_has_no_place_for_comes_back_and_says_so(tmp_path: Path) -> None:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    silent = replace(make_sequence("silent"), rows=no_rows(3), loss_mask_N=np.zeros(0, bool))
    masked = replace(make_sequence("masked"), loss_mask_N=np.arange(11) > 2, flags=("truncated",))
    store.commit_unit("unit", 0, [make_sequence("a"), silent, masked], seconds=0.0, worker="test")
    said = r"sequences without label rows \(1\), marks of rows that no loss counts \(3\), flags \(1\)"
    with pytest.warns(StoreWarning, match=said):
        assert export_npz(store, tmp_path / "some.npz") == 22
    made = import_source(read_npz(tmp_path / "some.npz"), str(tmp_path / "made"), origin=Origin())
    assert [one.record_id for one in made] == ["a", "masked"]
    np.testing.assert_array_equal(made["masked"].rows.token_ids_NK, masked.rows.token_ids_NK)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_damaged_logprob_is_no_entry_that_was_left_out(value: float) -> None:
    logprobs_NK = np.array([[-0.5, value, -3.0]], np.float32)
    with pytest.raises(UnsupportedInputError, match="is NaN or infinite"):
        rows_from_logprobs(logprobs_NK, np.array([[1, 2, 3]]), np.array([1]), vocab_size=9)


def test_logits_are_not_taken_for_logprobs() -> None:
    logits_NK = np.array([[9.0, 8.0, 3.0]], np.float32)
    with pytest.raises(UnsupportedInputError, match=r"a mass of e\^9\.3"):
        rows_from_logprobs(logits_NK, np.array([[1, 2, 3]]), np.array([1]), vocab_size=9)


def _distillkit(folder: Path, **change: Any) -> Path:
    """Three tokens with two exact entries of a vocabulary of 16."""
    (folder / "compression_config.yaml").write_text("d: 16\nk: 2\nexact_k: 2\ndelta_encoding: false\n")
    logprobs = np.array([[-0.5, -2.0]] * 3, "<f4").view(np.uint8).tolist()
    record = {"input_ids": [1, 2, 3], "bytepacked_indices": [[0x12]] * 3, "compressed_logprobs": logprobs}
    (folder / "capture.jsonl").write_text(json.dumps({**record, **change}) + "\n")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": [BEYOND, 2, 3]}, "input_ids hold 4294967296"),
        ({"input_ids": [1.5, 2, 3]}, "input_ids are of the type float64"),
        ({"input_ids": [[1, 2]] * 3}, r"input_ids of the shape \(3, 2\)"),
        ({"input_ids": 5}, r"input_ids of the shape \(\)"),
        ({"input_ids": [1, 2]}, r"of the shape \(2,\) have 3 rows of ids and 3"),
        ({"bytepacked_indices": [[0x12]] * 2}, "have 2 rows of ids and 3 of log-probabilities"),
        ({"bytepacked_indices": [[18.5]] * 3}, "are no rows of bytes"),
        ({"bytepacked_indices": [[300]] * 3}, "are no rows of bytes"),
    ],
)
def test_a_distillkit_record_that_a_cast_or_cut_would_change_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (whole,) = read_distillkit(_distillkit(tmp_path)).sequences
    assert whole.rows.token_ids_NK.tolist() == [[1, 2]] * 3
    with pytest.raises(UnsupportedInputError, match=message):
        list(read_distillkit(_distillkit(tmp_path, **change)).sequences)


def _megatron(folder: Path, members: dict[str, list[str]], **change: torch.Tensor) -> Path:
    """Tars by name, with members of one sample of three positions and two entries each."""
    payload = {
        "values": torch.full((3, 1, 2), -1.0).half(),
        "indices_low": torch.tensor([[[1, 2]]] * 3).to(torch.uint16),
        "bit_17": torch.zeros(3, 1, 2, dtype=torch.bool),
    }
    saved = io.BytesIO()
    torch.save({name: [value] for name, value in {**payload, **change}.items()}, saved)
    data = zstandard.ZstdCompressor().compress(saved.getvalue())
    folder.mkdir()
    for tar_name, names in members.items():
        with tarfile.open(folder / tar_name, "w") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def _read_megatron(folder: Path, tokens: np.ndarray) -> int:
    np.save(folder / "tokens.npy", tokens)
    return len(list(read_megatron(folder, vocab_size=16, tokens_path=folder / "tokens.npy").sequences))


ONE = ["0.pt.zst"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"cp0_dp0__0.tar": ONE, "cp0_dp2__0.tar": ONE}, r"lacks cp0_dp1__0\.tar, of 3 ranks"),
        ({"cp0_dp0__0.tar": ONE, "cp0_dp1__0.tar": ONE, "cp0_dp0__5.tar": ["5.pt.zst"]}, r"cp0_dp1__5\.tar"),
        ({"cp0_dp0__0.tar": ["1.pt.zst", "0.pt.zst"]}, "holds iteration 0 after 1"),
        ({"cp0_dp0__0.tar": ["0.pt.zst", "1.pt.zst"], "cp0_dp1__0.tar": ONE}, "hold different iterations"),
    ],
)
def test_files_by_which_samples_would_have_the_tokens_of_others_are_refused(
    tmp_path: Path, members: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UnsupportedInputError, match=message):
        _read_megatron(_megatron(tmp_path / "logits", members), np.zeros((9, 3), np.int64))


def test_samples_beyond_a_capture_are_told_of(tmp_path: Path) -> None:
    folder = _megatron(tmp_path / "logits", {"cp0_dp0__0.tar": ["0.pt.zst", "1.pt.zst"]})
    assert _read_megatron(folder, np.zeros((2, 3), np.int64)) == 2
    with pytest.warns(StoreWarning, match="has 4 samples, and the capture the first 2"):
        assert _read_megatron(folder, np.zeros((4, 3), np.int64)) == 2


@pytest.mark.parametrize(
    ("change", "tokens", "message"),
    [
        ({}, np.full((1, 3), BEYOND), "--tokens of sample 0 hold 4294967296"),
        ({"indices_low": torch.full((3, 1, 2), 1.5)}, np.zeros((1, 3), int), "not floats, uint16, bool"),
        ({"values": torch.zeros(3, 1, 2, dtype=torch.int16)}, np.zeros((1, 3), int), "tensors of int16"),
    ],
)
def test_a_megatron_capture_that_a_cast_would_change_is_refused(
    tmp_path: Path, change: dict[str, torch.Tensor], tokens: np.ndarray, message: str
) -> None:
    with pytest.raises(UnsupportedInputError, match=message):
        _read_megatron(_megatron(tmp_path / "logits", {"cp0_dp0__0.tar": ONE}, **change), tokens)


def test_a_capture_that_the_disk_has_no_room_for_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    store.commit_unit("unit", 0, [make_sequence("a")], seconds=0.0, worker="test")
    monkeypatch.setattr("logitstore.objects.room.free_bytes", lambda _: 100)
    with pytest.raises(UnsupportedInputError, match=r"the export needs about 1,936 bytes .* 100 are free"):
        export_npz(store, tmp_path / "x.npz")
    assert [one.name for one in tmp_path.iterdir()] == ["store"]
