"""How many bytes the tensors of a model take, by the lines of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from functools import partial

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tico_modules._tree.module_tree import child_path, named_modules


def total_bytes(model: nn.Module) -> int:
    """Return how many bytes all parameters and buffers of `model` take; shared ones count once.

    >>> total_bytes(nn.Linear(3, 2))
    32
    """
    return sum(tensor.nbytes for _, tensor in _tensors(model))


def bytes_by_line(model: nn.Module, paths: Collection[str]) -> dict[str, int]:
    """Return the bytes of each line with a path in `paths`; others have none.

    A tensor belongs to the line with the longest path that leads to it, where it stands first. A parameter
    that holds a weight for each of several experts belongs in equal parts to the lines of these, if there
    are any.

    >>> model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    >>> bytes_by_line(model, ["0", "1"]), total_bytes(model)
    ({'0': 32, '1': 40}, 72)
    """
    found: Counter[str] = Counter()
    known = set(paths)
    parts = Counter(path.rpartition(".")[0] for path in known)
    for path, tensor in _tensors(model):
        if tensor.ndim == 3 and parts[path] == len(tensor):
            share = tensor.nbytes // len(tensor)
            found.update({child_path(path, str(number)): share for number in range(len(tensor))})
        elif (owner := line_above(path, known)) is not None:
            found[owner] += tensor.nbytes
    return {path: found[path] for path in paths}


def line_above(path: str, known: Collection[str]) -> str | None:
    """Return the longest path in `known` that leads to `path`; None where there is none."""
    while path and path not in known:
        path = path.rpartition(".")[0]
    return path if path in known else None


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor once, by its first path."""
    seen: set[int] = set()
    for path, module in named_modules(model):
        place = partial(child_path, path)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and not is_lazy(tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield place(name), tensor
