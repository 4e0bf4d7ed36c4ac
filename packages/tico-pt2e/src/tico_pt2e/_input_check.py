"""What the inputs of an exported graph have to be, checked where the graph begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs
import torch
from torch import Tensor, fx, nn

from tico_config import Found, Problem, UnsupportedError

Size: TypeAlias = int | str
"""A fixed size, or the name that equal free sizes share."""


@attrs.frozen
class TensorInput:
    """A tensor with the given sizes and format."""

    name: str
    sizes: tuple[Size, ...]
    dtype: torch.dtype


@attrs.frozen
class ConstantInput:
    """A value that the graph was exported with and that holds for every call."""

    name: str
    value: bool | int | float | str | None


class InputCheck(nn.Module):
    """Refuses inputs that a graph was not exported for, before anything is computed with them."""

    # What fx calls a node that must stay although nothing reads its result.
    _is_impure = True

    def __init__(self, expected: Sequence[TensorInput | ConstantInput]) -> None:
        super().__init__()
        self.expected = tuple(expected)

    def forward(self, *inputs: object) -> None:
        """Check the inputs of the graph.

        Raises:
            UnsupportedError: naming the input.
        """
        if torch.compiler.is_compiling():
            return
        free: dict[str, int] = {}
        for wanted, given in zip(self.expected, inputs, strict=True):
            problem = _problem(wanted, given, free) or _format_problem(wanted, given)
            if problem is not None:
                raise UnsupportedError(problem)


def _format_problem(wanted: TensorInput | ConstantInput, given: object) -> Problem | None:
    if isinstance(wanted, ConstantInput) or not isinstance(given, Tensor) or given.dtype == wanted.dtype:
        return None
    sentence = f"the input {wanted.name} is {given.dtype}, and the graph was exported for {wanted.dtype}"
    return Problem(
        field=wanted.name,
        value=Found(str(given.dtype)),
        expected=str(wanted.dtype),
        sentence=sentence,
        remedy=f"call it with {wanted.name}.to({wanted.dtype})",
    )


def _problem(wanted: TensorInput | ConstantInput, given: object, free: dict[str, int]) -> Problem | None:
    if isinstance(wanted, ConstantInput):
        fits = type(given) is type(wanted.value) and given == wanted.value
        remedy = "the graph was exported with it: call prepare with the value to be used"
        problem = Problem(field=wanted.name, value=given, expected=repr(wanted.value), remedy=remedy)
        return None if fits else problem
    found = tuple(given.shape) if isinstance(given, Tensor) else None
    if found is not None and _all_fit(wanted.sizes, found, free):
        return None
    sizes = ", ".join(map(str, wanted.sizes))
    value = Found(type(given).__name__ if found is None else f"one of sizes {found}")
    remedy = "name the axes that are to stay free in dynamic_shapes, or give prepare other example inputs"
    return Problem(field=wanted.name, value=value, expected=f"a tensor of sizes ({sizes})", remedy=remedy)


def _all_fit(sizes: tuple[Size, ...], found: tuple[int, ...], free: dict[str, int]) -> bool:
    pairs = zip(sizes, found, strict=False)
    return len(sizes) == len(found) and all(_fits(size, here, free) for size, here in pairs)


def _fits(size: Size, here: int, free: dict[str, int]) -> bool:
    return here == (size if isinstance(size, int) else free.setdefault(size, here))


def input_check(graph: fx.Graph) -> InputCheck:
    """Return the check of what the placeholders of `graph` were exported with."""
    return InputCheck([_expected(node) for node in graph.nodes if node.op == "placeholder"])


def _expected(node: fx.Node) -> TensorInput | ConstantInput:
    value: object = node.meta.get("val")
    if isinstance(value, Tensor):
        return TensorInput(node.name, tuple(_size(size) for size in value.shape), value.dtype)
    constant = value if isinstance(value, bool | int | float | str) else None
    return ConstantInput(node.name, constant)


def _size(size: int | torch.SymInt) -> Size:
    """Return a size: fixed too where the exporter found that out only after it had left it free."""
    if isinstance(size, int):
        return size
    fixed: int | None = size.node.maybe_as_int()
    return str(size) if fixed is None else fixed
