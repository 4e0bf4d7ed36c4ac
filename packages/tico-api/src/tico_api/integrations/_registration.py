"""Registering with the libraries that are installed, each in a file of its own."""

from __future__ import annotations

from importlib.util import find_spec


def register() -> tuple[str, ...]:
    """Register with those of transformers and peft that are installed; return their names.

    A second call changes nothing. Both libraries are imported, which takes seconds.
    """
    registered = []
    if find_spec("transformers") is not None:
        from tico_api.integrations._transformers import register_transformers

        register_transformers()
        registered.append("transformers")
    if find_spec("peft") is not None:
        from tico_api.integrations._peft import register_peft

        register_peft()
        registered.append("peft")
    return tuple(registered)
