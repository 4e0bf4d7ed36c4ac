"""The grids of activations that a model holds, by path."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from tico_modules._storage.activation_grid import ActivationGrid
from tico_modules._tree.answers import stands_beside
from tico_modules._tree.module_tree import child_path, children, named_modules


def named_grids(model: nn.Module) -> Iterator[tuple[str, ActivationGrid]]:
    """Yield the grids of activations, by the paths that people know them by.

    A module that holds nothing but a grid is the point itself, and one that stands beside another module has
    the points of that module.
    """
    modules = dict(named_modules(model))
    for path, grid in modules.items():
        if isinstance(grid, ActivationGrid):
            above, _, name = path.rpartition(".")
            alone = above in modules and list(children(modules[above])) == [name]
            point = above if alone else path
            owner, _, last = point.rpartition(".")
            beside = owner in modules and stands_beside(modules[owner])
            yield child_path(owner.rpartition(".")[0], last) if beside else point, grid
