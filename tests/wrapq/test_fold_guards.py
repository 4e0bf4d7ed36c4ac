"""A batch norm stays what it is wherever folding it would change what is computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, prepare
from tico.quantization.config import DType, affine, no_quant
from tico_wrapq import FoldedNorm
from tiny_models import values
from wrapped_modules import as_if_trained

FINE = PTQConfig(activation=affine(DType.int(16)), weight=affine(DType.int(16)))


def folded(model: nn.Module, x: Tensor, config: PTQConfig = FINE) -> bool:
    """Convert `model`, which must stay near the float one, and tell whether a norm was folded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                as_if_trained(module)
    model.eval()
    expected = model(x)
    prepared = prepare(model, config)
    prepared(x)
    converted = convert(prepared)
    assert (converted(x) - expected).abs().max() < 1e-2 * expected.abs().max()
    return any(isinstance(module, FoldedNorm) for module in converted.modules())


def _with_hook(register: Callable[[nn.Module, nn.Module], object]) -> nn.Module:
    layer, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    register(layer, norm)
    return nn.Sequential(layer, norm)


class _Also(nn.Module):
    """A chain of which another container holds a part, too, perhaps to be called at another time."""

    def __init__(self, part: int) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.also = nn.ModuleList([self.chain[part]])

    def forward(self, x: Tensor) -> Tensor:
        """Return the chain's output."""
        output: Tensor = self.chain(x)
        return output


class _Strange(nn.BatchNorm2d):
    """A norm that does something else as well."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        """Return twice the normal output."""
        return 2 * super().forward(input)


def _forward_of_its_own() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    normal = norm.forward
    norm.forward = lambda input: 2 * normal(input)  # type: ignore[method-assign]  # noqa: A006  # torch's name
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm)


IMAGE, ROWS = values(1, 2, 3, 6, 6), values(1, 9, 6)
NOT_FOLDED: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "norm of another kind": (lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)), ROWS),
    "norm over rows": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(4)), values(1, 9, 4, 6)),
    "norm over as many rows": (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), values(1, 9, 4, 6)),
    "norm over images": (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm2d(4)), values(1, 2, 4, 3, 6)),
    "norm over as many inputs": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Flatten(2), nn.BatchNorm1d(4)),
        IMAGE,
    ),
    "hook on the layer": (
        lambda: _with_hook(lambda layer, _: layer.register_forward_hook(lambda *_: None)),
        IMAGE,
    ),
    "hook before the norm": (
        lambda: _with_hook(lambda _, norm: norm.register_forward_pre_hook(lambda *_: None)),
        IMAGE,
    ),
    "layer held twice": (lambda: _Also(0), IMAGE),
    "norm held twice": (lambda: _Also(1), IMAGE),
    "norm of its own": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), _Strange(4)), IMAGE),
    "norm with a forward of its own": (_forward_of_its_own, IMAGE),
}


@pytest.mark.parametrize("case", NOT_FOLDED)
def test_norm_is_not_folded(case: str) -> None:
    """Channels of the norm that are not the layer's, or a place where something else can see the output."""
    make, x = NOT_FOLDED[case]
    config = PTQConfig(activation=FINE.activation, weight=FINE.weight, strict_wrap=False)
    assert not folded(make(), x, config)


def test_layer_whose_weight_stays_float_takes_no_norm() -> None:
    """It has points for its activations all the same."""
    config = PTQConfig(activation=FINE.activation, weight=FINE.weight, overrides={"0.weight": no_quant()})
    assert not folded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), IMAGE, config)


def test_norm_is_folded_whatever_follows_in_the_chain() -> None:
    """The output of the chain may have any shape: only the layer's own tells a batch from a single image."""
    assert folded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()), IMAGE)
