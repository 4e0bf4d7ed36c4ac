"""The public names of tico_cli."""

from __future__ import annotations

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_cli` promises; help and completion do not wait for torch."""

    package = "tico_cli"
    hidden = ("torch", "transformers", "rich", "tico_api", "tico")
    names = (
        "DataNeed",
        "ExportStep",
        "Recipe",
        "main",
        "read_recipe",
        "shipped_names",
        "shipped_text",
    )
