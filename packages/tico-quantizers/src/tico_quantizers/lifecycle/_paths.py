"""How a line of Python names a module by its path."""

from __future__ import annotations


def place(path: str) -> str:
    """Return the expression for the module at `path` of `model`.

    >>> place(""), place("block.fc"), place("layers.0")
    ('model', 'model.block.fc', "model.get_submodule('layers.0')")
    """
    if not path:
        return "model"
    return f"model.{path}" if _has_names(path) else f"model.get_submodule({path!r})"


def replacement(path: str, function: str, rest: str = "") -> str:
    """Return the statement that puts what `function` returns for the module at `path` in its place.

    >>> replacement("", "convert"), replacement("fc", "prepare", ", config")
    ('model = convert(model)', 'model.fc = prepare(model.fc, config)')
    >>> replacement("layers.0", "convert")
    "model.set_submodule('layers.0', convert(model.get_submodule('layers.0')))"
    """
    given = f"{function}({place(path)}{rest})"
    return f"{place(path)} = {given}" if _has_names(path) else f"model.set_submodule({path!r}, {given})"


def _has_names(path: str) -> bool:
    return not path or all(part.isidentifier() for part in path.split("."))
