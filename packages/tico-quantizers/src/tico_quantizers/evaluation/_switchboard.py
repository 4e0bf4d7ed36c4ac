"""What in a converted model is quantized, each with a switch that lets it be float for a while."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final, final

import attrs
from torch import Tensor, nn

from tico_config import Found, Problem, UnsupportedError
from tico_modules import (
    ActivationGrid,
    KeyValueCache,
    LayerCache,
    PackedWeight,
    QuantizedLinear,
    RestorableModule,
    children,
    named_grids,
    named_modules,
    read_as,
)
from tico_quantizers.evaluation._float_weights import float_weights
from tico_quantizers.evaluation._selection import QuantizedPart
from tico_quantizers.layers import find_blocks, layers_in

_DIGITS: Final = re.compile(r"\d+")


@attrs.frozen(eq=False)
class _Slot:
    """The place of a child."""

    children: dict[str, nn.Module | None]
    name: str

    @contextmanager
    def empty(self) -> Iterator[None]:
        """Have no child there meanwhile."""
        before = self.children[self.name]
        self.children[self.name] = None
        try:
            yield
        finally:
            self.children[self.name] = before


@attrs.frozen(eq=False)
class _Switch:
    """A part, with the places of its grids and its packed weights; it has one or the other."""

    part: QuantizedPart
    slots: tuple[_Slot, ...] = ()
    weights: tuple[PackedWeight, ...] = ()


@final
class Switchboard:
    """The switches of `model`, which is called while some of them are off.

    `float_model` has the weights that layers compute with while theirs are off; it is only read.

    Raises:
        UnsupportedError: nothing in the model is quantized, or it has a graph in it.
    """

    def __init__(self, model: nn.Module, float_model: nn.Module | None) -> None:
        _require_modules(model)
        self._model, self._float_model = model, float_model
        self.blocks = tuple(path for path, _ in find_blocks(model, layers_in(model).values()))
        found = [*_weight_switches(model), *_grid_switches(model), *_cache_switches(model, self.blocks)]
        self._switches = {_key(each.part): each for each in (_placed(each, self.blocks) for each in found)}
        self._known: dict[PackedWeight, Tensor] = {}
        if not self._switches:
            remedy = "convert it first, or pass the quantized model"
            raise UnsupportedError(
                Problem(
                    field="model", value=Found("a float one"), expected="a quantized model", remedy=remedy
                )
            )

    @property
    def parts(self) -> tuple[QuantizedPart, ...]:
        """All that is quantized, weights first, each kind in the order of the model."""
        return tuple(each.part for each in self._switches.values())

    def require(self, parts: Iterable[QuantizedPart]) -> None:
        """Find the float weights of `parts`, which have to be there once they are switched off.

        Raises:
            UnsupportedError: a weight has none, or none that its codes stand for.
        """
        wanted = {part.path: self._switches[_key(part)].weights for part in parts if part.kind == "weights"}
        new = {path: [each for each in own if each not in self._known] for path, own in wanted.items()}
        if any(new.values()):
            self._known |= float_weights(self._model, self._float_model, new)

    @contextmanager
    def off(self, parts: Collection[QuantizedPart]) -> Iterator[None]:
        """Let `parts` be float meanwhile.

        Raises:
            UnsupportedError: as `require` says.
        """
        self.require(parts)
        switches = [self._switches[_key(part)] for part in parts]
        weights = {each: self._known[each] for switch in switches for each in switch.weights}
        with ExitStack() as stack:
            for slot in (slot for switch in switches for slot in switch.slots):
                stack.enter_context(slot.empty())
            stack.enter_context(read_as(weights))
            stack.enter_context(_by_reference(self._model, weights))
            yield


def _key(part: QuantizedPart) -> tuple[str, str]:
    return part.kind, part.path


def _require_modules(model: nn.Module) -> None:
    """Refuse a model with a graph in it, whose grids are operators.

    Raises:
        UnsupportedError: naming the graph.
    """
    for path, module in named_modules(model):
        if "operator_paths" in vars(module):
            sentence = "it is a graph, in which grids are operators that cannot be switched off"
            remedy = "quantize the model without PT2EConfig, or compare two graphs, one with an override"
            raise UnsupportedError(
                Problem(
                    module=path or type(module).__name__,
                    field="model",
                    value=Found("a graph"),
                    expected="a model of modules",
                    sentence=sentence,
                    remedy=remedy,
                )
            )


@contextmanager
def _by_reference(model: nn.Module, weights: Mapping[PackedWeight, Tensor]) -> Iterator[None]:
    """Let the layers with `weights` compute by the reference meanwhile: other kernels read the codes."""
    layers = (
        [each for _, each in named_modules(model) if isinstance(each, QuantizedLinear)] if weights else []
    )
    chosen = [each for each in layers if each.packed in weights and each.backend != "reference"]
    before = [(each, each.backend) for each in chosen]
    try:
        for each in chosen:
            each.use("reference")
        yield
    finally:
        for each, backend in before:
            each.use(backend)


def _weight_switches(model: nn.Module) -> Iterator[_Switch]:
    owned: dict[str, list[PackedWeight]] = {}
    modules = dict(named_modules(model))
    for path, module in modules.items():
        if isinstance(module, PackedWeight):
            owned.setdefault(_owner(path, modules), []).append(module)
    for path, weights in owned.items():
        part = QuantizedPart(path=path, kind="weights", block="", role=path)
        yield _Switch(part, weights=tuple(weights))


def _owner(path: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the path of the module whose weight has the codes at `path`."""
    above = path.rpartition(".")[0]
    while above and not isinstance(modules.get(above), RestorableModule):
        above = above.rpartition(".")[0]
    module = modules[above]
    beside = isinstance(module, RestorableModule) and module.stands_beside
    return above.rpartition(".")[0] if beside else above


def _grid_switches(model: nn.Module) -> Iterator[_Switch]:
    slots = _slots_of(model, ActivationGrid)
    for path, grid in named_grids(model):
        part = QuantizedPart(path=path, kind="activations", block="", role=path)
        yield _Switch(part, slots=tuple(slots[grid]))


def _cache_switches(model: nn.Module, blocks: Collection[str]) -> Iterator[_Switch]:
    """Yield a switch for the cache of each layer, which belongs to the block of its number."""
    slots, homes = _slots_of(model, LayerCache), list(blocks)
    for path, cache in named_modules(model):
        layers = cache.layers if isinstance(cache, KeyValueCache) else ()
        for number, layer in enumerate(layers):
            if layer is not None:
                block = homes[number] if len(homes) == len(layers) else ""
                part = QuantizedPart(path=f"{path}.{number}", kind="cache", block=block, role=path)
                yield _Switch(part, slots=tuple(slots[layer]))


def _slots_of(model: nn.Module, kind: type[nn.Module]) -> dict[nn.Module, list[_Slot]]:
    found: dict[nn.Module, list[_Slot]] = {}
    for _, parent in named_modules(model):
        own: dict[str, nn.Module | None] = parent._modules
        for name, child in children(parent).items():
            if isinstance(child, kind):
                found.setdefault(child, []).append(_Slot(own, name))
    return found


def _placed(switch: _Switch, blocks: Collection[str]) -> _Switch:
    """Return `switch` with the block and the role of its part."""
    part = switch.part
    if part.block:
        return switch
    block = part.path
    while block and block not in blocks:
        block = block.rpartition(".")[0]
    role = _DIGITS.sub("#", part.path.removeprefix(f"{block}.")) if block else part.path
    return attrs.evolve(switch, part=attrs.evolve(part, block=block, role=role))
