"""Every class of `torch.nn` has a wrapper, passes, holds others, or is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from torch import nn

from tico.quantization import PTQConfig, coverage, prepare
from tico.quantization.config import UnsupportedError
from tico_wrapq import lookup
from tico_wrapq.base import REGISTRY

ABSTRACT = {"Module", "Container", "RNNBase", "RNNCellBase"}
HOLDS_OTHERS = {
    *("AdaptiveLogSoftmaxWithLoss", "DataParallel", "Transformer", "TransformerDecoder"),
    *("TransformerDecoderLayer", "TransformerEncoder"),
}
STEPS = "its steps are computed in one kernel"
LAZY = "it has no weight before its first call"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "GRU": (lambda: nn.GRU(2, 3), STEPS),
    "GRUCell": (lambda: nn.GRUCell(2, 3), STEPS),
    "LSTM": (lambda: nn.LSTM(2, 3), STEPS),
    "LSTMCell": (lambda: nn.LSTMCell(2, 3), STEPS),
    "RNN": (lambda: nn.RNN(2, 3), STEPS),
    "RNNCell": (lambda: nn.RNNCell(2, 3), STEPS),
    "LazyBatchNorm1d": (nn.LazyBatchNorm1d, LAZY),
    "LazyBatchNorm2d": (nn.LazyBatchNorm2d, LAZY),
    "LazyBatchNorm3d": (nn.LazyBatchNorm3d, LAZY),
    "LazyInstanceNorm1d": (nn.LazyInstanceNorm1d, LAZY),
    "LazyInstanceNorm2d": (nn.LazyInstanceNorm2d, LAZY),
    "LazyInstanceNorm3d": (nn.LazyInstanceNorm3d, LAZY),
    "LazyLinear": (lambda: nn.LazyLinear(3), LAZY),
    "LazyConv2d": (lambda: nn.LazyConv2d(3, 1), LAZY),
    "MaxPool2d": (lambda: nn.MaxPool2d(2, return_indices=True), "it returns indices too"),
}
PADS = ("Zero", "Reflection", "Replication", "Circular")


def _made(name: str, *arguments: float) -> nn.Module:
    kind: type[nn.Module] = getattr(nn, name)
    return kind(*arguments)


PASSING: dict[str, Callable[[], nn.Module]] = {
    "Identity": nn.Identity,
    "Dropout": nn.Dropout,
    "AlphaDropout": nn.AlphaDropout,
    "Flatten": nn.Flatten,
    "Unflatten": lambda: nn.Unflatten(1, (2, 2)),
    "Unfold": lambda: nn.Unfold(2),
    "ChannelShuffle": lambda: nn.ChannelShuffle(2),
    "PixelShuffle": lambda: nn.PixelShuffle(2),
    "PixelUnshuffle": lambda: nn.PixelUnshuffle(2),
    **{f"{kind}Pad{axes}d": partial(_made, f"{kind}Pad{axes}d", 1) for kind in PADS for axes in (1, 2, 3)},
    **{f"ConstantPad{axes}d": partial(_made, f"ConstantPad{axes}d", 1, 0.0) for axes in (1, 2, 3)},
    **{f"MaxUnpool{axes}d": partial(_made, f"MaxUnpool{axes}d", 2) for axes in (1, 2, 3)},
    "CrossEntropyLoss": nn.CrossEntropyLoss,
    "CTCLoss": nn.CTCLoss,
}


def _classes() -> dict[str, type[nn.Module]]:
    every: dict[str, object] = vars(nn)
    kinds = {name: kind for name, kind in every.items() if isinstance(kind, type)}
    return {name: kind for name, kind in kinds.items() if issubclass(kind, nn.Module)}


def test_every_class_has_its_place() -> None:
    """A class that torch adds is noticed here: nothing is left to chance."""
    unknown = [
        name
        for name, kind in _classes().items()
        if lookup(kind) is None and REGISTRY.pass_reason(kind) is None
    ]
    stepped = {"Bilinear", "ParameterList", "ParameterDict"}
    assert sorted(unknown) == sorted(ABSTRACT | HOLDS_OTHERS | stepped | (REFUSED.keys() & set(unknown)))


@pytest.mark.parametrize("name", REFUSED)
def test_class_without_a_wrapper_is_refused_with_the_reason(name: str) -> None:
    """And with the ways out."""
    make, reason = REFUSED[name]
    with pytest.raises(UnsupportedError, match=reason) as caught:
        prepare(nn.Sequential(nn.Linear(2, 2), make()).eval(), PTQConfig())
    assert caught.value.module == "1"
    assert "no_quant()" in str(caught.value)


@pytest.mark.parametrize("name", PASSING)
def test_class_that_needs_no_grid_passes(name: str) -> None:
    """Strict mode has nothing against it, and the coverage says why it has none."""
    model = prepare(nn.Sequential(nn.Linear(2, 2), PASSING[name]()).eval(), PTQConfig())
    [line] = [line for line in coverage(model).lines if line.path == "1"]
    assert line.points == ()
    assert line.reason.startswith(("it does", "it is a loss"))


def test_loss_that_owns_a_layer_keeps_it() -> None:
    """It reads the weight without calling the layer."""
    model = prepare(nn.Sequential(nn.Linear(2, 2), nn.LinearCrossEntropyLoss(2, 3)).eval(), PTQConfig())
    reasons = {line.path: line.reason for line in coverage(model).lines}
    assert reasons["1.linear"] == "it is a part of 1, which stays float"


def test_padding_with_another_value_has_grids() -> None:
    """The value is one that the grid of the input may not have."""
    model = prepare(nn.Sequential(nn.ConstantPad2d(1, 0.5)).eval(), PTQConfig())
    [line] = coverage(model).lines
    assert line.points == ("act_in uint8 asymmetric", "act_out uint8 asymmetric")


@pytest.mark.parametrize("name", sorted(HOLDS_OTHERS - {"DataParallel"}))
def test_class_that_holds_others_is_float_arithmetic_between_them(name: str) -> None:
    """Its parts have wrappers."""
    layer, decoder = nn.TransformerEncoderLayer(8, 2, 8), nn.TransformerDecoderLayer(8, 2, 8)
    made: dict[str, Callable[[], nn.Module]] = {
        "AdaptiveLogSoftmaxWithLoss": lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 6, [2]),
        "Transformer": lambda: nn.Transformer(8, 2, 1, 1, 8, batch_first=True),
        "TransformerDecoder": lambda: nn.TransformerDecoder(decoder, 1),
        "TransformerDecoderLayer": lambda: decoder,
        "TransformerEncoder": lambda: nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
    }
    prepared = prepare(nn.Sequential(made[name]()).eval(), PTQConfig())
    assert any(str(line.points).startswith("('weight uint8") for line in coverage(prepared).lines)
