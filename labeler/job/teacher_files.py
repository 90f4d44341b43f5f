"""The teacher's tokenizer, chat template and licence, which a job leaves in its store."""

from __future__ import annotations

import contextlib
from pathlib import Path

from labeler.config.loading import InputConfig, TeacherConfig
from logitstore.models.hub import ANSWER_SEC, request_error
from logitstore.objects.opening import Objects
from logitstore.tokenizer_objects import files_in, licence_in, put_tokenizer, stored_tokenizer


def leave_tokenizer(objects: Objects, teacher: TeacherConfig, chat: InputConfig) -> None:
    """Give the store the tokenizer that its prompts were made with, unless it has one."""
    folder = _folder_of(teacher)
    if folder is None or stored_tokenizer(objects) is not None:
        return
    files = files_in(folder)
    if isinstance(chat.chat_template, str):
        files["chat_template.jinja"] = Path(chat.chat_template).expanduser().read_bytes()
    put_tokenizer(objects, files, licence_in(folder) or _licence_on_hub(teacher))


def _folder_of(teacher: TeacherConfig) -> Path | None:
    """Where the tokenizer was loaded from: the model's folder, or its snapshot in the cache."""
    if teacher.engine == "fake":
        return None
    if Path(teacher.model).is_dir():
        return Path(teacher.model)
    from huggingface_hub import try_to_load_from_cache

    for name in ("tokenizer_config.json", "tokenizer.json", "config.json"):
        found = try_to_load_from_cache(teacher.model, name, revision=teacher.revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _licence_on_hub(teacher: TeacherConfig) -> str:
    """What the hub says of the licence; "" for folders and where the hub does not answer."""
    if Path(teacher.model).is_dir():
        return ""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with contextlib.suppress(request_error(), OfflineModeIsEnabled):
        card = HfApi().model_info(teacher.model, revision=teacher.revision, timeout=ANSWER_SEC).card_data
        return str((card.get("license") if card is not None else None) or "")
    return ""
