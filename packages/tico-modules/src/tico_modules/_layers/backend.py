"""The choice between the reference and torch's own kernels for the CPU."""

from __future__ import annotations

from typing import get_args

from torch import nn

from tico_config import ConfigError, Found, Problem, UnsupportedError
from tico_modules._kernels.native_linear import Backend, NativeLinear
from tico_modules._layers.quantized_linear import QuantizedLinear
from tico_modules._layers.quantized_module import QuantizedModule
from tico_modules._tree.module_tree import named_modules
from tico_modules._tree.requirements import require_module


def set_backend(model: nn.Module, backend: Backend) -> dict[str, str]:
    """Choose a back end for the integer layers of `model`; return a short description of it for each path.

    - ``reference``, the default, dequantizes the weight at each call. It defines the result, bit for bit, and
      works on every device, with every number format, and for export and gradients.
    - ``native`` multiplies by torch's own kernels on the CPU wherever a linear layer has one. Activations on
      a grid of 8 bits times weights with one scale a row are summed in integers: the result differs from the
      reference only by the rounding of the reference's own float sums. Other weights of up to 8 bits are
      multiplied in bfloat16, many tokens in float32 if the processor has no instructions for bfloat16: for
      float32 activations bfloat16 costs precision, as bounds in `tico_modules._kernels.native_kernels` say.
    - ``auto`` takes native kernels that round no more coarsely than the activations themselves: the integer
      sums always, the other products for bfloat16 activations only.

    A kernel holds a second copy of the codes where its operator reads them in another layout: 1 byte a weight
    for sums of integers and for codes of 5 to 8 bits with one scale a row, half a byte for packed int4 codes.
    Codes of int8 that are multiplied in bfloat16 are read where they are. Buffers do not change, so that
    state dicts, files and copies stay the same, and going back to the reference is bit-identical. The
    reference computes every call that no kernel can: inputs that need gradients, are traced or compiled, hold
    NaN, or have another dtype.

    Raises:
        ConfigError: `backend` is none of the three.
        UnsupportedError: `model` is no module, or holds no integer one.

    >>> from tico_config import DType
    >>> layer = QuantizedLinear.from_float(nn.Linear(64, 32), DType.uint(12))
    >>> set_backend(nn.Sequential(layer), "native")
    {'0': 'reference: codes of 12 bits have no kernel'}
    """
    require_module(model)
    if backend not in get_args(Backend):
        expected = f"one of {', '.join(get_args(Backend))}"
        raise ConfigError(Problem(field="backend", value=backend, expected=expected))
    layers = {path: module for path, module in named_modules(model) if isinstance(module, QuantizedModule)}
    if not layers:
        found, expected = Found("one without any"), "a model with integer modules"
        raise UnsupportedError(
            Problem(field="model", value=found, expected=expected, remedy="convert the model first")
        )
    linear = {path: layer for path, layer in layers.items() if isinstance(layer, QuantizedLinear)}
    if backend == "reference":
        for layer in linear.values():
            layer.use(backend)
        return dict.fromkeys(layers, "reference")
    made = {path: NativeLinear.of(layer.packed, layer.act_in) for path, layer in linear.items()}
    for path, layer in linear.items():
        layer.use(backend, made[path])
    other = "reference: only linear layers have kernels"
    return {path: made[path].label(backend) if path in made else other for path in layers}
