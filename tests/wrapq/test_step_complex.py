"""Steps that compute with complex numbers, as some rotary embeddings do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, prepare, report
from tico.quantization.config import DType, affine
from tico_quantizers.testing import values

A16 = PTQConfig(activation=affine(DType.int(16)), steps="auto")


class Turned(nn.Module):
    """Pairs of features, turned by angles that grow with the position."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the turned features (samples, tokens, features)."""
        angles = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
        turns = torch.polar(torch.ones_like(angles), angles)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns).flatten(-2)


def test_a_complex_product_has_a_point_where_it_becomes_real() -> None:
    """One for both of its parts; no grid has complex numbers."""
    x = values(0, 2, 6, 8)
    expected = Turned()(x)
    prepared = prepare(Turned().eval(), A16)
    assert torch.equal(prepared(x), expected)
    converted = convert(prepared)
    assert report(converted).layers[0].activation == "view_as_real_0 int16 static"
    step = expected.abs().max() / (2**15 - 1)
    # Half a step, and the rounding of float32.
    assert (converted(x) - expected).abs().max() <= 0.5 * step + 1e-6
