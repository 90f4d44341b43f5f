"""All subcommands of `penumbra label` about prompts and responses, and `recipe`, which joins them."""

from __future__ import annotations

import argparse
from typing import Any

from labeler.config.loading import job_document
from labeler.curation.commands.asked import add_expand, add_judge
from labeler.curation.commands.check import add_check
from labeler.curation.commands.options import add_set, add_step
from labeler.curation.commands.sifted import add_decontaminate, add_dedupe
from logitstore.common.exit_status import ExitStatus


def add_curation_commands(commands: Any, epilog: str) -> None:
    """Add the subcommands to those of `penumbra label`."""
    add_expand(commands, epilog)
    add_dedupe(commands, epilog)
    add_decontaminate(commands, epilog)
    add_judge(commands, epilog)
    add_check(commands, epilog)
    recipe = add_step(
        commands,
        "recipe",
        "from seeds to a labeled store through all these steps",
        """Does the steps that the recipe has a section for, in this order: expand, dedupe, decontaminate,
judge, label, check. One ledger, recipe.json in recipe.out, remembers what is done; the same command goes on.
""",
        "examples:\n  penumbra label recipe configs/recipe.toml --set recipe.out=build/recipe\n",
        epilog,
    )
    recipe.add_argument(
        "recipe", help="TOML file: [recipe] seeds, out; a section for each step; a job's sections"
    )
    add_set(recipe)
    recipe.add_argument("--quiet", action="store_true", help="show trouble only")
    recipe.set_defaults(command=_recipe)


def _recipe(arguments: argparse.Namespace) -> int:
    from labeler.curation.recipe import run_recipe
    from labeler.curation.recipe_file import checked_recipe

    recipe = checked_recipe(job_document(arguments.recipe, arguments.set), arguments.recipe)
    last = run_recipe(recipe, quiet=arguments.quiet, say=_silent if arguments.quiet else print)
    if not arguments.quiet:
        following = (
            f"penumbra train run --student MODEL --labels {last} --out FOLDER"
            if "label" in recipe.steps
            else f"penumbra label run --teacher MODEL --input {last} --out FOLDER"
        )
        print(f"result: {last}\nnext: {following}")
    return ExitStatus.DONE


def _silent(text: str) -> None:
    pass
