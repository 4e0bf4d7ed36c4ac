"""Blocks that run one by one give what GPTQ gives by its definition, wherever they stand."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from gptq_definition import CONFIG, Batch, by_definition, codes_that_differ, run
from model_families import FAMILIES, seeded
from tico.quantization import AWQConfig, GPTQConfig, convert, prepare
from tico_config import BaseConfig, CalibrationError
from tico_quantizers import find_blocks
from tico_quantizers.testing import refused, same_tensors, tensors_of, values

BLOCKS = {
    "t5": ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
    "bart": ["encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1"],
    "whisper": ["encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1"],
    "bert": ["encoder.layer.0", "encoder.layer.1"],
    "jamba": [f"model.layers.{number}" for number in range(4)],
    "swin": [f"swin.encoder.layers.{stage}.blocks.{number}" for stage in (0, 1) for number in (0, 1)],
    "convnext": [f"convnext.encoder.stages.{stage}.layers.{number}" for stage in (0, 1) for number in (0, 1)],
    "resnet": [f"encoder.stages.{stage}.layers.{number}" for stage in (0, 1) for number in (0, 1)],
    "llava": [
        *(f"model.vision_tower.encoder.layers.{number}" for number in (0, 1)),
        *(f"model.language_model.layers.{number}" for number in (0, 1)),
    ],
    "gemma3n": [f"model.layers.{number}" for number in range(4)],
    "gemma4": [f"model.layers.{number}" for number in range(4)],
}


def quantized(model: nn.Module, batches: Sequence[Batch], config: BaseConfig = CONFIG) -> nn.Module:
    """Return a converted copy of `model`."""
    prepared = prepare(model, config, inplace=False)
    run(prepared, batches)
    return convert(prepared)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_quantized_as_defined(family: str) -> None:
    """Every chain of blocks is found, and each block reads what the quantized ones before it give."""
    model, batches = FAMILIES[family]()
    expected = by_definition(model, batches, BLOCKS[family])
    assert codes_that_differ(quantized(model, batches), expected) == []


@pytest.mark.parametrize("family", ["gemma3n", "gemma4"])
def test_awq_of_blocks_that_share_keys_and_values(family: str) -> None:
    """Blocks that stay as they are are run by whole passes, too."""
    model, batches = FAMILIES[family]()
    config = AWQConfig(group_size=None, show_progress=False, overrides={})
    found = quantized(model, batches, config).get_submodule("model.layers.3.self_attn.q_proj")
    assert type(found).__name__ == "QuantizedLinear"


@pytest.mark.parametrize("family", ["bart", "gemma4"])
def test_padding_counts_nowhere(family: str) -> None:
    """Neither where a later chain is recorded again nor where whole passes show what blocks read."""
    model, data = FAMILIES[family]()
    tokens, mask = data[0]["input_ids"], torch.ones(2, 12, dtype=torch.int64)
    assert isinstance(tokens, Tensor)
    mask[0, :5] = 0
    both = []
    for padding in (5, 9):
        padded = torch.where(mask == 0, padding, tokens)
        batch = {"input_ids": padded, "attention_mask": mask}
        if family == "bart":
            batch["decoder_input_ids"] = tokens[:, :7]
        both.append(tensors_of(quantized(model, [batch])))
    assert same_tensors(*both)


class State:
    """What a block leaves for others."""

    value: Tensor


class Block(nn.Module):
    """A block that may leave something in an object, or read what another one has left there."""

    def __init__(self, number: int, state: State | None) -> None:
        """Make the layers."""
        super().__init__()
        self.one, self.two = nn.Linear(8, 12), nn.Linear(12, 8)
        self.number, self.state = number, state

    def forward(self, x: Tensor, given: object = None) -> Tensor:
        """Return the next hidden state; block 0 leaves half of it, block 2 adds what it makes of that."""
        output: Tensor = x + self.two(self.one(x).relu())
        shared = self.state if given is None else given
        if self.number == 0:
            _leave(shared, output / 2)
        elif self.number == 2 and shared is not None:
            output = output + self.two(self.one(_left_in(shared)).relu())
        return output


def _leave(shared: object, value: Tensor) -> None:
    match shared:
        case State():
            shared.value = value
        case dict():
            shared["value"] = value
        case list():
            shared.append(value)
        case _:
            pass


def _left_in(shared: object) -> Tensor:
    match shared:
        case State():
            return shared.value
        case dict():
            found: object = shared["value"]
        case list():
            found = shared[-1]
        case _:
            found = None
    assert isinstance(found, Tensor)
    return found


class Net(nn.Module):
    """Four blocks, with something between or beside them that depends on them."""

    def __init__(self, style: str) -> None:
        """Make the blocks."""
        super().__init__()
        state = State() if style == "attribute" else None
        self.style = style
        self.blocks = nn.ModuleList([Block(number, state) for number in range(4)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return four values for each row."""
        makers = {"object": State, "dict": dict[str, Tensor], "list": list[Tensor]}
        given: object = makers[self.style]() if self.style in makers else None
        for _ in range(2 if self.style == "loop" else 1):
            for block in self.blocks:
                x = block(x, given)
                x = x * 1.5 if self.style == "between" else x
        if self.style == "skip":
            x = self.blocks[3](x + self.blocks[0](x))
        output: Tensor = self.head(x)
        return output


