"""What a layer reads in a call, as the rows that its matrix multiplies."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tico_config import Found, Problem, UnsupportedError
from tico_modules import ConvSettings, ConvTransposeSettings
from tico_quantizers.layers._matrix import IntegerLayer, Layer, conv_settings, reads_rows, shape
from tico_quantizers.layers._windows import conv_rows, transposed_rows


def input_rows(layer: Layer, x: Tensor, added: tuple[int, ...] | None = None) -> Iterator[Tensor]:
    """Yield the rows (groups, rows, columns) that the weight's matrix multiplies for the input `x`.

    `added` is what `output_added` says of the call.
    """
    if isinstance(layer, IntegerLayer) and layer.act_in is not None:
        x = layer.act_in(x)
    if reads_rows(layer):
        return iter((x.reshape(1, -1, x.shape[-1]) if x.ndim else x,))
    conv, kernel = conv_settings(layer), shape(layer)[2:]
    if isinstance(conv, ConvSettings):
        return conv_rows(x, kernel, conv)
    return transposed_rows(x, kernel, conv, conv.output_padding if added is None else added)


def input_tensor(path: str, args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
    """Return the one input of a call of a layer, positional or by keyword.

    Raises:
        UnsupportedError: there is none.
    """
    x = args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))
    if not isinstance(x, Tensor):
        found = Found(type(x).__name__)
        raise UnsupportedError(Problem(module=path, field="input", value=found, expected="a tensor"))
    return x


def output_added(
    layer: Layer, x: Tensor, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[int, ...] | None:
    """Return the output padding that a call of a transposed convolution asks for by its `output_size`."""
    wanted = args[1] if len(args) > 1 else kwargs.get("output_size")
    conv = conv_settings(layer) if wanted is not None and not reads_rows(layer) else None
    if not isinstance(conv, ConvTransposeSettings) or not isinstance(wanted, list | tuple):
        return None
    axes = len(conv.stride)
    return conv.find_output_padding(x.shape[-axes:], shape(layer)[2:], wanted[-axes:])
