"""The steps of rounds, each one able to begin again: label, write down, score, measure, train."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.errors import ClusterError, JobRefusedError
from cluster.rounds import documents as made
from cluster.rounds.config import Documents, RoundsConfig
from cluster.rounds.support import outside_by_k
from labeler.config.loading import JobConfig, checked_job
from labeler.job.status import read_status
from logitstore.common.config_file import ConfigError, explain_problem
from logitstore.common.whole_file import write_whole
from logitstore.manifest.fields import STUDENT_PROMPTS, Manifest
from logitstore.manifest.reading import teacher_identity
from logitstore.processes.with_parent import ending_with_this
from logitstore.store import LogitStore

Command = Callable[[Sequence[str]], str]
"""Runs `python -m ...` to its end and returns its standard output. Raises StepFailedError."""


class StepFailedError(ClusterError):
    """A command of a step ended with an error, which it has said."""


@dataclass(frozen=True)
class Places:
    """Where things of one round lie."""

    folder: Path

    @property
    def answers(self) -> str:
        return str(self.folder / "answers")

    @property
    def texts(self) -> str:
        return str(self.folder / "answers.jsonl")

    @property
    def scores(self) -> str:
        return str(self.folder / "scores")

    @property
    def student(self) -> str:
        return str(self.folder / "student")


@dataclass(frozen=True)
class Rounds:
    """Everything that the steps need."""

    config: RoundsConfig
    documents: Documents
    command: Command

    def places(self, number: int) -> Places:
        return Places(Path(self.config.folder) / f"round-{number}")

    def student_before(self, number: int) -> str:
        """The student that answers in round `number`."""
        return self.documents.train["student"]["model"] if number == 1 else self.places(number - 1).student

    def check(self) -> None:
        """Hold what the steps will be told against their settings, before hours of the first are spent.

        Raises ConfigError, or StepFailedError for the training's.
        """
        places, job = self.places(1), self.config.job
        engine = self.documents.job.get("teacher", {}).get("engine")
        if engine == "openai":
            raise ConfigError(
                f"{job}: teacher.engine = {engine!r} asks a server, and rounds start the student, which no "
                'server has; set "vllm", or leave it out'
            )
        student = self.student_before(1)
        answers = made.answer_job(
            self.documents, self.config, student=student, seed_step=1, out=places.answers
        )
        checked_job(answers, f"{job}, as the student is to answer it")
        scores = made.score_job(
            self.documents, self.config, answers=places.texts, out=places.scores, own_prompts=False
        )
        checked_job(scores, f"{job}, as the teacher is to score it")
        _refuse_unknown(self.documents.job, job)
        run = made.training_run(
            self.documents, self.config, student=student, scores=[places.scores], out=places.student
        )
        self.command(["trainer", "run", self._file(places, "train.json", run), "--dry-run", "--quiet"])

    def answer(self, number: int) -> dict[str, Any]:
        """The student answers the prompts."""
        places = self.places(number)
        job = made.answer_job(
            self.documents,
            self.config,
            student=self.student_before(number),
            seed_step=number,
            out=places.answers,
        )
        self.command(["labeler", "run", self._file(places, "answer.json", job), "--quiet"])
        return _counts(places.answers)

    def texts(self, number: int) -> dict[str, Any]:
        """The answers as records of token ids."""
        places = self.places(number)
        lines: list[str] = []
        for sequence in LogitStore.open(places.answers).iter_sequences():
            length = sequence.prompt_length
            suffix = f"#{sequence.sample_index}" if sequence.sample_index else ""
            prompt = sequence.token_ids_T[:length].tolist()
            record = {
                "id": f"{sequence.record_id}{suffix}",
                "token_ids": prompt,
                "response_token_ids": sequence.token_ids_T[length:].tolist(),
            }
            if sequence.student_prompt_ids is not None:  # the student answered its own: this is the teacher's
                own = {"token_ids": sequence.student_prompt_ids.tolist(), "student_token_ids": prompt}
                record |= own
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        write_whole(Path(places.texts), "".join(lines))
        return {"records": len(lines)}

    def score(self, number: int) -> dict[str, Any]:
        """The teacher scores them; it must be the one that labeled everything else."""
        places = self.places(number)
        job = made.score_job(
            self.documents,
            self.config,
            answers=places.texts,
            out=places.scores,
            own_prompts=STUDENT_PROMPTS in LogitStore.open(places.answers).manifest.features,
        )
        self.command(["labeler", "run", self._file(places, "score.json", job), "--quiet"])
        store = LogitStore.open(places.scores)
        answers = LogitStore.open(places.answers).manifest.tokenizer
        if answers.fingerprint != store.manifest.tokenizer.fingerprint:
            raise JobRefusedError(
                f"the student in {self.student_before(number)} has another tokenizer than the teacher: its "
                "ids mean other tokens to it; use a student with the teacher's tokenizer"
            )
        earlier = [self.places(before).scores for before in range(1, number)]
        for uri in [*made.teacher_stores(self.documents), *earlier]:
            other = LogitStore.open(uri).manifest
            if teacher_identity(other) != teacher_identity(store.manifest):
                raise JobRefusedError(
                    f"{uri} was labeled by {_named(other)}, {store.uri} by {_named(store.manifest)}: one "
                    "teacher labels all text of the rounds; name it in the job, and stores of its labels in "
                    "the run"
                )
        num_rows = int(store.shards().column("num_rows").sum())
        return {"digest": store.digest, "rows": num_rows, **_counts(places.scores)}

    def measure(self, number: int) -> dict[str, Any]:
        """How close the student of this round is, on its own text and on the teacher's."""
        places = self.places(number)
        own = self._file(places, "own.json", made.evaluation_of_own_text(self.documents, places.scores))
        student = self.student_before(number)
        found = {"own": self._evaluate(own, student)}
        found["teacher"] = self._evaluate(self._file(places, "teacher.json", self.documents.train), student)
        teacher_text = outside_by_k(made.teacher_stores(self.documents))
        return found | {"outside": {"own": outside_by_k([places.scores]), "teacher": teacher_text}}

    def train(self, number: int) -> dict[str, Any]:
        """Training goes on over all text."""
        places = self.places(number)
        run = made.training_run(
            self.documents,
            self.config,
            student=self.student_before(number),
            scores=[self.places(before).scores for before in range(1, number + 1)],
            out=places.student,
        )
        told = self.command(["trainer", "run", self._file(places, "train.json", run), "--json", "--quiet"])
        return {"steps": json.loads(told.strip().splitlines()[-1])["num_steps"], "student": places.student}

    def measure_last(self, number: int) -> dict[str, Any]:
        """The last student on the teacher's text; it has written nothing yet."""
        places = self.places(number)
        file = self._file(places, "teacher.json", self.documents.train)
        return {"teacher": self._evaluate(file, places.student)}

    def _evaluate(self, file: str, student: str) -> dict[str, Any]:
        told = self.command(["trainer", "eval", file, "--model", student, "--json", "--quiet"])
        return json.loads(told.strip().splitlines()[-1])

    def _file(self, places: Places, name: str, document: dict[str, Any]) -> str:
        places.folder.mkdir(parents=True, exist_ok=True)
        path = places.folder / name
        write_whole(path, json.dumps(document, indent=1))
        return str(path)


