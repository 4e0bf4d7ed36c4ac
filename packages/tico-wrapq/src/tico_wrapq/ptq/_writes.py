"""Wrappers whose module writes to its input, which only a calibration can tell."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final, TypeAlias, final

import torch
from torch import Tensor

from tico_config import Found, Problem, UnsupportedError
from tico_quantizers import Calibration
from tico_quantizers.calibration import after_call, before_call
from tico_wrapq.base import QuantModuleBase

_OWN: Final = __name__.partition(".")[0]
_Seen: TypeAlias = tuple[Tensor, int | Tensor]


@final
class InputWrites:
    """Refuses passes in which a wrapper of another distribution leaves something else in its input.

    Watched, a point hands on the tensor itself, and what the module writes to it is there for others to read.
    On a grid it hands on another tensor, and they would read what was there before.
    """

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._open: dict[str, list[list[_Seen]]] = {}

    def watch(self, wrappers: Mapping[str, QuantModuleBase]) -> None:
        """Look at the inputs of wrappers from now on; the hooks are among the calibration's handles."""
        for path, wrapper in wrappers.items():
            if wrapper.writes_to_input or type(wrapper).__module__.partition(".")[0] == _OWN:
                continue
            note, compare = partial(self._note, path), partial(self._compare, path)
            self._calibration.handles.append(before_call(wrapper, note, self._calibration))
            self._calibration.handles.append(
                after_call(wrapper, compare, self._calibration, first=True, always=True)
            )

    def _note(self, path: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        self._open.setdefault(path, []).append([(each, _state(each)) for each in given])

    def _compare(self, path: str, args: object, kwargs: object, output: object) -> None:
        seen = self._open[path].pop()
        if output is not None and not all(_is_same(before, _state(each)) for each, before in seen):
            raise UnsupportedError(_problem(path))


def _state(x: Tensor) -> int | Tensor:
    """Return what changes as soon as something is written to `x`."""
    return x.detach().clone() if x.is_inference() else x._version


def _is_same(before: int | Tensor, after: int | Tensor) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return torch.equal(before.nan_to_num(), after.nan_to_num())
    return before is after or (isinstance(before, int) and before == after)


def _problem(path: str) -> Problem:
    return Problem(
        module=path,
        field="input",
        value=Found("one that its module writes to"),
        expected="an input that stays as it is",
        sentence="its module writes to its input, and quantized it would write to a copy that nobody reads",
        remedy=f"leave it float by overrides={{{path!r}: no_quant()}}; or, if the wrapper is yours, have its "
        "forward copy what it returns into its input where the module does, and set writes_to_input = True "
        "in its class",
    )
