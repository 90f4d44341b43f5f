"""What MLflow and trackio have of a project's runs, read by their own clients; run with both on the path.

python -m tests.trainer.run.tracker_records PROJECT TRACKIO_RUN
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def mlflow_runs(project: str) -> list[dict[str, Any]]:
    mlflow: Any = importlib.import_module("mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(project)
    records = []
    for run in client.search_runs([experiment.experiment_id]):
        metrics = {
            name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        name, status = run.info.run_name, run.info.status
        records.append({"name": name, "status": status, "params": run.data.params, "metrics": metrics})
    return records


def trackio_runs(project: str, logged: str) -> list[dict[str, Any]]:
    """Of the run `logged` also its figures, by name."""
    trackio: Any = importlib.import_module("trackio")
    storage: Any = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    metrics = by_name(storage.get_logs(project, logged))
    return [
        {"name": run.name, "config": run.config, "metrics": metrics if run.name == logged else None}
        for run in trackio.Api().runs(project)
    ]


def by_name(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, Any]]]:
    metrics: dict[str, list[tuple[int, Any]]] = {}
    for line in lines:
        for name, value in line.items():
            metrics.setdefault(name, []).append((line["train/global_step"], value))
    return metrics


if __name__ == "__main__":
    project, logged = sys.argv[1:]
    print(json.dumps({"mlflow": mlflow_runs(project), "trackio": trackio_runs(project, logged)}, default=str))
