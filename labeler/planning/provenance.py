"""What a plan's prompts were made from besides the settings: the files and texts of the teacher's tokenizer.

The settings name a model, but a folder's chat template can be corrected, and a Hugging Face id moves. So
the plan keeps what its token ids depend on, by name, and the manifest keeps the digests.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from labeler.config.loading import JobConfig
from labeler.errors import ChatTemplateError
from labeler.planning.given_store import GIVEN_IDS, given_ids_of, open_given
from labeler.prompting.tokenization import Conversation, Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)
"""Files that say how text becomes ids; each that the model has counts."""
CHAT_TEMPLATE = "chat template"
CLOCKS = ("strftime_now", "date_string")
"""What makes a chat template render differently on another day without being another template."""
PROBE_TEXT = "Straße №5:\n\tdon't  re-tokenise 12345, naïve 中文 <|im_end|> </s>"
"""Text that different merges, normalisers and special tokens split differently."""
SHOWN_CHARACTERS = 80

Provenance = Mapping[str, str]
"""By the name of each thing: its text where people can read it, else its digest."""


def provenance_of(job: JobConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """What the token ids of this job's prompts depend on, apart from its settings and records."""
    found = {"tokenised probe": _digest(repr([*tokenizer.bos_ids, *tokenizer.encode(PROBE_TEXT)]))}
    template = tokenizer.chat_template
    if template is not None:
        found[CHAT_TEMPLATE] = template
        if not any(clock in template for clock in CLOCKS):
            found["rendered probe"] = _rendered_probe(tokenizer)
    found["special tokens"] = tokenizer.special_tokens
    if job.labels.given:
        found[GIVEN_IDS] = given_ids_of(open_given(job))
    if job.teacher.engine != "fake":
        names = [*TOKENIZER_FILES, *(["generation_config.json"] if job.labels.mode == "generate" else [])]
        for name in names:
            path = _file_of_model(job, name)
            if path is not None:
                found[name] = _digest(_content(path))
    return found


def digests_of(provenance: Provenance) -> dict[str, str]:
    """The same with texts as digests, for the manifest."""
    return {
        name: value if value.startswith("blake2b:") else _digest(value) for name, value in provenance.items()
    }


def describe_change(stored: Provenance, now: Provenance) -> list[str]:
    """One phrase per thing that is another one now."""
    names = sorted(set(stored) | set(now))
    return [
        _change(name, stored.get(name), now.get(name)) for name in names if stored.get(name) != now.get(name)
    ]


def _change(name: str, stored: str | None, now: str | None) -> str:
    if stored is None or now is None:
        before, after = ("no", "one") if stored is None else ("a", "none")
        return f"there was {before} {name} and there is {after} now"
    if stored.startswith("blake2b:"):
        return f"the {name} is another one ({stored} in the store, {now} now)"
    lines = zip(_lines(stored), _lines(now), strict=False)
    before, after = next(((left, right) for left, right in lines if left != right), ("", ""))
    if not before and not after:
        return f"the {name} has {len(stored):,} characters in the store and {len(now):,} now"
    return f"the {name} has {_shown(before)} in the store and {_shown(after)} now"


def _lines(text: str) -> list[str]:
    return text.replace("%}", "%}\n").splitlines()


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...")


def _rendered_probe(tokenizer: Tokenizer) -> str:
    conversation = Conversation(({"role": "user", "content": PROBE_TEXT},))
    try:
        text = tokenizer.render_chat(conversation, add_generation_prompt=True)
    except ChatTemplateError:
        return "refused"
    return _digest(repr(tokenizer.encode(text)))


def _file_of_model(job: JobConfig, name: str) -> Path | None:
    if os.path.isdir(job.teacher.model):
        path = Path(job.teacher.model) / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(
        job.teacher.model,
        name,
        revision=job.teacher.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _content(path: Path) -> str:
    """The file's text; JSON in one form, without the library's version, which changes without the model."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    if path.suffix != ".json":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, dict):
        value.pop("transformers_version", None)
    return json.dumps(value, sort_keys=True)


def _digest(text: str) -> str:
    return "blake2b:" + hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
