"""A store with all that a job leaves beside its labels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from logitstore.job_objects import JobStatus
from logitstore.records import Reject
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import put_tokenizer
from logitstore.tools.deletion import delete_records
from tests.logitstore.random_labels import make_manifest, make_sequence, make_unit


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    """Six units of three sequences, one of them deleted, and all that a job leaves beside."""
    manifest = make_manifest(
        sampling={"temperature": 0.7},
        labels={"turns": "all", "mode": "score"},
        input={"chat_template": True, "uri": "/home/me/prompts.jsonl"},
        output={"uri": "s3://private-bucket/store"},
    )
    source = dataclasses.replace(manifest.input, uri="/home/me/prompts.jsonl")
    store = LogitStore.create(tmp_path / "store", dataclasses.replace(manifest, input=source))
    rejects = [Reject("/home/me/prompts.jsonl", 7, "never-labeled", "too long on secret-host", "too_long")]
    for unit_index in range(6):
        unit_id, sequences = make_unit(unit_index)
        if unit_index == 4:
            sequences.append(make_sequence("taken-down"))
        store.commit_unit(
            unit_id,
            unit_index,
            sequences,
            rejects if unit_index == 0 else [],
            seconds=1,
            worker="secret-host",
        )
    delete_records(store, frozenset({"taken-down"}), "asked for")
    origins = {"name_or_path": "build/taken-down", "tokenizer_file": "/home/me/model/tokenizer.json"}
    config = {
        **origins,
        "a": 1,
        "special_tokens_map_file": "secret-host/map.json",
        "nested": {"b": ["c"], "_name_or_path": "../taken-down"},
    }
    files = {"tokenizer.json": b"{}", "tokenizer_config.json": json.dumps(config).encode()}
    put_tokenizer(store.objects, files, "apache-2.0")
    for name in ("plan/head.json", "logs/secret-host.log", "driver.json", "job.json"):
        store.objects.put(name, b'"plan-of-the-job"')
    store.objects.put("status.json", JobStatus("finished", message="plan-of-the-job").as_json().encode())
    store.refresh()
    return store
