"""What the trackers of `training.report_to` are told beyond transformers' own lines, and what they may do."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from types import TracebackType

from logitstore.common.config_file import ConfigError
from trainer.run.config import TrainConfig, TrainingConfig

PROJECT_VARIABLES = {
    "wandb": "WANDB_PROJECT",
    "mlflow": "MLFLOW_EXPERIMENT_NAME",
    "comet_ml": "COMET_PROJECT_NAME",
    "swanlab": "SWANLAB_PROJECT",
}
"""Where transformers reads a tracker's project; trackio's is an argument of the training."""
REMEDIES = {
    "wandb": "`wandb login` or WANDB_MODE=offline",
    "mlflow": "MLFLOW_TRACKING_URI=sqlite:///FILE, or the address of a server that answers",
    "trackio": "TRACKIO_DIR=FOLDER, which can be written",
}


def prepare_trackers(training: TrainingConfig) -> None:
    """Set their variables where the environment does not: the project, and that MLflow calls nobody else."""
    for tracker in training.report_to:
        variable = PROJECT_VARIABLES.get(tracker)
        if training.project is not None and variable is not None:
            os.environ.setdefault(variable, training.project)
    if "mlflow" in training.report_to:
        # MLflow otherwise reports how it is used to its makers, from a thread of its own.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@contextlib.contextmanager
def tracker_errors(config: TrainConfig) -> Iterator[None]:
    """Turns what a tracker of `training.report_to` raises into a ConfigError that names the setting.

    What trackers print goes to stderr, as stdout is left to results.
    """
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except Exception as error:
            tracker = _raised_in(error.__traceback__, config.training.report_to)
            if tracker is None:
                raise
            remedy = f" ({REMEDIES[tracker]})" if tracker in REMEDIES else ""
            raise ConfigError(
                f"training.report_to = {tracker!r}: {type(error).__name__}: {error!s:.300}. Set the tracker "
                f"up{remedy}, or leave {tracker!r} out"
            ) from error


def _raised_in(traceback: TracebackType | None, trackers: tuple[str, ...]) -> str | None:
    """The tracker whose code was running, whatever the type of the error."""
    while traceback is not None:
        package = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in trackers:
            return package
        traceback = traceback.tb_next
    return None
