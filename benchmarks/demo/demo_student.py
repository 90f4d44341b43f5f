"""The demo's student before it learns: half of its teacher's layers, as DistilBERT was started.

Two minutes on two cores are too short to learn language from nothing. Half of the layers with the teacher's
embeddings speak nonsense as they stand (the held-out figures before training show it), but relearn to
work together quickly. Training itself sees neither the teacher nor its other layers.
Sanh et al. 2019, "DistilBERT, a distilled version of BERT", section 3; which layers: `layer_choice`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.demo.layer_choice import most_influential
from benchmarks.demo.own_folder import refuse_others
from logitstore.common.config_file import ConfigError
from logitstore.common.terminal import first_line
from logitstore.models.hub import check_model_name
from trainer.run.watch.hushing import hush_libraries

KEPT = "layers_of_teacher"
"""Key of the student's config.json: the numbers that its layers have in the teacher."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", type=Path, default=Path(".demo/teacher"), help="folder of a Llama model")
    parser.add_argument("--out", type=Path, default=Path(".demo/student-start"), help="folder to make")
    parser.add_argument(
        "--layers", type=_layers, metavar="I,I,...",
        help="layers of the teacher to keep (default: the half that changes its input most)",
    )  # fmt: skip


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers of layers, such as 0,10,20") from None


def run(args: argparse.Namespace) -> int:
    if not _is_made(args.out, args.layers):
        if not _is_made(args.out, None):
            refuse_others(args.out, "--out")
        hush_libraries(bars=True)
        make_student(args.teacher, args.layers, args.out)
    return 0


def _is_made(folder: Path, layers: tuple[int, ...] | None) -> bool:
    """Whether the student is there, of these layers, or by the choice of this version."""
    try:
        kept = json.loads((folder / "config.json").read_bytes()).get(KEPT)
    except FileNotFoundError:
        return False
    return kept is not None and (layers is None or tuple(kept) == layers)


def make_student(teacher: Path, layers: tuple[int, ...] | None, folder: Path) -> tuple[int, ...]:
    """Write a model with only these layers of the teacher, and its tokenizer; the layers that were kept.

    None keeps half of them, those that change their input most. The folder appears in one step. ValueError
    for a layer that the teacher lacks.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_model_name(str(teacher), revision=None, setting="--teacher")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--teacher {str(teacher)!r}: no model there ({first_line(error)}); make the demo's with "
            "`penumbra bench teacher`, or give the folder of a Llama model"
        ) from None
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    if layers is None:
        layers = most_influential(model, tokenizer, len(model.model.layers) // 2)
    _keep(model, layers)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return layers


def _keep(model: Any, layers: tuple[int, ...]) -> None:
    """Take all other layers out of the model."""
    import torch

    available = model.model.layers
    if not layers or not all(0 <= index < len(available) for index in layers):
        raise ValueError(f"layers {layers} must be among the teacher's, 0 to {len(available) - 1}")
    kept = [available[index] for index in layers]
    for place, layer in enumerate(kept):
        layer.self_attn.layer_idx = place
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(layers)
    setattr(model.config, KEPT, list(layers))
