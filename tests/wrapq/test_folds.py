"""A batch norm goes into the layer before it where nothing else can see what is between them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import (
    PTQConfig,
    convert,
    coverage,
    load_quantized,
    prepare,
    report,
    save_quantized,
)
from tico.quantization.config import DType, affine, no_quant
from tico_quantizers import QuantizedModule
from tico_quantizers.testing import same_tensors, tensors_of
from tico_wrapq import FoldedNorm, QuantizedNorm
from tiny_models import values
from wrapped_modules import as_if_trained

FINE = PTQConfig(activation=affine(DType.int(16)), weight=affine(DType.int(16)))

PAIRS: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module]], tuple[int, ...]]] = {
    "Linear": (lambda: (nn.Linear(6, 4), nn.BatchNorm1d(4)), (9, 6)),
    "Linear without bias": (lambda: (nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)), (9, 6)),
    "Conv1d": (lambda: (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 8)),
    "Conv2d": (lambda: (nn.Conv2d(3, 4, 3, groups=1), nn.BatchNorm2d(4)), (2, 3, 6, 6)),
    "Conv2d without affine": (lambda: (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (2, 3, 6, 6)),
    "Conv3d": (lambda: (nn.Conv3d(2, 4, 2, bias=False), nn.BatchNorm3d(4)), (1, 2, 4, 4, 4)),
    "ConvTranspose1d": (lambda: (nn.ConvTranspose1d(3, 4, 3, bias=False), nn.BatchNorm1d(4)), (2, 3, 8)),
    "ConvTranspose2d": (lambda: (nn.ConvTranspose2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5)), (2, 3, 6, 6)),
    "ConvTranspose2d in groups": (
        lambda: (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), nn.BatchNorm2d(6)),
        (2, 4, 5, 5),
    ),
    "ConvTranspose2d by channel": (
        lambda: (nn.ConvTranspose2d(4, 8, 2, groups=4), nn.BatchNorm2d(8, affine=False)),
        (2, 4, 5, 5),
    ),
    "ConvTranspose3d": (lambda: (nn.ConvTranspose3d(4, 4, 2, groups=2), nn.BatchNorm3d(4)), (1, 4, 3, 3, 3)),
}


def _chain(name: str = "Conv2d") -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer, norm = PAIRS[name][0]()
        as_if_trained(norm)
        return nn.Sequential(layer, norm, nn.ReLU()).eval()


def _data(name: str = "Conv2d") -> Tensor:
    return values(1, *PAIRS[name][1])


def _converted(model: nn.Module, config: PTQConfig = FINE, x: Tensor | None = None) -> nn.Module:
    prepared = prepare(model, config)
    prepared(_data() if x is None else x)
    return convert(prepared)


@pytest.mark.parametrize("name", PAIRS)
def test_norm_is_folded_into_the_layer_before_it(name: str) -> None:
    """One integer layer does both; nothing changes until it is converted, and little then."""
    expected = _chain(name)(_data(name))
    prepared = prepare(_chain(name), FINE)
    assert torch.equal(prepared(_data(name)), expected)
    model = convert(prepared)
    layer, norm, _ = model.children()
    assert isinstance(layer, QuantizedModule)
    assert isinstance(norm, FoldedNorm)
    # Three roundings to 16 bits: of the weight, the input and the output.
    assert (model(_data(name)) - expected).abs().max() < 1e-3 * expected.abs().max()


def test_every_norm_of_a_decoder_is_folded() -> None:
    """Transposed convolutions behind each other each take theirs, and a better grid comes of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [
            nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 2, groups=g), nn.BatchNorm2d(4)) for g in (1, 2, 4)
        ]
        for block in blocks:
            as_if_trained(block[1])
        model = nn.Sequential(*blocks).eval()
    x = values(1, 2, 4, 3, 3)
    expected = model(x)
    between = {f"{index}.1.act_in": affine(DType.uint(8)) for index in range(3)}
    kept = _converted(copy.deepcopy(model), PTQConfig(overrides=between), x)
    folded = _converted(model, PTQConfig(), x)
    assert sum(isinstance(module, FoldedNorm) for module in folded.modules()) == 3
    assert sum(isinstance(module, FoldedNorm) for module in kept.modules()) == 0
    errors = [(each(x) - expected).square().mean() for each in (folded, kept)]
    assert errors[0] < errors[1]


