"""One module that a wrapper is tried with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import torch
from torch import Tensor, nn

from tico_config import PTQConfig
from tico_modules import named_modules
from tico_wrapq.base import QuantPoint


@attrs.frozen(kw_only=True, eq=False)
class WrapperCase:
    """A float module, what it is called with, and the config that it is quantized with.

    Attributes:
        make: makes the module; called for every model anew, always with the same random numbers.
        inputs: positional arguments; floating-point tensors among them are the data of the calibration.
        config: says how to quantize.
        points: the paths of all points below the module, in any order; None where they are not to be checked.
        watched_error: the largest difference that watching may make to the output. 0 is no bit; a wrapper
            that watches the steps of a fused kernel adds up in another order.
        error: the largest difference that quantizing may make, as a share of the largest output, or of 1
            where that is larger. By default 0.05: a step is 1/255 of a range, and several of them meet.

    >>> case = WrapperCase(make=nn.Tanh, inputs=(torch.ones(2),), points=("act_in", "act_out"))
    >>> case.model()(*case.inputs)
    tensor([0.7616, 0.7616])
    """

    make: Callable[[], nn.Module]
    inputs: tuple[object, ...]
    config: PTQConfig = PTQConfig()
    points: tuple[str, ...] | None = None
    watched_error: float = 0.0
    error: float = 0.05

    def model(self) -> Holder:
        """Return the module as part `part` of a model, in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Holder(self.make()).eval()

    def map_inputs(self, change: Callable[[Tensor], Tensor]) -> tuple[object, ...]:
        """Return the inputs with `change` made to each floating-point tensor, once to each."""
        changed = {
            id(each): change(each)
            for each in self.inputs
            if isinstance(each, Tensor) and each.is_floating_point()
        }
        return tuple(changed.get(id(each), each) for each in self.inputs)

    @property
    def has_float_inputs(self) -> bool:
        """Whether a floating-point tensor is among the inputs."""
        return any(isinstance(each, Tensor) and each.is_floating_point() for each in self.inputs)


class Holder(nn.Module):
    """A model of one part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: object) -> Tensor:
        """Return what the part makes of `args`; of several outputs the first."""
        output: Tensor | tuple[Tensor, ...] = self.part(*args)
        return output[0] if isinstance(output, tuple) else output


def points_in(model: nn.Module) -> Iterator[QuantPoint]:
    """Yield every activation point of `model`."""
    return (module for _, module in named_modules(model) if isinstance(module, QuantPoint))
