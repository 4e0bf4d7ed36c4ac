"""A converted model, read off once for every writer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import attrs
from torch import Tensor, nn

from tico_config import FloatFormat, Found, LifecycleError, Problem, UnsupportedError
from tico_export.source._grid import Grid
from tico_export.source._quantized_weight import QuantizedWeight
from tico_modules import (
    ActivationGrid,
    PackedWeight,
    QuantizedModule,
    RestorableModule,
    is_prepared,
    named_modules,
    runs_of,
)


@attrs.define(eq=False, kw_only=True, slots=False)
class Source:
    """A converted model as all writers see it: nothing here knows of an algorithm or of a format.

    Attributes:
        model: the model itself, for what exports its graph. A writer changes nothing of it.
        weights: the quantized layers, by path, in the order of the model.
        floats: the parameters and buffers that are left in float, or are no floats at all, by the name that
            they have in the state dict of the float model; what is not saved there is left out.
        aliases: further names of tensors in `floats` and of weights, such as that of a tied head, with the
            name under which the tensor stands.
        points: grids of activations that belong to no integer layer, by their path.
        float_formats: the formats of floating-point elements among the codes, by the path of what holds them.
            A file format that does not know one has to refuse it.
        others: modules that hold integers or arithmetic of their own and are no layer, by path: experts,
            multiplications of inputs. A format that does not know one has to refuse it.
    """

    model: nn.Module
    weights: Mapping[str, QuantizedWeight]
    floats: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    points: Mapping[str, Grid]
    float_formats: Mapping[str, FloatFormat]
    others: Mapping[str, RestorableModule]

    @classmethod
    def read(cls, model: nn.Module) -> Source:
        """Return what `model` holds.

        Raises:
            UnsupportedError: it is no module, or was not converted.
            LifecycleError: it is in training mode.
        """
        _require_converted(model)
        modules = dict(named_modules(model))
        layers = {path: each for path, each in modules.items() if isinstance(each, QuantizedModule)}
        inside = [f"{path}." if path else "" for path in layers]
        weights = {path: QuantizedWeight.of(path, layer) for path, layer in layers.items()}
        floats, aliases = _floats(model, modules)
        return cls(
            model=model,
            weights=weights,
            floats=floats,
            aliases=aliases | dict(_ties(weights)),
            points={
                _point_path(path, modules): Grid.of(each)
                for path, each in modules.items()
                if isinstance(each, ActivationGrid) and not path.startswith(tuple(inside))
            },
            float_formats=dict(_float_formats(modules)),
            others=dict(_others(modules)),
        )

    @cached_property
    def content_bytes(self) -> int:
        """The bytes of the tensors that the model holds: codes, scales, zero points and floats, each once."""
        tensors = {id(each): each for each in (*self.model.parameters(), *self.model.buffers())}
        return sum(each.numel() * each.element_size() for each in tensors.values())

    @property
    def float_weights(self) -> list[str]:
        """The names of the parameters of two axes or more that are left in float, as the model has them."""
        every = self.model.named_parameters()
        return [name for name, each in every if each.is_floating_point() and each.ndim > 1]

    @property
    def config(self) -> object:
        """The config of a transformers model; None of any other."""
        return getattr(self.model, "config", None)


def _point_path(path: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the path of a point as reports have it: that of the module whose step it is, and its name."""
    parts = path.split(".")
    above = [modules.get(".".join(parts[: end + 1])) for end in range(len(parts))]
    beside = [isinstance(each, RestorableModule) and each.stands_beside for each in above]
    return ".".join(part for part, left in zip(parts, beside, strict=True) if not left).removesuffix(".fixed")


def _require_converted(model: object) -> None:
    if not isinstance(model, nn.Module):
        remedy = "pass what convert returned"
        raise UnsupportedError(
            Problem(field="model", value=model, expected="a converted model", remedy=remedy)
        )
    _require_finished(model)
    if not any(isinstance(each, RestorableModule) or runs_of(each) for _, each in named_modules(model)):
        found = Found("a model with neither integer layers nor grids")
        remedy = "prepare, calibrate and convert it first"
        raise UnsupportedError(
            Problem(field="model", value=found, expected="a converted model", remedy=remedy)
        )
    if model.training:
        found, remedy = Found("one in training mode"), "call model.eval() first"
        expected = "a model in evaluation mode"
        raise LifecycleError(Problem(field="model", value=found, expected=expected, remedy=remedy))


def _require_finished(model: nn.Module) -> None:
    """Refuse a model that is prepared: running it would calibrate it.

    Raises:
        LifecycleError: naming the part that is.
    """
    for path, each in named_modules(model):
        if is_prepared(each) or (isinstance(each, RestorableModule) and each.is_calibrating):
            found, sentence = Found("one that is prepared"), "the model is prepared, and not converted"
            raise LifecycleError(
                Problem(
                    module=path or None,
                    field="model",
                    value=found,
                    expected="a converted model",
                    sentence=sentence,
                    remedy="call convert(model) first",
                )
            )


def _floats(model: nn.Module, modules: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors outside of integer layers and grids, and the further names of shared ones."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    hidden = tuple(f"{path}." for path, each in modules.items() if _holds_its_own(each))
    for name, tensor in _saved_tensors(model):
        if name.startswith(hidden) or isinstance(modules[""], QuantizedModule | ActivationGrid):
            continue
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor
    return tensors, aliases


def _holds_its_own(module: nn.Module) -> bool:
    parts = isinstance(module, RestorableModule) and not (module.holds_modules or _takes_part(module))
    return isinstance(module, QuantizedModule | ActivationGrid) or parts


def _takes_part(module: RestorableModule) -> bool:
    """Whether modules of the model stand below `module`, as below a wrapper of attention."""
    below = named_modules(module)
    return any(isinstance(each, QuantizedModule) and each is not module for _, each in below)


def _saved_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a state dict of the model would hold, without making one."""
    for path, module in named_modules(model, every_path=True):
        prefix = f"{path}." if path else ""
        unsaved: set[str] = module._non_persistent_buffers_set
        own: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is not None and name not in unsaved:
                yield prefix + name, tensor


def _float_formats(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, FloatFormat]]:
    for path, each in modules.items():
        if isinstance(each, PackedWeight | ActivationGrid) and isinstance(each.dtype, FloatFormat):
            yield path, each.dtype


def _ties(weights: Mapping[str, QuantizedWeight]) -> Iterator[tuple[str, str]]:
    first: dict[int, str] = {}
    for each in weights.values():
        name = first.setdefault(id(each.packed), each.name)
        if name != each.name:
            yield each.name, name


def _others(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, RestorableModule]]:
    for path, each in modules.items():
        if isinstance(each, RestorableModule) and not isinstance(each, QuantizedModule):
            yield path, each
