"""Experts whose weights stand in one parameter, with integers in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor, nn
from typing_extensions import Self

from tico_config import ArtifactError, Found, NumberFormat, Problem, UnsupportedError
from tico_modules._layers.expert_weights import ExpertWeights, FloatExpert, dtype_of, shape_of
from tico_modules._layers.lent_state import call_as
from tico_modules._layers.restorable import RestorableModule
from tico_modules._storage.layout import Layout, require_tensor, select_below
from tico_modules._storage.meta_tensors import require_values
from tico_modules._storage.packed_weight import PackedWeight
from tico_modules._storage.read_only_weight import read_only
from tico_modules._tree.answers import HISTORY
from tico_modules._tree.module_tree import parameter
from tico_observers import have_numbers


@final
class QuantizedExperts(RestorableModule):
    """A module of experts in which integers stand for parameters that hold one weight for each expert.

    transformers keeps the experts of a layer in parameters of three axes, and multiplies by them one after
    the other, by index or in groups. Here each expert has packed codes of its own: the module that `experts`
    was has a list of `PackedWeight` in the place of such a parameter, under the parameter's name. All else
    that it holds, such as biases, stays as it is.

    A call runs the forward of the class that `experts` is of. Where that asks for the weight of one expert,
    only this one is dequantized, and where it asks for all at once only those of the experts that the call
    chooses; in a traced or compiled function, all of them.

    Args:
        experts: the float module, which is left as it is.
        weights: the weights by the name of the parameter that they stand for.
        choosing: the module is called with the numbers of the experts that each token goes to, as its only
            tensor of integers. Experts that are not in it are not dequantized.

    Raises:
        UnsupportedError: a name is no parameter of `experts`, or one of another shape.
    """

    kind: ClassVar[str] = "experts"
    unsaved: ClassVar[frozenset[str]] = frozenset({"like"})
    like: nn.Parameter

    def __init__(self, experts: nn.Module, weights: Mapping[str, ExpertWeights], *, choosing: bool) -> None:
        super().__init__()
        _require_parameters(experts, weights)
        _adopt_state(experts, self, set(weights))
        self._kind = type(experts)
        self._choosing = choosing
        self._transposed = {name: each.transposed for name, each in weights.items()}
        for name, each in weights.items():
            self._modules[name] = nn.ModuleList(each.experts)  # a name may be one of the class's own
        empty = torch.empty(0, dtype=dtype_of(next(iter(weights.values()))), device=self._device())
        self.like = nn.Parameter(empty, requires_grad=False)

    @classmethod
    def from_float(
        cls,
        experts: nn.Module,
        dtype: NumberFormat,
        *,
        transposed: Mapping[str, bool],
        choosing: bool,
        symmetric: bool = False,
        group_size: int | None = None,
    ) -> QuantizedExperts:
        """Return `experts` with the parameters named in `transposed` rounded to nearest.

        Each row of an expert's weight, or group of its inputs, has a grid. `transposed` tells of each
        parameter how it holds the weights, as `ExpertWeights` does.

        Raises:
            NumericsError: a weight holds NaN or infinity.
            UnsupportedError: a name is no parameter of three axes.
        """
        weights = {}
        for name, swapped in transposed.items():
            stack = _require_stack(experts, name)
            each = stack.detach().transpose(1, 2) if swapped else stack.detach()
            packed = (
                PackedWeight.round_to_nearest(one, dtype, symmetric=symmetric, group_size=group_size)
                for one in each
            )
            weights[name] = ExpertWeights(tuple(packed), swapped)
        return cls(experts, weights, choosing=choosing)

    @property
    def experts_class(self) -> type[nn.Module]:
        """The class of the float module, whose forward is run."""
        return self._kind

    @property
    def expert_weights(self) -> dict[str, ExpertWeights]:
        """The weights of the experts, by the name of the parameter that they stand for."""
        return {
            name: ExpertWeights(tuple(self._experts(name)), swapped)
            for name, swapped in self._transposed.items()
        }

    def _experts(self, name: str) -> list[PackedWeight | FloatExpert]:
        held: dict[str, nn.Module | None] = self._modules
        stack = held[name]
        found = [] if stack is None else list(stack.children())
        return [each for each in found if isinstance(each, PackedWeight | FloatExpert)]

    def _device(self) -> torch.device:
        held = (*self.buffers(), *self.parameters())
        return next((tensor.device for tensor in held), torch.device("cpu"))

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Return what the float module would, with the values of the integers for its weights."""
        chosen = partial(_find_chosen, args, kwargs) if self._choosing else None
        x = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), self.like)
        stacks = {name: self._stack(name, x, chosen) for name in self._transposed}
        return call_as(self._kind, self, stacks, args, kwargs)

    def _stack(self, name: str, x: Tensor, chosen: Callable[[], frozenset[int] | None] | None) -> Tensor:
        """Return what stands for the parameter `name` in a call with `x`, whose values are read when used."""
        experts, swapped, like = self._experts(name), self._transposed[name], self.like
        rows, columns = shape_of(experts[0])
        shape = (len(experts), columns, rows) if swapped else (len(experts), rows, columns)

        def read_one(number: int) -> Tensor:
            values = require_values(experts[number].dequantize(), x, type(self).__name__, name)
            values = values.to(like.dtype)
            return values.T if swapped else values

        def read_all() -> Tensor:
            numbers = None if chosen is None else chosen()
            if numbers is None:
                return torch.stack([read_one(number) for number in range(len(experts))])
            stack = like.new_zeros(shape)
            for number in sorted(numbers & set(range(len(experts)))):
                stack[number] = read_one(number)
            return stack

        return read_only(read_all, shape, like.dtype, like.device, read_one)

    def dequantize(self) -> dict[str, Tensor]:
        """Return the weights as float32, by the name and in the shape of the parameter they stand for."""
        found = {}
        for name, swapped in self._transposed.items():
            stack = torch.stack([each.dequantize() for each in self._experts(name)])
            found[name] = stack.transpose(1, 2) if swapped else stack
        return found

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, object],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        load = super()._load_from_state_dict
        load(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if prefix + "like" in missing_keys:
            missing_keys.remove(prefix + "like")

    def rounded_from(self, original: nn.Module) -> Mapping[PackedWeight, Tensor]:
        """Return the weight (outputs, inputs) of each expert that has codes."""
        found: dict[PackedWeight, Tensor] = {}
        for name, swapped in self._transposed.items():
            stack = parameter(original, name)
            for each, weight in zip(
                self._experts(name), () if stack is None else stack.detach(), strict=False
            ):
                if isinstance(each, PackedWeight):
                    found[each] = weight.T if swapped else weight
        return found

    def layout(self) -> dict[str, object]:
        """Return how each expert is packed, for JSON; null for one in float."""
        weights = {
            name: {
                "transposed": swapped,
                "experts": [
                    {"packed": each.layout() if isinstance(each, PackedWeight) else None}
                    for each in self._experts(name)
                ],
            }
            for name, swapped in self._transposed.items()
        }
        return {"choosing": self._choosing, "weights": weights}

    @classmethod
    def restore(cls, original: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> Self:
        """Return the module that `layout` describes, with `tensors` by name, in the place of `original`.

        Raises:
            ArtifactError: a value or a tensor is missing, or they do not fit each other or `original`.
        """
        found = {
            name: ExpertWeights(
                tuple(_restore_experts(entry, select_below(tensors, name))), entry.boolean("transposed")
            )
            for name, entry in layout.child("weights").children()
        }
        # In the order of the float module: files sort names, and reports go by the order of modules.
        weights = {name: found[name] for name in (*original._parameters, *found) if name in found}
        if not weights:
            raise layout.make_error("weights", "an object with a parameter or more")
        try:
            return cls(original, weights, choosing=layout.boolean("choosing"))
        except UnsupportedError as error:
            raise ArtifactError(
                *(attrs.evolve(problem, module=layout.where) for problem in error.problems)
            ) from None

    def extra_repr(self) -> str:
        """Return the class of the float module, and the formats of the weights."""
        return ", ".join([self._kind.__name__, *self.labels])

    @property
    def labels(self) -> tuple[str, ...]:
        """A short description of each parameter's weights, for example ``down_proj uint4 per row``."""
        return tuple(f"{name} {self._formats(name)}" for name in self._transposed)

    def _formats(self, name: str) -> str:
        packed = [each for each in self._experts(name) if isinstance(each, PackedWeight)]
        return " and ".join(sorted({f"{each.dtype} {each.unit}" for each in packed}))


def _adopt_state(old: nn.Module, new: nn.Module, names: set[str]) -> None:
    """Give `new` what `old` holds, but for the parameters `names`, hooks and its history."""
    parameters: dict[str, nn.Parameter | None] = old._parameters
    new._parameters.update({name: each for name, each in parameters.items() if name not in names})
    new._buffers.update(old._buffers)
    new._modules.update(old._modules)
    known = {HISTORY, "forward", *vars(new)}
    vars(new).update({name: value for name, value in vars(old).items() if name not in known})


def _require_parameters(experts: nn.Module, weights: Mapping[str, ExpertWeights]) -> None:
    """Refuse weights that are not those of parameters of `experts`.

    Raises:
        UnsupportedError: with every one.
    """
    problems = []
    for name, each in weights.items():
        own = parameter(experts, name)
        if own is None or tuple(own.shape) != each.shape:
            found = Found("none" if own is None else f"one of shape {tuple(own.shape)}")
            problems.append(
                Problem(
                    field=name, value=found, expected=f"a parameter of shape {each.shape} in the float module"
                )
            )
    if problems or not weights:
        nothing = Problem(field="weights", value=Found("none"), expected="those of a parameter or more")
        raise UnsupportedError(*(problems or [nothing]))


def _require_stack(experts: nn.Module, name: str) -> Tensor:
    stack = parameter(experts, name)
    if stack is None or stack.ndim != 3 or not len(stack) or stack.is_meta or not stack.is_floating_point():
        found = Found(
            "none" if stack is None else f"{stack.dtype} of shape {tuple(stack.shape)} on {stack.device}"
        )
        expected = "a parameter of floats with values, of three axes"
        raise UnsupportedError(Problem(field=name, value=found, expected=expected))
    return stack


def _restore_experts(entry: Layout, tensors: Mapping[str, Tensor]) -> Iterator[PackedWeight | FloatExpert]:
    for number, expert in enumerate(entry.objects("experts")):
        own, packed = select_below(tensors, str(number)), expert.optional_child("packed")
        if packed is not None:
            yield PackedWeight.restore(packed, own)
        else:
            yield FloatExpert(require_tensor(own, expert, "weight"))


def _find_chosen(args: tuple[object, ...], kwargs: Mapping[str, object]) -> frozenset[int] | None:
    """Return the numbers in the only tensor of integers of a call; None where there is no such tensor."""
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    numbers = [each for each in given if not (each.is_floating_point() or each.dtype == torch.bool)]
    if len(numbers) != 1 or not _are_known(numbers[0]):
        return None
    return frozenset(torch.unique(numbers[0]).tolist())


def _are_known(numbers: Tensor) -> bool:
    """Tell whether `numbers` can be read here and now: nothing traces, compiles or captures the call."""
    captured = numbers.is_cuda and torch.cuda.is_current_stream_capturing()
    return not captured and not numbers.is_meta and have_numbers(torch.empty(0))