class Nested(nn.Module):
    """Blocks in lists of a list."""

    def __init__(self) -> None:
        """Make the blocks."""
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList(Block(1, None) for _ in range(2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the last hidden state."""
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x)
        return x


def batches() -> list[Batch]:
    """Return three batches of growing values."""
    return [{"x": values(seed, 3, 10, 8) * (seed + 1)} for seed in range(3)]


STYLES = ["plain", "object", "dict", "list", "attribute", "between", "loop", "skip"]
NUMBERS = [f"blocks.{number}" for number in range(4)]


@pytest.mark.parametrize("style", STYLES)
def test_what_blocks_leave_for_others_is_what_they_find(style: str) -> None:
    """In an argument, an attribute, a loop over all blocks, or by way of the code between them."""
    model = seeded(lambda: Net(style))
    expected = by_definition(model, batches(), NUMBERS)
    assert codes_that_differ(quantized(model, batches()), expected) == []


def test_blocks_in_lists_of_lists_are_blocks() -> None:
    """Each layer learns of its block's quantized predecessors, in this list and in the one before."""
    model = seeded(Nested)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    paths = [path for path, _ in find_blocks(model, layers)]
    assert paths == ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1"]
    assert codes_that_differ(quantized(model, batches()), by_definition(model, batches(), paths)) == []


def test_a_part_that_is_called_by_itself_cannot_share() -> None:
    """Only whole passes show what a block finds; without them it is refused by its path."""
    model = seeded(lambda: Net("attribute"))
    prepared = prepare(model, CONFIG)
    assert isinstance(prepared, Net)
    with torch.no_grad():
        for batch in batches():
            hidden = batch["x"]
            for block in prepared.blocks:
                hidden = block(hidden)
            prepared.head(hidden)
    with refused(prepared, CalibrationError, field="arguments", module="blocks.2"):
        convert(prepared)


def test_two_models_in_step_cannot_share() -> None:
    """Asymmetric calibration runs the float blocks beside the quantized ones, each by itself."""
    model = seeded(lambda: Net("object"))
    prepared = prepare(model, GPTQConfig(show_progress=False, asymmetric=0.25))
    run(prepared, batches())
    with refused(prepared, CalibrationError, field="arguments", module="blocks.2"):
        convert(prepared)


def test_asymmetric_calibration_crosses_chains() -> None:
    """The float model has its own inputs, and those of the quantized one are what its encoder gives."""
    model, data = FAMILIES["bart"]()
    config = GPTQConfig(show_progress=False, token_weights="uniform", asymmetric=1.0)
    found = quantized(model, data, config)
    assert torch.isfinite(copy.deepcopy(found)(**data[0]).last_hidden_state).all()
