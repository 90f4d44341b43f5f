"""From the engine's tensors to bytes on disk: a job's whole path, and the CPU time of our own steps."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from labeler.config.loading import JobConfig, TeacherConfig
from labeler.driver.in_flight import units_in_flight
from labeler.planning.plan import KnownRecords, Plan, PlanTotals, SegmentWriter
from labeler.planning.units import unit_id_of
from labeler.records import Committed, Lease, PlannedRecord, TeacherDescription, TokenizedPrompt
from labeler.teacher.label_rows import CapturedColumns, ColumnLayout, rows_from_columns
from labeler.teacher.protocol import labeled_sequence
from labeler.teacher.response_ends import ResponseEnds
from labeler.worker.actor import Worker
from logitstore.codec.codebook_training import train_codebooks
from logitstore.codec.loops import use_compiled_loops
from logitstore.manifest.fields import InputInfo, LabelSpec, Manifest, TokenizerInfo
from logitstore.objects.opening import Objects
from logitstore.shard.writer import write_shard
from logitstore.store import LogitStore


class RunningWorker:
    """A job's worker in the middle of its job: teacher, threads, store and plan are there.

    The plan has the prompts once for every round, so that each round labels units of its own.
    """

    def __init__(
        self,
        teacher: Any,
        prompts: Sequence[TokenizedPrompt],
        labels: LabelSpec,
        job: JobConfig,
        num_rounds: int,
        unit_prompts: int,
    ) -> None:
        """`job` says where the store is and how many units are in flight; `teacher` is there already."""
        uri, self._num_prompts = job.output.uri, len(prompts)
        self._num_units = -(-self._num_prompts // unit_prompts)
        # The worker makes no teacher of its own: this one labels as it was told.
        fake = job.model_copy(update={"teacher": TeacherConfig(engine="fake")})
        self._worker = Worker(fake, "benchmark", ResponseEnds(), lambda cores: teacher)
        LogitStore.create(uri, _manifest(self._worker.start(None), labels))
        _write_plan(uri, prompts, num_rounds, unit_prompts)
        self._units = enumerate(Plan(Objects(uri)).units())
        num_tokens = sum(prompt.num_tokens for prompt in prompts)
        totals = PlanTotals(self._num_prompts, self._num_prompts, self._num_units, num_tokens, num_tokens)
        self._threads = ThreadPoolExecutor(units_in_flight(job, totals).leases)

    def label_round(self) -> None:
        """The next round from leases to commits on disk."""
        units = itertools.islice(self._units, self._num_units)
        leases = [Lease(number, unit, "benchmark") for number, unit in units]
        results = list(self._threads.map(self._worker.label_unit, leases))
        committed = sum(one.entry.num_sequences for one in results if isinstance(one, Committed))
        if committed != self._num_prompts:
            raise RuntimeError(f"{committed} of {self._num_prompts} sequences were committed")


def _write_plan(uri: str, prompts: Sequence[TokenizedPrompt], num_rounds: int, unit_prompts: int) -> None:
    writer = SegmentWriter(Objects(uri), KnownRecords())
    for number in range(num_rounds):
        renamed = [replace(prompt, record_id=f"{number}-{prompt.record_id}") for prompt in prompts]
        for start in range(0, len(renamed), unit_prompts):
            records = [PlannedRecord(prompt, "memory", 1) for prompt in renamed[start : start + unit_prompts]]
            writer.add(unit_id_of([record.prompt.record_id for record in records]), records, 0, b"", b"", b"")
    writer.flush()


def _manifest(description: TeacherDescription, labels: LabelSpec) -> Manifest:
    return Manifest(
        teacher=description.info,
        tokenizer=TokenizerInfo("", description.vocab_size),
        labels=labels,
        input=InputInfo("memory", "token_ids", {"token_ids": "token_ids"}),
        created="1970-01-01T00:00:00+00:00",
    )


def measure_own_code(
    captured: Sequence[CapturedColumns],
    prompts: Sequence[TokenizedPrompt],
    layout: ColumnLayout,
    labels: LabelSpec,
    unit_prompts: int,
    repetitions: int,
) -> dict[str, list[float]]:
    """CPU microseconds per token of each step between the engine's tensors and a shard's bytes.

    The engine costs nothing here: its tensors are those of an earlier run on the same prompts. Shards are
    coded with shared codebooks and compiled loops, as a job does after its first units.
    """
    import torch
    from vllm.v1.outputs import LogprobsTensors

    from labeler.teacher.vllm.outputs import ArrayLogprobsProcessor, columns_of

    use_compiled_loops()
    tensors = [
        LogprobsTensors(
            torch.from_numpy(rows.token_ids_NC),
            torch.from_numpy(rows.values_NC),
            torch.from_numpy(rows.ranks_N),
        )
        for rows in captured
    ]
    named = [rows_from_columns(rows, layout, labels.vocab_size) for rows in captured]
    codebooks = train_codebooks(named, labels, expected_rows=10**6)
    num_rows = sum(rows.num_rows for rows in captured)
    steps: dict[str, list[float]] = {"take over": [], "check and name": [], "record": [], "shard": []}
    for _ in range(repetitions + 1):
        clock = [time.process_time()]
        taken = []
        for rows in tensors:
            processor = ArrayLogprobsProcessor(None, None, None, None, None, layout.num_logprobs)
            processor._update_prompt_logprobs(rows)  # noqa: SLF001
            taken.append(columns_of(processor.prompt_logprobs, layout.num_columns))
        clock.append(time.process_time())
        named = [rows_from_columns(rows, layout, labels.vocab_size) for rows in taken]
        clock.append(time.process_time())
        sequences = [
            labeled_sequence(prompt, prompt.response_token_ids, rows, sample_index=0, finish_reason="scored")
            for prompt, rows in zip(prompts, named, strict=True)
            if prompt.response_token_ids is not None
        ]
        clock.append(time.process_time())
        for start in range(0, len(sequences), unit_prompts):
            write_shard(io.BytesIO(), sequences[start : start + unit_prompts], labels, codebooks)
        clock.append(time.process_time())
        for name, seconds in zip(steps, np.diff(clock), strict=True):
            steps[name].append(float(seconds) / num_rows * 1e6)
    return {name: values[1:] for name, values in steps.items()}
