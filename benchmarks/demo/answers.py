"""What students say to held-out prompts, drawn with one seed, beside what their teacher said.

Only the students are loaded. The teacher's words are those of its store.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labeler.teacher.model_identity import model_fingerprint
from logitstore.common.options import positive
from logitstore.common.whole_file import write_whole
from logitstore.decoding.tokenizer_choice import choose_texts, tokenizer_folder
from logitstore.decoding.tokens import TokenTexts
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.texts import texts_around
from logitstore.models.hub import check_model_name
from logitstore.store import LogitStore
from logitstore.students.snapshots import read_snapshots
from logitstore.viewer.conversation import Conversations
from trainer.run.watch.hushing import hush_libraries

DEFAULT_TOKENS = 40
TEMPERATURE = 0.7
"""Temperature of the students' answers. After so few steps their most likely tokens only repeat one."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """To one prompt."""

    record_id: str
    asked: str
    teacher: str
    students: tuple[str, ...]
    """In the order of the folders that were given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="store of the teacher's answers")
    parser.add_argument("--students", nargs="+", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--followed", required=True, type=Path, metavar="DIR",
        help="student whose snapshots name the held-out records",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", type=positive, default=DEFAULT_TOKENS, help="of each answer (default: 40)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")


def run(args: argparse.Namespace) -> int:
    store = LogitStore.open(args.store)
    for student in args.students:
        check_model_name(str(student), revision=None, setting="--students")
    followed = [
        (one.record_id, one.sample_index)
        for one in read_snapshots(args.followed).sequences
        if one.store == store.uri  # as a training run names it, wherever it was started
    ]
    if not followed:
        raise UnsupportedInputError(
            f"the student in {str(args.followed)!r} was followed on no sequence of {store.uri}; give one "
            "that it was trained on, or raise evaluation.snapshots"
        )
    source = {
        "store": store.digest,
        "records": [list(one) for one in followed],
        "students": [model_fingerprint(student) for student in args.students],
        "tokens": args.tokens,
        "temperature": TEMPERATURE,
        "seed": SEED,
    }
    if args.out.is_file() and _source_of(args.out) == source:
        return 0
    hush_libraries(bars=True)
    found = answers_of(args.store, followed, args.students, args.tokens)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"source": source, "answers": [asdict(one) for one in found]}
    write_whole(args.out, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return 0


def _source_of(path: Path) -> Any:
    """What the answers in the file were made from; None for a file that does not say it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return document.get("source") if isinstance(document, dict) else None


def read_answers(path: Path) -> tuple[Answers, ...]:
    """What `penumbra bench answers` wrote."""
    return tuple(
        Answers(one["record_id"], one["asked"], one["teacher"], tuple(one["students"]))
        for one in json.loads(path.read_text(encoding="utf-8"))["answers"]
    )


def answers_of(
    uri: str, records: list[tuple[str, int]], students: list[Path], num_tokens: int
) -> list[Answers]:
    """To the prompts of these records (id, sample), each answer cut to `num_tokens`."""
    store = LogitStore.open(uri)
    texts, _ = choose_texts(store, None)
    folder = tokenizer_folder(store)
    conversations = Conversations(store, texts, None if folder is None else Path(folder))
    sequences = [store[record] for record in records]
    prompts = [sequence.token_ids_T[: sequence.prompt_length].tolist() for sequence in sequences]
    said = [_said(student, prompts, num_tokens, texts) for student in students]
    return [
        Answers(
            sequence.record_id,
            conversations.of(sequence.token_ids_T, sequence.prompt_length).asked,
            texts_around(
                sequence.token_ids_T[: sequence.prompt_length + num_tokens], sequence.prompt_length, texts
            )[1],
            tuple(of_student[place] for of_student in said),
        )
        for place, sequence in enumerate(sequences)
    ]


def _said(student: Path, prompts: list[list[int]], num_tokens: int, texts: TokenTexts) -> list[str]:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
    own = model.generation_config
    # `generate` would take what a call leaves open from there, a penalty on repetition among it.
    model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(SEED)
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=1.0,
                top_k=0,
            )
        answers.append(texts_around(made[0].numpy(), len(prompt), texts)[1])
    return answers
