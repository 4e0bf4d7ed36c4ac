"""The blocks of a model are found from its structure."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from tico_quantizers import find_blocks
from tiny_models import net, tiny_llama


class Block(nn.Module):
    """A block under any name."""

    def __init__(self, experts: int = 0) -> None:
        """Make the parts."""
        super().__init__()
        self.anything = nn.Linear(2, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(experts))


def paths(model: nn.Module) -> list[str]:
    """Return the paths of the blocks that hold linear layers."""
    wanted = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [path for path, _ in find_blocks(model, wanted)]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(tiny_llama(), ["model.layers.0", "model.layers.1"], id="llama"),
        pytest.param(nn.Sequential(*(Block() for _ in range(3))), ["0", "1", "2"], id="sequential"),
        pytest.param(nn.ModuleDict({"a": Block(), "b": Block()}), ["a", "b"], id="by name"),
        pytest.param(nn.Sequential(nn.Linear(2, 2), Block(), Block()), ["1", "2"], id="after others"),
        pytest.param(nn.Sequential(Block(), nn.ReLU(), Block()), ["0", "2"], id="others between"),
        pytest.param(nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))), [], id="layers"),
        pytest.param(nn.Sequential(*[Block()] * 3), [], id="one block three times"),
        pytest.param(nn.Sequential(Block(2), Block(2), Block(2)), ["0", "1", "2"], id="experts"),
        pytest.param(nn.Sequential(Block(5), Block(5)), ["0", "1"], id="more experts than layers"),
        pytest.param(net(), [], id="no blocks"),
        pytest.param(nn.Linear(2, 2), [], id="a layer"),
    ],
)
def test_blocks_are_the_chain_that_holds_most_layers(model: nn.Module, expected: list[str]) -> None:
    """No name counts, only that modules of one type stand in a row and hold what is to be quantized."""
    assert paths(model) == expected


def test_a_chain_without_wanted_modules_is_no_chain_of_blocks() -> None:
    """The blocks of a GPT-2 hold no `nn.Linear`, only its own kind of layer."""
    config = GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=16, n_positions=8)
    assert paths(GPT2LMHeadModel(config)) == []