def test_report_and_coverage_say_where_the_norm_went() -> None:
    """Both lines name the other."""
    model = _converted(_chain())
    notes = {line.path: line.reason for line in report(model).layers}
    assert (notes["0"], notes["1"]) == ("with the norm of 1", "folded into 0")
    assert {line.path: line.reason for line in coverage(model).lines}["1"] == "folded into 0"


def test_folded_model_is_saved_and_loaded(tmp_path: Path) -> None:
    """The float model has the norm, the loaded one has not, and gives the same bits."""
    model = _converted(_chain())
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path, _chain())
    assert torch.equal(loaded(_data()), model(_data()))
    assert same_tensors(tensors_of(loaded), tensors_of(model))


def test_folded_model_is_quantized_again() -> None:
    """The next run keeps the codes and passes what is left of the norm."""
    model = _converted(_chain())
    codes = tensors_of(model)["0.packed.codes"]
    again = _converted(model, PTQConfig(activation=affine(DType.int(8))))
    assert torch.equal(tensors_of(again)["0.packed.codes"], codes)
    assert isinstance(again.get_submodule("1"), FoldedNorm)


class _Between(nn.Module):
    """Looks at what is between layer and norm, past the chain that holds them."""

    def __init__(self, *, peeks: bool) -> None:
        super().__init__()
        self.chain = _chain()
        self.peeks = peeks

    def forward(self, x: Tensor) -> Tensor:
        """Return the chain's output, with the layer's own where it is peeked at."""
        output: Tensor = self.chain(x)
        return output + self.chain[0](x) if self.peeks else output


@pytest.mark.parametrize("peeks", [False, True])
def test_chain_whose_layer_is_called_by_itself_is_not_folded(peeks: bool) -> None:
    """A layer that was called more often than its chain has an output that something else sees."""
    model = _converted(_Between(peeks=peeks).eval())
    kind = QuantizedNorm if peeks else FoldedNorm
    assert isinstance(model.get_submodule("chain.1"), kind)
    assert (model(_data()) - _Between(peeks=peeks).eval()(_data())).abs().max() < 1e-2


def _hooked() -> nn.Module:
    model = _chain()
    model[0].register_forward_hook(lambda module, args, output: None)
    return model


def _shared() -> nn.Module:
    model = _chain()
    return nn.Sequential(model, nn.Sequential(nn.Conv2d(4, 3, 3, padding=2), model[0])).eval()


class _Doubled(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        output: Tensor = super().forward(input)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return 2 * output


UNPROVEN: dict[str, Callable[[], nn.Module]] = {
    "hook": _hooked,
    "shared layer": _shared,
    "container of its own": lambda: _Doubled(*_chain()).eval(),
    "something between": lambda: nn.Sequential(_chain()[0], nn.ReLU(), _chain()[1]).eval(),
}


@pytest.mark.parametrize("case", UNPROVEN)
def test_norm_that_may_be_seen_from_elsewhere_is_not_folded(case: str) -> None:
    """It becomes an integer norm of its own."""
    original = UNPROVEN[case]()
    expected = original(_data())
    model = _converted(original)
    assert not [module for module in model.modules() if isinstance(module, FoldedNorm)]
    assert [module for module in model.modules() if isinstance(module, QuantizedNorm)]
    assert (model(_data()) - expected).abs().max() < 1e-2


@pytest.mark.parametrize("point", ["0.act_out", "1.act_in", "1.weight"])
def test_point_between_that_is_asked_for_is_kept(point: str) -> None:
    """An override of a point that a fold would do away with is obeyed, not ignored."""
    model = _converted(_chain(), PTQConfig(overrides={point: affine(DType.int(16))}))
    assert isinstance(model.get_submodule("1"), QuantizedNorm)


def test_layer_that_stays_float_takes_no_norm() -> None:
    """Without codes there is nothing to fold into."""
    model = _converted(_chain(), PTQConfig(overrides={"0": no_quant()}))
    assert isinstance(model.get_submodule("1"), QuantizedNorm)


def test_images_without_a_batch_are_not_folded() -> None:
    """Rows of a matrix that a one-dimensional norm takes for a batch are no channels of the layer."""
    model = nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)).eval()
    converted = _converted(model, FINE, values(1, 3, 8))
    assert isinstance(converted.get_submodule("1"), QuantizedNorm)
