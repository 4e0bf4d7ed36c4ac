"""Which tokens a layer reads where it is given some of them only, as an expert is."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Literal, TypeAlias

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tico_modules import children, named_modules
from tico_quantizers.calibration._calls import first_rows
from tico_quantizers.calibration._expert_layers import ExpertLayers
from tico_quantizers.calibration._hooks import after_call, before_call
from tico_quantizers.calibration._picked_rows import digests, numbers_among

RowNumbers: TypeAlias = Tensor | Literal["all", "unknown"]
"""The numbers (rows,) that tokens have in the call of a block, or that they are all, in their order."""


class RowWatch:
    """Tells which tokens the rows are that a layer in a block reads, while the block is called.

    A module or layer that is given rows (rows, features) in another number than the module above it was
    given some of them, in some order: they are told by their values. In an expert, rows in the same number
    are those that it was given. All other inputs hold all tokens, in their order.
    """

    def __init__(self) -> None:
        self._calls: list[_Rows] = []
        self._experts: dict[int, int] = {}

    def watch(self, block: nn.Module) -> list[RemovableHandle]:
        """Set the hooks that tell it which modules are called."""
        handles: list[RemovableHandle] = []
        for path, module in named_modules(block):
            copies = 1
            if isinstance(module, ExpertLayers):
                copies = module.about.count if module.about.routing == "sorted" else 1
                handles += self._watch_experts(module)
            if children(module) or not path:
                begin, end = partial(self._begin, id(module), copies), partial(self._end, id(module))
                handles += [before_call(module, begin), after_call(module, end, always=True)]
        return handles

    def _watch_experts(self, module: ExpertLayers) -> list[RemovableHandle]:
        """Set hooks on the layers of experts, all of which tell which rows an expert is given."""
        handles: list[RemovableHandle] = []
        for name in module.about.transposed:
            for number, layer in enumerate(module.layers(name)):
                self._experts[id(layer)] = number
                handles.append(before_call(layer, partial(self._look, layer)))
        return handles

    def _look(self, layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        x = first_rows(args, kwargs)
        if x is not None:
            self.numbers(layer, x)

    def _begin(self, owner: int, copies: int, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Note a call with rows, or with as many `copies` of them, one after the other."""
        self._drop_from(owner)
        x = first_rows(args, kwargs)
        if x is not None:
            numbers = self._numbers(x if copies == 1 else x[: len(x) // copies])
            known = copies == 1 or isinstance(numbers, str)
            self._calls.append(_Rows(owner, x, numbers if known else "unknown"))

    def _end(self, owner: int, args: object, kwargs: object, output: object) -> None:
        self._drop_from(owner)

    def _drop_from(self, owner: int) -> None:
        owners = [call.owner for call in self._calls]
        if owner in owners:
            self._calls = self._calls[: owners.index(owner)]

    def numbers(self, layer: nn.Module, x: Tensor) -> RowNumbers:
        """Return which tokens are the rows of `x` (…, features), which `layer` reads now."""
        expert, call = self._experts.get(id(layer)), self._calls[-1] if self._calls else None
        if expert is None or call is None:
            return self._numbers(x)
        found = call.of_experts.get(expert, "unknown")
        if isinstance(found, str) or len(found) != len(x):
            found = call.of_experts[expert] = self._numbers(x)
        return found

    def _numbers(self, x: Tensor) -> RowNumbers:
        if not self._calls:
            return "all"
        if x.ndim == 2:
            own = digests(x)
            places = (call.find(x, own) for call in reversed(self._calls))
            found = next((each for each in places if each is not None), None)
            if found is not None:
                return found
        return self._calls[-1].numbers_of_changed(x)


class _Rows:
    """The rows that a module was called with, and which tokens they are.

    Of the experts of the module, `of_experts` says which of these rows each was given.
    """

    def __init__(self, owner: int, x: Tensor, numbers: RowNumbers) -> None:
        self.owner = owner
        self.of_experts: dict[int, RowNumbers] = {}
        self._rows = x.detach().reshape(-1, x.shape[-1])
        self._numbers = numbers

    @cached_property
    def _digests(self) -> Tensor:
        return digests(self._rows)

    def find(self, x: Tensor, own: Tensor) -> RowNumbers | None:
        """Return which tokens are the rows of `x`, of the digests `own`, if all of them are among these."""
        if x.shape[1] != self._rows.shape[1] or x.dtype != self._rows.dtype:
            return None
        places = numbers_among(own, self._digests)
        if places is None:
            return None
        if isinstance(self._numbers, Tensor):
            return self._numbers[places]
        return places if self._numbers == "all" else "unknown"

    def numbers_of_changed(self, x: Tensor) -> RowNumbers:
        """Return which tokens are the rows of `x`, whose values are others than those of these rows."""
        is_all = isinstance(self._numbers, str) and self._numbers == "all"
        if x.shape[:-1].numel() == len(self._rows) or (is_all and x.ndim > 2):
            return self._numbers
        return "unknown"
