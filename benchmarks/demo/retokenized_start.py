"""A student of another tokenizer family before it learns: the teacher's layers under a new embedding.

The tokenizer is Mistral's first one, a SentencePiece model of 32,000 pieces that falls back to bytes, as
Llama's; vLLM's own dependency mistral-common brings its file. It gets the teacher's chat tokens and
template. A piece whose bytes are one of the teacher's tokens takes over its embedding, another piece the mean
of the embeddings that the teacher would write it with.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmarks.demo.own_folder import refuse_others
from logitstore.common.config_file import ConfigError
from logitstore.retokenize.tokenization import NO_ID, Tokenization, equal_ids, load_tokenization

PIECES = "tokenizer.model.v1"
SPACE = "\u2581"


def make_start(teacher: Path, folder: Path) -> None:
    """The student's model and tokenizer; the folder appears in one step, and one that is there is kept."""
    if (folder / "model.safetensors").is_file():
        return
    refuse_others(folder, "student.model =")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        _write_tokenizer(teacher, partial)
        _write_model(teacher, partial)
        partial.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_tokenizer(teacher: Path, folder: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    theirs: Any = AutoTokenizer.from_pretrained(teacher)
    own = PreTrainedTokenizerFast(
        tokenizer_object=_pieces(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    chat = ["<|im_start|>", "<|im_end|>"]
    own.add_special_tokens({"additional_special_tokens": chat})
    own.eos_token = own.pad_token = chat[1]
    own.chat_template = theirs.chat_template
    own.save_pretrained(folder)


def _pieces() -> Any:
    """The SentencePiece model as a tokenizer of the `tokenizers` package."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    try:
        file = files("mistral_common") / "data" / PIECES
    except ModuleNotFoundError:
        raise ConfigError(
            "the student's tokenizer comes with mistral-common, which is not installed; "
            "install the extra label-cpu"
        ) from None
    found: Any = SentencePieceExtractor(str(file)).extract(BPE)
    tokenizer = Tokenizer(
        BPE(found["vocab"], found["merges"], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.add_special_tokens(["<unk>", *found["additional_special_tokens"]])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)  # type: ignore[assignment]  # the library's own way to set it
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _write_model(teacher: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    theirs, own = load_tokenization(str(teacher)), load_tokenization(str(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    old_VH = model.get_input_embeddings().weight.detach().clone()
    new_VH = torch.stack([old_VH[ids].mean(dim=0) for ids in teacher_ids(theirs, own)])
    model.resize_token_embeddings(own.vocab_size)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(new_VH)
    end = own.added["<|im_end|>"]
    for settings in (model.config, model.generation_config):
        settings.bos_token_id, settings.eos_token_id, settings.pad_token_id = own.roles["bos_token"], end, end
    model.save_pretrained(folder)


def teacher_ids(teacher: Tokenization, student: Tokenization) -> list[list[int]]:
    """By id of the student, the teacher's tokens that stand for it; a byte that none of them can write
    has the teacher's token 0."""
    equal_V = equal_ids(teacher, student, {})
    found = {int(own): [theirs] for theirs, own in enumerate(equal_V.tolist()) if own != NO_ID}
    for own in range(student.vocab_size):
        if own not in found:
            text = student.bytes_by_id.get(own, b"").decode(errors="replace")
            found[own] = teacher.encoder.encode(text, add_special_tokens=False).ids or [0]
    return [found[own] for own in range(student.vocab_size)]
