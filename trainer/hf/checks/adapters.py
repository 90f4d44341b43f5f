"""Whether the modules and tokens that adapters name are the student's, before peft wraps it.

peft leaves out a name that no module has, as long as others match, and says nothing.
"""

from __future__ import annotations

from typing import Any

from trainer.errors import GuardError

_SHOWN_NAMES = 20


def check_adapters(model: Any, peft_config: Any) -> None:
    """Raises GuardError for names that no module of the student has, and ids that it has no row for."""
    names = [name for name, _ in model.named_modules() if name]
    targets = getattr(peft_config, "target_modules", None)
    if not isinstance(targets, str):  # "all-linear", or an expression, which peft refuses if nothing matches
        _check_names(model, "target_modules", {n for n in targets or () if not _ends(names, f".{n}")})
    whole = getattr(peft_config, "modules_to_save", None) or ()
    _check_names(model, "modules_to_save", {name for name in whole if not _ends(names, name)})
    token_ids = getattr(peft_config, "trainable_token_indices", None)
    if isinstance(token_ids, (list, tuple)):  # those by module, in a dictionary, are left to peft
        num_ids = model.get_input_embeddings().weight.shape[0]
        beyond = [token_id for token_id in token_ids if not 0 <= token_id < num_ids]
        if beyond:
            raise GuardError(
                f"trainable_token_indices (in a configuration student.lora.trainable_tokens) has {beyond}, "
                f"but the student's ids are 0 to {num_ids - 1}; correct them, or enlarge its embedding first"
            )


def check_no_own_loss(model: Any) -> None:
    """Raises GuardError for adapters with a loss of their own: they add it where the model computes one."""
    kinds = [
        str(getattr(one, "peft_type", "")) for one in (getattr(model, "peft_config", None) or {}).values()
    ]
    if any(kind.endswith("ADALORA") for kind in kinds):
        raise GuardError(
            "AdaLoRA adds a loss that keeps its parts orthogonal to the one that a model computes of labels, "
            "and here the loss is computed outside it, so that part would be left out; take LoRA, DoRA, IA3, "
            "LoHa or another kind"
        )


def check_mergeable(model: Any) -> None:
    """Raises GuardError for adapters of a tied head or embedding, which merging would put into both."""
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model()
    ends = (base.get_output_embeddings(), base.get_input_embeddings())
    weights = [getattr(end, "base_layer", end).weight for end in ends]
    adapted = [isinstance(end, LoraLayer) for end in ends]
    if weights[0] is weights[1] and any(adapted):
        named = "lm_head" if adapted[0] else "the embedding"
        raise GuardError(
            f"{named} has adapters, and the head of {type(base).__name__} is its embedding: merged, they "
            "would change both, and the student that is saved would not be the one that was trained; set "
            "student.lora.merge = false, or leave it out of student.lora.target_modules"
        )


def _ends(names: list[str], end: str) -> bool:
    return any(f".{name}".endswith(end) for name in names)


def _check_names(model: Any, setting: str, missing: set[str]) -> None:
    if not missing:
        return
    leaves = [name for name, module in model.named_modules() if not [*module.children()]]
    own = sorted({name.rpartition(".")[2] for name in leaves})
    shown = ", ".join(own[:_SHOWN_NAMES]) + (", ..." if len(own) > _SHOWN_NAMES else "")
    raise GuardError(
        f"{setting} (in a configuration student.lora.{setting}) names {', '.join(sorted(missing))}, as no "
        f"module of {type(model).__name__} is called; correct it: there are {shown}"
    )
