"""How far GPTQ runs a block to learn what its layers read: to the last of them, where that is safe."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from gptq_models import quantized, stack
from tico.quantization import GPTQConfig, convert, prepare
from tico_quantizers.calibration._called_once import CalledOnce
from tico_quantizers.testing import same_tensors, tensors_of
from tiny_models import TOKENS, tiny_llama, values

# Weights from derivatives need what comes after the last layer.
CONFIG = GPTQConfig(show_progress=False, token_weights="uniform")


class Part(nn.Module):
    """A block that counts how often it is begun and ended, and calls its second layer twice on request."""

    def __init__(self, twice_from: float = float("inf")) -> None:
        """Make the parts; the layer is called twice for inputs above `twice_from`."""
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.twice_from = twice_from
        self.counts: Counter[str] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state."""
        self.counts["begun"] += 1
        hidden: Tensor = self.one(x).relu()
        added: Tensor = self.two(hidden)
        if float(x.detach().abs().max()) > self.twice_from:
            added = added + self.two(hidden / 2)
        self.counts["ended"] += 1
        return x + added


def parts_of(model: nn.Module) -> list[Part]:
    """Return the blocks of `model`."""
    return [module for module in model.modules() if isinstance(module, Part)]


def converted(model: nn.Module, *batches: Tensor) -> tuple[nn.Module, list[tuple[int, int]]]:
    """Return the quantized model, and how often `convert` has begun and ended each block."""
    prepared = prepare(model, CONFIG)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    for part in parts_of(model):
        part.counts.clear()
    found = convert(prepared)
    return found, [(part.counts["begun"], part.counts["ended"]) for part in parts_of(found)]


def blocks(*twice_from: float) -> nn.Sequential:
    """Return such blocks, always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(Part(limit) for limit in twice_from)).eval()


SMALL, LARGE = values(1, 20, 8).clamp(-1, 1), values(2, 20, 8).clamp(-1, 1) * 100
NEVER = float("inf")


def test_learning_ends_at_the_last_layer() -> None:
    """A block is run twice a batch, and ended only when it feeds the next; the last one feeds none.

    All of them are run once more at first, whole, to see that they give what they gave.
    """
    assert converted(blocks(NEVER, NEVER), SMALL, LARGE)[1] == [(6, 4), (4, 2)]


@pytest.mark.parametrize(("twice_from", "rows"), [(NEVER, [20, 20, 1, 1]), (50.0, [20] * 6)])
def test_weights_from_derivatives_need_no_product_of_the_last_layer(
    twice_from: float, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first run to compare it is given one row a batch, unless it may be called a second time."""
    model, seen = blocks(twice_from, NEVER), list[int]()
    prepared = prepare(model, GPTQConfig(show_progress=False))
    with torch.no_grad():
        prepared(SMALL), prepared(LARGE)
    last, linear = parts_of(model)[0].two.weight, nn.functional.linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight is last:
            seen.append(len(x))
        return linear(x, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", counted)
    convert(prepared)
    assert seen == rows


def test_a_layer_called_twice_makes_every_call_whole() -> None:
    """One such call among the user's own is enough."""
    assert converted(blocks(50.0, NEVER), SMALL, LARGE)[1] == [(6, 6), (4, 2)]


@pytest.mark.parametrize("model", [stack(), tiny_llama()], ids=["stack", "llama"])
def test_whole_calls_give_the_same_bits(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the layers read depends on what comes after the last of them."""
    batches = [values(3, 20, 8), values(4, 9, 8)] if isinstance(model, nn.Sequential) else [TOKENS] * 2
    ended = tensors_of(quantized(model, *batches, config=CONFIG))
    monkeypatch.setattr(CalledOnce, "holds", lambda self, number: False)
    assert same_tensors(tensors_of(quantized(model, *batches, config=CONFIG)), ended)


class Shared(nn.Module):
    """Blocks that write to an object that all calls share, after their last layer."""

    def __init__(self) -> None:
        """Make the blocks."""
        super().__init__()
        self.blocks = nn.ModuleList([Noting(), Noting()])
        self.memory = Memory()

    def forward(self, x: Tensor) -> Tensor:
        """Return the last hidden state."""
        for block in self.blocks:
            x = block(x, self.memory)
        return x


class Memory:
    """A number that calls leave for later ones."""

    def __init__(self) -> None:
        """Start at zero."""
        self.level = torch.zeros(())


class Noting(Part):
    """A block whose calls depend on the ones before."""

    def forward(self, x: Tensor, memory: Memory) -> Tensor:  # type: ignore[override]  # as it is called
        """Return the next hidden state."""
        output = super().forward(x + memory.level)
        memory.level = output.mean()
        return output


def test_calls_that_depend_on_earlier_ones_are_whole() -> None:
    """What a block does after its last layer is what the next call finds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Shared().eval()
    assert all(begun == ended for begun, ended in converted(model, SMALL, LARGE)[1])


def test_a_pass_that_fails_takes_nothing_back() -> None:
    """A block that was seen to call a layer twice stays one, and half a call says nothing."""
    model = blocks(50.0, NEVER)
    prepared = prepare(model, CONFIG)
    handle = model[1].register_forward_hook(_fail)
    for batch in (SMALL, LARGE):
        with pytest.raises(KeyboardInterrupt):
            prepared(batch)
    handle.remove()
    prepared(SMALL)
    for part in parts_of(model):
        part.counts.clear()
    assert [part.counts["ended"] for part in parts_of(convert(prepared))] == [3, 1]


def _fail(*call: object) -> None:
    raise KeyboardInterrupt
