"""Typed views of a module tree."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from tico_config import Found, Problem, UnsupportedError


def named_modules(model: nn.Module, *, every_path: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module of `model` once with its first path, or with each of its paths.

    The order is that of `nn.Module.named_modules`, but without recursion, so that no nesting is too deep.

    Raises:
        UnsupportedError: with `every_path`, a module that holds itself, which has no end of paths.
    """
    seen: set[int] = set()
    above: set[int] = set()
    waiting: list[tuple[str, nn.Module | None, int]] = [("", model, 0)]
    while waiting:
        path, module, left = waiting.pop()
        if module is None:
            above.discard(left)
        elif every_path or id(module) not in seen:
            if id(module) in above:
                raise _cycle_error(path)
            seen.add(id(module))
            yield path, module
            below: dict[str, nn.Module | None] = module._modules
            if below:
                prefix = f"{path}." if path else ""
                found = [(prefix + name, child, 0) for name, child in below.items() if child is not None]
                if every_path:
                    above.add(id(module))
                    waiting.append((path, None, id(module)))
                waiting += reversed(found)


def _cycle_error(path: str) -> UnsupportedError:
    found, expected = Found("a module that holds itself"), "a tree of modules"
    remedy = "keep the reference to a module above in a tuple or a weakref, not as an attribute"
    return UnsupportedError(
        Problem(module=path, field="model", value=found, expected=expected, remedy=remedy)
    )


def children(module: nn.Module) -> dict[str, nn.Module]:
    """Return the children of `module` by name, shared ones under each name."""
    found: dict[str, nn.Module | None] = module._modules
    return {name: child for name, child in found.items() if child is not None}


def parameter(module: nn.Module, name: str) -> Tensor | None:
    """Return the parameter `name` that `module` itself stores, or None."""
    stored: dict[str, nn.Parameter | None] = module._parameters
    return stored.get(name)


def own_tensor(module: nn.Module, name: str) -> Tensor | None:
    """Return the tensor `name` that `module` itself holds: a parameter, a buffer or a plain attribute.

    None where it has none, or computes it.

    >>> layer = nn.Linear(2, 2)
    >>> bias = layer.bias.detach()
    >>> del layer.bias
    >>> layer.register_buffer("bias", bias)
    >>> own_tensor(layer, "bias") is bias, parameter(layer, "bias")
    (True, None)
    """
    place = tensor_place(module, name)
    return None if place is None else place[name]


def tensor_place(module: nn.Module, name: str) -> dict[str, Tensor] | None:
    """Return the dictionary in which `module` itself holds the tensor `name`, or None.

    A parameter in it may only be replaced by a parameter.
    """
    held: dict[str, dict[str, Tensor]] = vars(module)
    places = held["_parameters"], held["_buffers"], vars(module)
    return next((place for place in places if isinstance(place.get(name), Tensor)), None)


def child_path(parent: str, name: str) -> str:
    """Return the path of the child `name` of the module at `parent`.

    >>> child_path("", "fc"), child_path("model", "fc")
    ('fc', 'model.fc')
    """
    return f"{parent}.{name}" if parent else name
