"""SmoothQuant on tensors (Xiao et al. 2022, arXiv 2211.10438)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tico_config import DType, PerChannel
from tico_observers import fake_quantize, params_from_range
from tico_observers.products import total
from tico_quantizers.solvers._consumer import ConsumerWeight
from tico_quantizers.solvers._output_error import output_error
from tico_quantizers.solvers._powers import power

_STEPS = 20


def smoothing_scale(activation: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """Return ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``, equation 4, as float32.

    `activation` and `weight` (channels,) are the largest magnitudes of each channel. Where one of them is
    0 there is nothing to balance, and the scale is 1.

    >>> smoothing_scale(torch.tensor([4.0, 9.0, 0.0]), torch.tensor([1.0, 4.0, 1.0]), 0.5).tolist()
    [2.0, 1.5, 1.0]
    """
    x, w = activation.to(torch.float64), weight.to(torch.float64)
    largest, smallest = torch.finfo(torch.float32).max, torch.finfo(torch.float32).smallest_normal
    ratio = (power(x, alpha) / power(w, 1 - alpha)).clamp(smallest, largest)
    return torch.where((x > 0) & (w > 0), ratio, 1.0).to(torch.float32)


def best_alpha(
    consumers: Sequence[ConsumerWeight], low: Tensor, high: Tensor, weight: Tensor
) -> tuple[float, Tensor]:
    """Return the share, of 0, 0.05, … 1, after which 8 bits change the outputs least, and the scale it gives.

    `low` and `high` (channels,) are the range of each channel, `weight` its largest magnitude in the weights.

    >>> eye = torch.eye(2)
    >>> gram = torch.tensor([[1e6, 0.0], [0.0, 1.0]])
    >>> consumer = ConsumerWeight(weight=eye, channels=torch.arange(2), gram=gram)
    >>> alpha, scale = best_alpha([consumer], torch.zeros(2), torch.tensor([1000.0, 1.0]), torch.ones(2))
    >>> bool(scale[0] > 10 * scale[1])
    True
    """
    activation = torch.maximum(high, -low)
    found: list[tuple[float, float, Tensor]] = []
    for step in range(_STEPS + 1):
        alpha = step / _STEPS
        scale = smoothing_scale(activation, weight, alpha)
        error = sum(rounding_error(consumer, low, high, scale) for consumer in consumers)
        found.append((error, alpha, scale))
    _, alpha, scale = min(found, key=lambda each: each[:2])
    return alpha, scale


def rounding_error(consumer: ConsumerWeight, low: Tensor, high: Tensor, scale: Tensor) -> float:
    """Return the expected squared error of a layer's output row after smoothing with `scale` (channels,).

    Weights are rounded to int8 per row, which is computed; inputs to 8 bits per tensor, for which each
    element is taken to err on its own, by a twelfth of the squared step, or by all of it where it is smaller.
    """
    own = scale[consumer.channels]
    scaled = consumer.weight * own
    largest = scaled.abs().amax(1)
    params = params_from_range(-largest, largest, DType.int(8), symmetric=True, granularity=PerChannel(0))
    change = (fake_quantize(scaled, params) - scaled) / own
    width = (high / scale).max().clamp(min=0) - (low / scale).min().clamp(max=0)
    power_of_inputs = consumer.gram.diagonal() / own.square()
    noise = torch.minimum(power_of_inputs.to(torch.float64), (width / 255).square() / 12)
    squares = scaled.square()
    norms = squares.sum(0, dtype=torch.float64) if len(own) > 1 else total(squares)
    return float(output_error(change, consumer.gram)) + float(total(noise * norms))
