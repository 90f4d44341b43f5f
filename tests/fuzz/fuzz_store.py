"""Coverage-guided fuzzing of everything that parses a store's bytes.

    python -m tests.fuzz.fuzz_store manifest -max_total_time=600
    python -m tests.fuzz.fuzz_store gap_f16 build/fuzz/gap_f16 -runs=200000 -rss_limit_mb=1024

The first argument names the target; the rest goes to libFuzzer (a folder keeps the corpus). A finding is
any exception outside the store's own tree, a crash, a hang, or more memory than the limit. Shards are read
with the compiled loops, which check nothing themselves. Not part of the tests: an hour's run takes an hour.
The instrumentation keeps some memory of every shard read (without it none is kept), so long runs of shards go
in parts as above: the folder hands on what each has found.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["logitstore"]):  # pyright: ignore[reportAttributeAccessIssue]
    import pyarrow as pa

    from logitstore.codec.codebooks import CodebookSet
    from logitstore.errors import StoreError
    from logitstore.exchange.torch_archive import read_archive
    from logitstore.index import segments as index_segments
    from logitstore.index.commits import decode_commit, encode_commit
    from logitstore.index.pointer import IndexPointer, SegmentInfo, decode_pointer, encode_pointer
    from logitstore.manifest.reading import decode_manifest, encode_manifest
    from logitstore.shard.reader import ShardReader

from logitstore.codec.loops import use_compiled_loops
from logitstore.manifest.fields import VALUE_KINDS
from tests.golden.v1.make_golden import FOLDER, golden_sequences
from tests.logitstore.index.test_compaction import make_record
from tests.logitstore.random_labels import make_manifest

MANIFEST = make_manifest(note="x")
SEGMENT_ROWS = 3


def _manifest(data: bytes) -> None:
    decode_manifest(data)


def _commit(data: bytes) -> None:
    decode_commit(data, what="commits/u3.json")


def _index(data: bytes) -> None:
    decode_pointer(data)


def _segment(data: bytes) -> None:
    table = index_segments.read_entries(pa.py_buffer(data), what="segment", num_entries=SEGMENT_ROWS)
    index_segments.table_to_entries(table)


def _shard_target(value_kind: str) -> Callable[[bytes], None]:
    spec, _ = golden_sequences(value_kind)
    books = CodebookSet.from_bytes((FOLDER / "codebooks.bin").read_bytes())

    def read(data: bytes) -> None:
        for verify in (True, False):  # without checksums the bytes reach every decoder
            for top_k in (None, 3):
                with contextlib.suppress(StoreError):
                    reader = ShardReader(io.BytesIO(data), spec, books, verify_checksums=verify)
                    for sequence in reader.iter_sequences(top_k=top_k):
                        assert int(sequence.rows.token_ids_NK.max(initial=0)) < spec.vocab_size
                        assert int(sequence.rows.count_N.min(initial=1)) >= 1

    return read


def _codebooks(data: bytes) -> None:
    CodebookSet.from_bytes(data)


def _torch(data: bytes) -> None:
    read_archive(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "manifest": _manifest,
    "commit": _commit,
    "index": _index,
    "segment": _segment,
    **{value_kind: _shard_target(value_kind) for value_kind in VALUE_KINDS},
    "codebooks": _codebooks,
    "torch": _torch,
}


def seed(target: str) -> bytes:
    """One valid input to start from."""
    if target in VALUE_KINDS:
        return (FOLDER / f"{target}.arrow").read_bytes()
    if target == "torch":
        import torch

        saved = io.BytesIO()
        torch.save({"values": [torch.zeros(2, 3).half()], "bit_17": [torch.ones(4).bool()]}, saved)
        return saved.getvalue()
    info = SegmentInfo("index/00000000000000aa.arrow", 1, 100, "blake2b-128:" + "0" * 32, "", 0, 0, "")
    records = [make_record(unit) for unit in range(SEGMENT_ROWS)]
    return {
        "manifest": lambda: encode_manifest(MANIFEST),
        "commit": lambda: encode_commit(make_record(3, num_rejects=2)),
        "index": lambda: encode_pointer(IndexPointer(1, "0" * 32, (info,))),
        "segment": lambda: index_segments.write_segment(index_segments.entries_to_table(records)),
        "codebooks": (FOLDER / "codebooks.bin").read_bytes,
    }[target]()


def main(argv: list[str]) -> None:
    if len(argv) < 2 or argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz.fuzz_store {{{','.join(TARGETS)}}} [libFuzzer arguments]")
    target = TARGETS[argv[1]]

    def run(data: bytes) -> None:
        with contextlib.suppress(StoreError):
            target(data)

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "seed").write_bytes(seed(argv[1]))
        use_compiled_loops()
        atheris.Setup([argv[0], *argv[2:], folder], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
