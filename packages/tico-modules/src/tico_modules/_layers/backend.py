"""Which operators compute integer layers: those of the reference, or torch's own kernels for the CPU."""

from __future__ import annotations

from typing import get_args

from torch import nn

from tico_config import ConfigError, Found, Problem, UnsupportedError
from tico_modules._kernels.native_linear import Backend, NativeLinear
from tico_modules._layers.quantized_linear import QuantizedLinear
from tico_modules._layers.quantized_module import QuantizedModule
from tico_modules._tree.module_tree import named_modules


def set_backend(model: nn.Module, backend: Backend) -> dict[str, str]:
    """Choose what computes the integer layers of `model`; return for each path what that is from now on.

    - ``reference``, with which every layer starts, dequantizes the weight at each call: the semantics, bit
      for bit, on every device, in every format, exported and differentiated.
    - ``native`` multiplies by torch's own kernels on the CPU wherever a linear layer has one. Activations on
      a grid of 8 bits times weights with one scale a row are summed in integers, which is the reference but
      for the rounding of the reference's sums. Other weights of up to 8 bits are multiplied in bfloat16: for
      float32 activations that costs precision, in numbers in `tico_modules._kernels.native_kernels`.
    - ``auto`` is native where that rounds no more coarsely than the activations are given: the integer sums
      always, the bfloat16 products for bfloat16 activations.

    A kernel holds a second copy of the codes where its operator reads them in another layout: 1 byte a weight
    for sums of integers and for codes of 5 to 8 bits with one scale a row, half a byte for packed int4 codes.
    Codes of int8 that are multiplied in bfloat16 are read where they are. The buffers stay what they are, so
    that state dicts, files and copies do not change, and going back is bit-identical. The reference computes
    every call that no kernel takes: inputs that need gradients, that are traced or compiled, that hold NaN,
    or in another format.

    Raises:
        ConfigError: there is no such back end.
        UnsupportedError: `model` holds no integer module.

    >>> from tico_config import DType
    >>> layer = QuantizedLinear.from_float(nn.Linear(64, 32), DType.int(4), group_size=32)
    >>> set_backend(nn.Sequential(layer), "native")
    {'0': 'int4 codes up to 40 tokens, bfloat16 product'}
    """
    if backend not in get_args(Backend):
        expected = f"one of {', '.join(get_args(Backend))}"
        raise ConfigError(Problem(field="backend", value=backend, expected=expected))
    layers = {path: module for path, module in named_modules(model) if isinstance(module, QuantizedModule)}
    if not layers:
        found, expected = Found("one without"), "a model with integer modules"
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
