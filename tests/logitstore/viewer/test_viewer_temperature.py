"""The page's arithmetic (assets/temperature.js) against logitstore's, and both against full logits.

The script runs in Node, which the browser tests' playwright package brings along.
"""

from __future__ import annotations

import json
import subprocess
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from logitstore.decoding.tokens import TokenTexts
from logitstore.manifest.fields import LabelSpec
from logitstore.rows.entropy import entropy
from logitstore.rows.temperature import log_tail_mass, logprobs, truncate
from logitstore.viewer.payload import sequence_payload
from tests.logitstore.viewer.viewer_records import (
    TEMPERATURES,
    full_logits,
    logsumexp,
    rows_of,
    sequence_of,
)

VOCAB = 3000
SPEC = LabelSpec(VOCAB, 16, TEMPERATURES, "gap_f16", "score", "all")
ASKED = (1.0, 1.15, 1.5, 2.0, 2.75, 3.95, 4.0)


def run_script(payload: dict[str, object], temperatures: tuple[float, ...]) -> dict[str, list[Any]]:
    """rowAt of every row at every temperature, from the very file that the page runs."""
    driver = pytest.importorskip("playwright._impl._driver")
    node, _ = driver.compute_driver_executable()
    script = (files("logitstore.viewer") / "assets" / "temperature.js").read_text()
    program = f"""
const fs = require("fs");
const {{ payload, temperatures }} = JSON.parse(fs.readFileSync(0, "utf8"));
{script}
const rows = decodeRows(payload);
const out = temperatures.map((t) => Array.from({{ length: rows.numRows }}, (_, i) => {{
  const at = rowAt(rows, i, t);
  return {{ logprobs: [...at.logprobs], logTail: Number.isFinite(at.logTail) ? at.logTail : null, entropy: at.entropy }};
}}));
process.stdout.write(JSON.stringify(out));
"""
    done = subprocess.run(
        [node, "-e", program],
        input=json.dumps({"payload": payload, "temperatures": temperatures}),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return dict(zip(map(str, temperatures), json.loads(done.stdout), strict=True))


def test_script_equals_library_at_stored_and_other_temperatures() -> None:
    rng = np.random.default_rng(5)
    sequence = sequence_of("a", rng.integers(0, VOCAB, 40).tolist(), rng, vocab_size=VOCAB, top_k=16)
    found = run_script(sequence_payload(0, sequence, SPEC, TokenTexts()), ASKED)
    for temperature in ASKED:
        rows = found[str(temperature)]
        np.testing.assert_allclose(
            [row["logprobs"] for row in rows], logprobs(sequence.rows, SPEC, temperature), atol=3e-6
        )
        np.testing.assert_allclose(
            [row["logTail"] for row in rows], log_tail_mass(sequence.rows, SPEC, temperature), atol=3e-6
        )
        np.testing.assert_allclose(
            [row["entropy"] for row in rows], entropy(sequence.rows, SPEC, temperature), atol=2e-5
        )


def test_script_equals_library_on_ragged_rows_and_without_a_tail() -> None:
    rng = np.random.default_rng(6)
    sequence = sequence_of("a", rng.integers(0, 12, 5).tolist(), rng, vocab_size=12, top_k=12)
    spec = LabelSpec(12, 12, TEMPERATURES, "gap_f16", "score", "all")
    rows = sequence.rows
    short = truncate(rows, spec, 5)
    for array_NK, padding in ((rows.logits_NK, -np.inf), (rows.token_ids_NK, 0)):
        array_NK[:2, 5:] = padding
    rows.count_N[:2] = 5
    rows.log_tail_mass_NM[:2] = short.log_tail_mass_NM[:2]
    assert np.isneginf(rows.log_tail_mass_NM[2:]).all()
    found = run_script(sequence_payload(0, sequence, spec, TokenTexts()), ASKED)
    for temperature in ASKED:
        expected_NK = logprobs(rows, spec, temperature)
        expected_tail_N = log_tail_mass(rows, spec, temperature)
        expected_entropy_N = entropy(rows, spec, temperature)
        for i, row in enumerate(found[str(temperature)]):
            np.testing.assert_allclose(row["logprobs"], expected_NK[i, : rows.count_N[i]], atol=3e-6)
            assert (row["logTail"] is None) == (i >= 2)
            if i < 2:
                assert row["logTail"] == pytest.approx(expected_tail_N[i], abs=3e-6)
            assert row["entropy"] == pytest.approx(expected_entropy_N[i], abs=2e-5)


@pytest.mark.parametrize(("top_k", "tolerance"), [(16, 0.05), (64, 0.02), (512, 0.003)])
def test_entropy_is_near_the_whole_vocabularys(top_k: int, tolerance: float) -> None:
    logits_NV = full_logits(np.random.default_rng(7), 200, VOCAB)
    rows = rows_of(logits_NV, top_k)
    for temperature in ASKED:
        scaled_NV = logits_NV.astype(np.float64) / temperature
        logp_NV = scaled_NV - logsumexp(scaled_NV)[:, None]
        exact_N = -(np.exp(logp_NV) * logp_NV).sum(axis=1)
        assert np.abs(entropy(rows, SPEC, temperature) - exact_N).mean() < tolerance


def test_entropy_is_exact_where_everything_is_stored() -> None:
    logits_NV = full_logits(np.random.default_rng(8), 50, 40)
    spec = LabelSpec(40, 40, TEMPERATURES, "gap_f16", "score", "all")
    rows = rows_of(logits_NV, 40)
    assert np.isneginf(rows.log_tail_mass_NM).all()
    logp_NV = logits_NV / 1.7 - logsumexp(logits_NV.astype(np.float64) / 1.7)[:, None]
    np.testing.assert_allclose(entropy(rows, spec, 1.7), -(np.exp(logp_NV) * logp_NV).sum(axis=1), atol=1e-5)
