"""Tables and captures leave and come back whole; what other projects wrote comes in as they wrote it."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard

from logitstore.__main__ import main
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.distillkit import read_distillkit
from logitstore.exchange.importing import Origin, import_source
from logitstore.exchange.megatron import read_megatron
from logitstore.exchange.npz.export import export_npz
from logitstore.exchange.npz.reading import read_npz
from logitstore.exchange.tables.export import export_table
from logitstore.exchange.tables.reading import read_table
from logitstore.exchange.torch_archive import read_archive
from logitstore.rows.where import parse_selection
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.logitstore.capture import CAPTURE_SAMPLE
from tests.logitstore.test_store import assert_same


@pytest.fixture(scope="module")
def capture() -> dict[str, np.ndarray]:
    with np.load(CAPTURE_SAMPLE) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("top_k", [16, 128])
def test_a_capture_comes_back(tmp_path: Path, capture: dict[str, np.ndarray], top_k: int) -> None:
    store = import_source(read_npz(CAPTURE_SAMPLE, top_k=top_k), str(tmp_path / "s"), origin=Origin("smol"))
    assert verify_store(store).problems == []
    assert store.manifest.labels.value_kind == "gap_f16"
    export_npz(store, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as archive:
        out = dict(archive)
    np.testing.assert_array_equal(out["token_ids_NK"], capture["token_ids_NK"][:, :top_k])
    assert out["token_ids_NK"].dtype == np.uint16
    gap_NK = capture["logits_NK"][:, :1] - capture["logits_NK"][:, :top_k]
    expected_NK = capture["logits_NK"][:, :1] - gap_NK.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(out["logits_NK"], expected_NK, atol=4e-6)
    np.testing.assert_array_equal(out["logits_NK"][:, 0], capture["logits_NK"][:, 0])
    np.testing.assert_allclose(out["logsumexp_NT"], capture["logsumexp_NT"], atol=1e-4)
    np.testing.assert_array_equal(out["input_token_N"], capture["input_token_N"])
    places = np.unique(capture["document_N"], return_inverse=True)[1]
    np.testing.assert_array_equal(out["document_N"], places)
    assert out["record_id"][out["document_N"][0]] == f"document-{capture['document_N'][0]}"
    same = out["document_N"][1:] == out["document_N"][:-1]
    np.testing.assert_array_equal(out["label_token_N"][:-1][same], out["input_token_N"][1:][same])
    assert out["label_token_N"][-1] == -1
    for index, temperature in enumerate(capture["temperatures"].tolist()):
        log_p_NK = capture["logits_NK"][:, :top_k] / temperature - capture["logsumexp_NT"][:, [index]]
        tail_N = 1 - np.exp(log_p_NK.astype(np.float64)).sum(axis=1)
        sure = tail_N > 2e-3  # below, the capture's own float32 normaliser blurs the difference
        np.testing.assert_allclose(np.exp(out["log_tail_mass_NT"][sure, index]), tail_N[sure], rtol=1e-3)


def test_an_import_with_anothers_codebooks(tmp_path: Path) -> None:
    first = import_source(read_npz(CAPTURE_SAMPLE, top_k=16), str(tmp_path / "a"), origin=Origin())
    codebooks = first.codebooks()
    assert codebooks is not None
    second = import_source(
        read_npz(CAPTURE_SAMPLE, top_k=16), str(tmp_path / "b"), origin=Origin(), codebooks=codebooks
    )
    assert second.manifest.codebooks == first.manifest.codebooks
    assert second.digest == first.digest
    rest = import_source(read_npz(CAPTURE_SAMPLE, top_k=16), str(tmp_path / "b"), origin=Origin())
    assert len(rest.shards()) == 1, "importing again goes on where it stopped: nothing is left to do"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits_NK": None}, "lacks the array 'logits_NK'"),
        ({"document_N": np.array([0, 1, 0] + [0] * 698)}, "comes back to an earlier document"),
        ({"document_N": np.zeros(5, int)}, "arrays of different lengths"),
        ({"record_id": np.array(["a"])}, "record_id names 1 sequences"),
        ({"logits_NK": np.zeros((701, 128), object)}, "holds Python objects"),
    ],
)
def test_each_bad_capture_has_its_message(
    tmp_path: Path, capture: dict[str, np.ndarray], change: dict[str, Any], message: str
) -> None:
    arrays = {name: value for name, value in {**capture, **change}.items() if value is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UnsupportedInputError, match=message):
        list(read_npz(tmp_path / "bad.npz").sequences)
    (tmp_path / "no.npz").write_bytes(b"no zip")
    with pytest.raises(UnsupportedInputError, match="not an npz file"):
        read_npz(tmp_path / "no.npz")


@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl"])
def test_tables_carry_everything(store: LogitStore, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"out.{form}"
    assert export_table(store, path, form) == 6
    back = import_source(read_table(path), str(tmp_path / "back"), origin=Origin())
    assert back.manifest.teacher == store.manifest.teacher
    assert back.manifest.labels == store.manifest.labels
    for actual, expected in zip(back.iter_sequences(), store.iter_sequences(), strict=True):
        assert_same(actual, expected)
        np.testing.assert_array_equal(actual.rows.label_rank_N, expected.rows.label_rank_N)
    assert export_table(store, path, form, selection=parse_selection("record_id = record-4")) == 1
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    ("form", "name"),
    [("parquet", "OUT.PARQUET"), ("parquet", "out.pq"), ("arrow", "out.feather"), ("jsonl", "out.ndjson")],
)
def test_a_table_is_known_by_each_ending_that_an_input_may_have(
    store: LogitStore, tmp_path: Path, form: str, name: str
) -> None:
    """They "carried no manifest", though they do."""
    assert main(["export", store.uri, str(tmp_path / name), "--to", form, "--quiet"]) == 0
    assert read_table(tmp_path / name).teacher == store.manifest.teacher


def test_an_ending_in_capitals_says_the_form_of_an_export(store: LogitStore, tmp_path: Path) -> None:
    assert main(["export", store.uri, str(tmp_path / "OUT.PARQUET"), "--quiet"]) == 0
    assert pq.read_table(tmp_path / "OUT.PARQUET").num_rows == 6


def test_tables_of_others_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "x.arrow").write_bytes(b"nothing")
    for name in ("x.parquet", "x.jsonl", "x.arrow"):
        with pytest.raises(UnsupportedInputError):
            read_table(tmp_path / name)


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """DistillKit's bit order, written from its description: most significant bit first."""
    bits_NKB = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(bits_NKB.reshape(len(values), -1).astype(np.uint8), axis=1)


