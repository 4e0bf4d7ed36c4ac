"""tico plan: what a recipe will do to a model, from its config alone."""

from __future__ import annotations

from pathlib import Path

from tico_api import plan
from tico_cli._model_folders import skeleton
from tico_cli._recipe import Recipe
from tico_quantizers.planning import Plan


def plan_folder(folder: Path, recipe: Recipe) -> Plan:
    """Return the plan of `recipe` for the model in `folder`, whose weights need not be there.

    Raises:
        ConfigError: there is no model, or the recipe does not fit it.
        UnsupportedError: the model cannot be handled.
    """
    return plan(skeleton(folder), recipe.stages)