def run_command(arguments: Sequence[str]) -> str:
    """`python -m` with these arguments, which dies with this process; its standard error is this one's."""
    ended = subprocess.run(ending_with_this(arguments), stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise StepFailedError(
            f"`{' '.join(arguments)}` ended with status {ended.returncode}; mend what it says and repeat the "
            "command: what is done stays done"
        )
    return ended.stdout


def _named(manifest: Manifest) -> str:
    return f"{manifest.teacher.model} ({manifest.teacher.fingerprint:.24})"


def _counts(uri: str) -> dict[str, Any]:
    """What a labeling job stored; and by kind what it rejected, of its input or of what its engine wrote."""
    status = read_status(uri)
    return {"sequences": status.sequences, "rejects": dict(status.rejects_by_kind)}


def _refuse_unknown(document: dict[str, Any], where: str) -> None:
    """Raises ConfigError for what is no setting of a job: the steps leave out what rounds say themselves, and
    with it what is misspelt there."""
    try:
        JobConfig.model_validate(document)
    except ValidationError as error:
        unknown = [one for one in error.errors() if one["type"] == "extra_forbidden"]
        if unknown:
            lines = [explain_problem(one, JobConfig, what="job") for one in unknown]
            raise ConfigError(f"{where}: {'; '.join(lines)}") from None