def test_distillkit_captures(tmp_path: Path) -> None:
    """d=101 (7 bits), 4 exact bf16 values, a line, 3 residuals of 4 bits with an fp16 scale."""
    config = (
        "d: 101\nk: 8\nexact_k: 4\nexact_dtype: bfloat16\npolynomial_terms: [0, 1]\nterm_dtype: float32\n"
        "residual_bins:\n- {scale_dtype: float16, element_bits: 4, num_elements: 3}\n"
        "delta_encoding: false\nerror_diffusion: false\nnormalize_t: false\n"
    )
    (tmp_path / "compression_config.yaml").write_text(config)
    rng = np.random.default_rng(0)
    ids_NK = np.argsort(rng.random((5, 101)), axis=1)[:, :8]
    exact = np.array([[-1.0, -1.5, -2.0, -2.5]] * 5, np.float32)
    line = np.array([[-3.0, -0.5]] * 5, np.float32)
    residuals = rng.integers(0, 16, (5, 3))
    compressed = np.concatenate(
        [
            (exact.view(np.uint32) >> 16).astype("<u2").view(np.uint8),
            line.view(np.uint8),
            np.full((5, 1), 0.03125, np.float16).view(np.uint8),
            pack(residuals, 4),
        ],
        axis=1,
    )
    row = {
        "input_ids": [3, 1, 4, 1, 5],
        "compressed_logprobs": compressed.tolist(),
        "bytepacked_indices": pack(ids_NK, 7).tolist(),
    }
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "data_0.parquet")
    expected = np.concatenate([exact, -3.0 - 0.5 * np.arange(4) + np.zeros((5, 1))], axis=1)
    expected[:, 4:7] += (residuals - 8) * 0.03125
    source = read_distillkit(tmp_path)
    store = import_source(source, str(tmp_path / "store"), origin=Origin("qwen"))
    assert verify_store(store).problems == []
    first = next(store.iter_sequences())
    assert first.label_start == 1
    order = np.argsort(-expected, axis=1, kind="stable")
    np.testing.assert_array_equal(first.rows.token_ids_NK, np.take_along_axis(ids_NK, order, axis=1))
    np.testing.assert_allclose(first.rows.logits_NK, np.take_along_axis(expected, order, axis=1), atol=2e-3)
    tail = 1 - np.exp(expected).sum(axis=1)
    np.testing.assert_allclose(np.exp(first.rows.log_tail_mass_NM[:, 0]), tail, rtol=2e-3)
    (tmp_path / "compression_config.yaml").write_text(config.replace("d: 101", "d: 1000"))
    with pytest.raises(UnsupportedInputError, match="integers of 10 bits"):
        list(read_distillkit(tmp_path).sequences)
    (tmp_path / "compression_config.yaml").unlink()
    with pytest.raises(UnsupportedInputError, match=r"give DistillKit's compression_config\.yaml"):
        read_distillkit(tmp_path)


