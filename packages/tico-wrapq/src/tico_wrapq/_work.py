"""How many multiply-accumulates modules do, measured in the forward passes of a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import attrs
from torch import Tensor, nn

from tico_modules import (
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedLinear,
    QuantizedModule,
    parameter,
)
from tico_quantizers import Calibration, Recorder
from tico_wrapq._quant_module_base import QuantModuleBase

_INTEGER_CONVOLUTIONS = (QuantizedConv1d, QuantizedConv2d, QuantizedConv3d)
_INTEGER_TRANSPOSED = (QuantizedConvTranspose1d, QuantizedConvTranspose2d, QuantizedConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FLOAT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_INTEGER_LAYERS = (QuantizedLinear, *_INTEGER_CONVOLUTIONS, *_INTEGER_TRANSPOSED)


def multiplies(layer: nn.Module) -> bool:
    """Return whether `layer` is one whose multiply-accumulates `layer_work` knows."""
    return isinstance(layer, (*_FLOAT_LAYERS, *_INTEGER_LAYERS))


def layer_work(layer: nn.Module, x: object, output: object) -> int:
    """Return the multiply-accumulates of one call of a linear layer or convolution; 0 for any other module.

    >>> import torch
    >>> layer = nn.Conv1d(4, 6, 3)
    >>> x = torch.zeros(2, 4, 10)
    >>> layer_work(layer, x, layer(x))
    1152
    """
    shape = _weight_shape(layer)
    if not multiplies(layer) or not shape:
        return 0
    # Each output of a convolution takes the weights of one row; each input of a transposed one meets them.
    tensor = x if isinstance(layer, (*_TRANSPOSED, *_INTEGER_TRANSPOSED)) else output
    return tensor.numel() * math.prod(shape[1:]) if isinstance(tensor, Tensor) else 0


def _weight_shape(layer: nn.Module) -> tuple[int, ...]:
    weight = parameter(layer, "weight")
    if isinstance(layer, QuantizedModule):
        return layer.weight_shape
    return () if weight is None else tuple(weight.shape)


@final
class Work(Recorder):
    """The multiply-accumulates of each module, by its path, over the passes that have ended well."""

    def __init__(self, calibration: Calibration) -> None:
        self.done: dict[str, int] = {}
        self._latest: dict[str, int] = {}
        self._calibration = calibration

    def measure(self, path: str, module: nn.Module) -> None:
        """Count what `module` does from now on; the hook is among the calibration's handles."""
        hook = module.register_forward_hook(_Count(self, path), with_kwargs=True)
        self._calibration.handles.append(hook)

    def add(self, path: str, count: int) -> None:
        """Note `count` until the forward pass ends; outside of a pass of the model it counts at once."""
        if self._calibration.watching:
            self._latest[path] = self._latest.get(path, 0) + count
            self._calibration.accept_unless_in_forward()

    def drop_unfinished(self) -> None:
        """Forget what a forward pass that did not end has left."""
        self._latest.clear()

    def accept(self) -> None:
        """Count what the pass has shown."""
        for path, count in self._latest.items():
            self.done[path] = self.done.get(path, 0) + count
        self._latest.clear()


@attrs.define(eq=False)
class _Count:
    work: Work
    path: str

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], output: object
    ) -> None:
        if isinstance(module, QuantModuleBase):
            count = module.work(args, kwargs, output)
        else:
            x = args[0] if args else next(iter(kwargs.values()), None)
            count = layer_work(module, x, output)
        self.work.add(self.path, count)
