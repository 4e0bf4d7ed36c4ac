"""Which modules multiply each channel by a weight, found by what they do, and which only look like it."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from tico_quantizers.equivalence import Candidates, as_channel_scale


class Scale(nn.Module):
    """A channel times its weight, plus its bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Keep the parameters."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled channels."""
        scaled = x * self.weight
        return scaled if self.bias is None else scaled + self.bias


class Held(Scale):
    """One that holds something else as well."""

    def __init__(self, name: str, held: object) -> None:
        """Keep it."""
        super().__init__(torch.ones(6))
        setattr(self, name, held)


class Doubling(Scale):
    """One that changes its input if it is not the first call."""

    def forward(self, x: Tensor) -> Tensor:
        """Return twice the scaled channels, of which there are twice as many."""
        return super().forward(x).repeat(2, *(1 for _ in x.shape[1:]))


class Silent(Scale):
    """One that gives zeros only."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        return super().forward(x) * 0


class Named(Scale):
    """One that gives no tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a dict, whatever is said."""
        return {"output": super().forward(x)}  # type: ignore[return-value]  # this is the point


def _with_forward() -> nn.Module:
    module = Scale(torch.ones(6))
    normal = module.forward
    module.forward = lambda x: normal(x) + 1  # type: ignore[method-assign]
    return module


def test_scales_are_found() -> None:
    """With a bias or without one."""
    for module in (Scale(torch.ones(6)), Scale(torch.ones(6), torch.ones(6))):
        found = as_channel_scale(module)
        assert found is not None
        assert (found.channels, found.axis, found.offset) == (6, -1, 0.0)


OTHERS: dict[str, nn.Module] = {
    "no weight": nn.ReLU(),
    "weight of no channel": Scale(torch.ones(0)),
    "weight of one row": Scale(torch.ones(1, 6)),
    "integer weight": Scale(torch.ones(6, dtype=torch.int64)),
    "bias for all channels": Scale(torch.ones(6), torch.ones(1)),
    "before its first call": nn.LazyBatchNorm1d(),
    "another parameter": Held("other", nn.Parameter(torch.ones(6))),
    "a module inside": Held("inside", nn.ReLU()),
    "a lock, which has no copy": Held("lock", threading.Lock()),
    "a forward of its own": _with_forward(),
    "another shape": Doubling(torch.ones(6)),
    "zeros": Silent(torch.ones(6)),
    "no tensor": Named(torch.ones(6)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_modules_are_none(name: str) -> None:
    """Their channels cannot be scaled by scaling a vector."""
    assert as_channel_scale(OTHERS[name]) is None


def test_hooks_are_not_called() -> None:
    """What is tried on a copy is nothing that the user's hooks should see."""
    module, seen = Scale(torch.ones(6)), []
    module.register_forward_hook(lambda *call: seen.append(call))
    module.register_forward_pre_hook(lambda *call: seen.append(call))
    assert as_channel_scale(module) is not None
    assert seen == []


def test_layers_that_cannot_take_scales_have_a_reason() -> None:
    """Convolutions with groups, and layers whose weight is shared."""
    grouped, one, two = nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    candidates = Candidates.of(
        nn.ModuleDict({"grouped": grouped, "one": one, "two": two, "free": nn.Linear(4, 4)})
    )
    assert candidates.reasons["grouped"] == "convolutions with groups=2 are left alone"
    assert {path: candidates.consumer(path) is None for path in candidates.layers} == {
        "grouped": True,
        "one": True,
        "two": True,
        "free": False,
    }
    assert candidates.producer("grouped") is None