def write_megatron(folder: Path, rank: int, values_SBK: torch.Tensor, ids_SBK: torch.Tensor) -> None:
    payload = {
        "values": [values_SBK.half()],
        "indices_low": [(ids_SBK & 0xFFFF).to(torch.uint16)],
        "bit_17": [(ids_SBK >> 16).bool()],
    }
    saved = io.BytesIO()
    torch.save(payload, saved)
    data = zstandard.ZstdCompressor().compress(saved.getvalue())
    with tarfile.open(folder / f"cp0_dp{rank}__7.tar", "w") as tar:
        for name, content in (("_meta.json", b"{}"), ("7.pt.zst", data)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_megatron_captures(tmp_path: Path) -> None:
    """Two data-parallel ranks of two samples each, ids beyond 16 bits, one entry left out by top-p."""
    vocab_size, generator = 100_000, torch.Generator().manual_seed(0)
    logprobs = torch.log_softmax(3 * torch.randn(2, 6, 2, vocab_size, generator=generator), -1)
    values, ids = logprobs.topk(4, dim=-1)
    values[0, 0, 0, 3], ids[0, 0, 0, 3] = -1000.0, -1 & 0x1FFFF
    assert bool((ids > 65_535).any())
    for rank in range(2):
        write_megatron(tmp_path, rank, values[rank], ids[rank])
    tokens = np.arange(24).reshape(4, 6)
    np.save(tmp_path / "tokens.npy", tokens)
    source = read_megatron(tmp_path, vocab_size=vocab_size, tokens_path=tmp_path / "tokens.npy")
    store = import_source(source, str(tmp_path / "store"), origin=Origin("nemotron"))
    assert verify_store(store).problems == []
    sequences = list(store.iter_sequences())
    assert [sequence.record_id for sequence in sequences] == [f"sample-{index}" for index in range(4)]
    assert sequences[0].rows.count_N.tolist() == [3, 4, 4, 4, 4, 4]
    for index, sequence in enumerate(sequences):
        np.testing.assert_array_equal(sequence.token_ids_T, tokens[index])
        expected = ids[index // 2][:, index % 2].numpy()
        np.testing.assert_array_equal(sequence.rows.token_ids_NK[1:], expected[1:])
        kept = values[index // 2][1:, index % 2].half().float().numpy()
        np.testing.assert_allclose(sequence.rows.logits_NK[1:], kept, atol=4e-3)
    with pytest.raises(UnsupportedInputError, match="stores no tokens"):
        read_megatron(tmp_path, vocab_size=vocab_size, tokens_path=None)
    np.save(tmp_path / "tokens.npy", tokens[:3])
    short = read_megatron(tmp_path, vocab_size=vocab_size, tokens_path=tmp_path / "tokens.npy")
    with pytest.raises(UnsupportedInputError, match=r"shape \(3, 6\), but sample 3"):
        list(short.sequences)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch /tmp/penumbra-test-was-here",))


def test_a_torch_file_is_never_executed() -> None:
    saved = io.BytesIO()
    torch.save({"values": [Evil()]}, saved)
    with pytest.raises(UnsupportedInputError, match=r"calls posix\.system"):
        read_archive(saved.getvalue())
    assert not Path("/tmp/penumbra-test-was-here").exists()
    for data in (b"", b"PK", saved.getvalue()[:100]):
        with pytest.raises(UnsupportedInputError):
            read_archive(data)


def zipped(program: bytes, name: str = "archive/data.pkl") -> bytes:
    saved = io.BytesIO()
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr(name, program)
    return saved.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped(b"", "other.txt"), "no member data.pkl"),
        (zipped(b""), "EOFError|ValueError|exhausted"),
        (zipped(b"\x80\x02K\x01K\x02a."), "AttributeError"),  # 1.append(2)
        (zipped(b"\x80\x02}" + b")" + b"q\x00h\x00h\x00\x86" * 60 + b"K\x01s."), "key of type tuple"),
        (zipped(b"\x80\x02(0."), "torch"),
        (zipped(b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00idtR."), "calls os.system"),
    ],
    ids=range(6),
)  # fmt: skip
def test_each_bad_torch_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UnsupportedInputError, match=message):
        read_archive(data)


def test_torch_tensors_of_any_stride() -> None:
    saved = io.BytesIO()
    tensor = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    torch.save({"a": tensor.transpose(0, 2), "b": tensor[1:, ::2], "c": (None, True, 3, 2.5, "x")}, saved)
    found = read_archive(saved.getvalue())
    np.testing.assert_array_equal(found["a"], tensor.transpose(0, 2).numpy())
    np.testing.assert_array_equal(found["b"], tensor[1:, ::2].numpy())
    assert found["c"] == (None, True, 3, 2.5, "x")


@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl"])
def test_a_table_that_lost_its_manifest_comes_back_like_its_store(
    store: LogitStore, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a filter of datasets, polars or DuckDB, which drop the metadata of a schema."""
    path = tmp_path / f"bare.{form}"
    export_table(store, path, form)
    if form == "parquet":
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    elif form == "arrow":
        table = pa.ipc.open_file(path).read_all().replace_schema_metadata(None)
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    target = str(tmp_path / "back")
    assert main(["import", "--from", form, str(path), target]) == 2
    assert "--like STORE" in capsys.readouterr().err
    assert main(["import", "--from", form, str(path), target, "--like", store.uri]) == 0
    back = LogitStore.open(target)
    assert (back.manifest.teacher, back.manifest.labels) == (store.manifest.teacher, store.manifest.labels)
    for before, after in zip(store.iter_sequences(), back.iter_sequences(), strict=True):
        np.testing.assert_array_equal(before.rows.token_ids_NK, after.rows.token_ids_NK)
        np.testing.assert_array_equal(before.rows.logits_NK, after.rows.logits_NK)
        assert before.record_id == after.record_id


def test_a_sequence_that_is_in_a_table_twice_is_refused(
    store: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables that were put together were imported, and only `verify` said so."""
    export_table(store, tmp_path / "one.parquet", "parquet")
    table = pq.read_table(tmp_path / "one.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(1, 1)]), tmp_path / "two.parquet")
    assert main(["import", "--from", "parquet", f"{tmp_path}/two.parquet", f"{tmp_path}/back"]) == 2
    said = capsys.readouterr().err
    assert "record 'record-1' (sample 0) is in two.parquet twice" in said
    assert not (tmp_path / "back").exists()
