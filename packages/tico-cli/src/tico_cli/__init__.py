"""The program `tico`: plan, quantize, evaluate and export language models from a shell."""

from tico_cli._program import main
from tico_cli._recipe import DataNeed, ExportStep, Recipe
from tico_cli._recipe_files import read_recipe, shipped_names, shipped_text

__all__ = ["DataNeed", "ExportStep", "Recipe", "main", "read_recipe", "shipped_names", "shipped_text"]
