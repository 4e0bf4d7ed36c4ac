"""What is no module, no layer with a weight or no folder is refused in this library's own words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
import torch
from torch import nn

from tico_config import DType, TicoError
from tico_modules import (
    PackedWeight,
    Parts,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedLinear,
    load_quantized,
    model_fingerprint,
    report,
    save_quantized,
    set_backend,
)

UINT4 = DType.uint(4)
LINEAR = QuantizedLinear.from_float(nn.Linear(4, 4), UINT4)

# None of the calls below is right by its types; what they do is what a caller without a type checker sees.
CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "report(3)": (lambda: report(3), "model"),  # type: ignore[arg-type]
    "save_quantized(3)": (lambda: save_quantized(3, "nowhere"), "model"),  # type: ignore[arg-type]
    "save_quantized(model, 3)": (lambda: save_quantized(LINEAR, 3), "directory"),  # type: ignore[arg-type]
    "tokenizer": (lambda: save_quantized(LINEAR, "no", tokenizer=3), "tokenizer"),  # type: ignore[arg-type]
    "shard_bytes": (lambda: save_quantized(LINEAR, "no", shard_bytes=2.5), "shard_bytes"),  # type: ignore[arg-type]
    "load_quantized(3)": (lambda: load_quantized(3), "directory"),  # type: ignore[arg-type]
    "load_quantized(…, 3)": (lambda: load_quantized(".", 3), "model"),  # type: ignore[arg-type]
    "set_backend(3)": (lambda: set_backend(3, "native"), "model"),  # type: ignore[arg-type]
    "model_fingerprint(3)": (lambda: model_fingerprint(3), "model"),  # type: ignore[arg-type]
    "Parts(packed=3)": (lambda: Parts(packed=3), "packed"),  # type: ignore[arg-type]
    "Parts(bias=3)": (lambda: Parts(packed=LINEAR.packed, bias=3), "bias"),  # type: ignore[arg-type]
    "weight": (
        lambda: PackedWeight.round_to_nearest(3, UINT4, symmetric=False, group_size=None),  # type: ignore[arg-type]
        "weight",
    ),
    "group_size": (
        lambda: QuantizedLinear.from_float(nn.Linear(4, 4), UINT4, group_size=2.5),  # type: ignore[arg-type]
        "group_size",
    ),
    "symmetric": (
        lambda: QuantizedLinear.from_float(nn.Linear(4, 4), UINT4, symmetric="no"),  # type: ignore[arg-type]
        "symmetric",
    ),
    "dtype": (lambda: QuantizedLinear.from_float(nn.Linear(4, 4), "uint4"), "dtype"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", CALLS)
def test_argument_of_another_kind_is_refused(call: str) -> None:
    """By its name, before anything is done."""
    act, field = CALLS[call]
    with pytest.raises(TicoError) as caught:
        act()
    assert caught.value.field == field
    assert not Path("nowhere").exists()
    assert not Path("no").exists()


class _RoundOff(Protocol):
    def __call__(self, layer: object, dtype: DType, /) -> nn.Module:
        """Return the integer layer of `layer`."""


ROUNDED: dict[str, tuple[type[nn.Module], nn.Module, nn.Module]] = {
    "Linear": (QuantizedLinear, nn.LazyLinear(3), nn.Linear(2, 3)),
    "Conv1d": (QuantizedConv1d, nn.LazyConv1d(3, 2), nn.Conv1d(2, 3, 2)),
    "Conv2d": (QuantizedConv2d, nn.LazyConv2d(3, 2), nn.Conv2d(2, 3, 2)),
    "Conv3d": (QuantizedConv3d, nn.LazyConv3d(3, 2), nn.Conv3d(2, 3, 2)),
    "ConvTranspose1d": (
        QuantizedConvTranspose1d,
        nn.LazyConvTranspose1d(3, 2),
        nn.ConvTranspose1d(2, 3, 2),
    ),
    "ConvTranspose2d": (
        QuantizedConvTranspose2d,
        nn.LazyConvTranspose2d(3, 2),
        nn.ConvTranspose2d(2, 3, 2),
    ),
    "ConvTranspose3d": (
        QuantizedConvTranspose3d,
        nn.LazyConvTranspose3d(3, 2),
        nn.ConvTranspose3d(2, 3, 2),
    ),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_layer_without_a_weight_to_round_is_refused(name: str) -> None:
    """A lazy layer, one without values, another layer: each error names the way out or what is expected."""
    kind, lazy, layer = ROUNDED[name]
    round_off: _RoundOff = getattr(kind, "from_float")  # noqa: B009  # each takes a class of its own
    with pytest.raises(TicoError, match="call a lazy layer once"):
        round_off(lazy, UINT4)
    with pytest.raises(TicoError, match="load the weights first"):
        round_off(layer.to("meta"), UINT4)
    for other in (nn.Identity(), 3):
        with pytest.raises(TicoError, match=rf"an nn\.{name}, got one of the class "):
            round_off(other, UINT4)


def test_layer_of_integers_is_no_weight_to_round() -> None:
    """Codes come in by `from_codes`."""
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TicoError, match="a tensor of floats"):
        QuantizedLinear.from_float(layer, UINT4)
