"""Passes end early only where a pass like them has shown that nothing is to come."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import attrs
import pytest
import torch
from torch import Tensor, nn

from gptq_definition import CONFIG, Batch, run
from model_families import FAMILIES, seeded
from tico.quantization import convert, prepare
from tico_quantizers.testing import same_tensors, tensors_of, values
from tiny_models import TOKENS, tiny_llama

EARLY = attrs.evolve(CONFIG, stop_after_capture=True)


class Block(nn.Module):
    """A block that may tell whether it is to be called again."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.one, self.two = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor, *, tells: bool = False) -> Tensor | tuple[Tensor, bool]:
        """Return the next hidden state, and whether its mean is positive if it `tells` that."""
        output: Tensor = x + self.two(self.one(x).relu())
        return (output, bool(output.mean() > 0)) if tells else output


class Tower(nn.Module):
    """Blocks that are called as often as an argument, its values, or their own outputs say."""

    def __init__(self, style: str, behind: str, *, sees: bool) -> None:
        """Make the blocks, and a layer behind them that is quantized or not."""
        super().__init__()
        self.style = style
        self.blocks = nn.ModuleList([Block(), Block()])
        self.vision = nn.ModuleList([Block(), Block()] if sees else [])
        self.head = nn.Linear(8, 4) if behind == "layer" else nn.LayerNorm(8)

    def forward(self, x: Tensor, images: Sequence[Tensor] = (), loops: int = 1) -> Tensor:
        """Return four values for each row."""
        for image in images:
            hidden = image
            for block in self.vision:
                hidden = block(hidden)
            x = x + hidden.mean(1, keepdim=True)
        large = True
        for _ in range(self._loops(x, loops)):
            for block in self.blocks if large else ():
                if self.style == "output":
                    x, large = block(x, tells=True)
                else:
                    x = block(x)
        output: Tensor = self.head(x)
        return output

    def _loops(self, x: Tensor, loops: int) -> int:
        match self.style:
            case "value":
                return int(x[0, 0, 0] > 0) + 1
            case "list":
                return len([value for value in x[0, 0].tolist() if value > 1]) + 1
            case "shape":
                return len(x[x > 2.5]) + 1
            case "output":
                return 2
            case _:
                return loops


def hidden(seed: int, tokens: int = 5) -> Tensor:
    """Return hidden states."""
    return values(seed, 2, tokens, 8)


MIXES: dict[str, list[Batch]] = {
    "same": [{"x": hidden(seed)} for seed in range(4)],
    "text first": [{"x": hidden(0)}, *({"x": hidden(n), "images": [hidden(n + 9)]} for n in range(2))],
    "more images": [
        {"x": hidden(n), "images": [hidden(9)] * count} for n, count in enumerate((1, 2, 1, 2, 3))
    ],
    "more loops": [{"x": hidden(n), "loops": count} for n, count in enumerate((1, 2, 1, 3, 2))],
    "other lengths": [{"x": hidden(n, length)} for n, length in enumerate((5, 7, 5, 3, 7))],
}


def bits(model: nn.Module, config: object, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], list[bool]]:
    """Return the tensors of a converted copy, and which passes have ended early."""
    assert isinstance(config, type(CONFIG))
    prepared = prepare(model, config, inplace=False)
    with torch.no_grad():
        ended = [prepared(**batch) is None for batch in batches]
    return tensors_of(convert(prepared)), ended


@pytest.mark.parametrize("style", ["loops", "value", "list", "shape", "output"])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("behind", ["layer", "norm"])
@pytest.mark.parametrize("step", [1, -1])
def test_any_mix_of_passes_gives_the_same_bits(style: str, mix: str, behind: str, step: int) -> None:
    """Whether arguments, their shapes, values of tensors or blocks decide what a pass calls."""
    model = seeded(lambda: Tower(style, behind, sees="text" in mix or "images" in mix))
    config, data = attrs.evolve(EARLY, on_uncalibrated="skip"), MIXES[mix][::step]
    whole = bits(model, attrs.evolve(config, stop_after_capture=False), data)
    ended = bits(model, config, data)
    assert same_tensors(whole[0], ended[0])
    assert not any(whole[1])


def test_passes_like_a_whole_one_end_early() -> None:
    """One for each form of the arguments runs to its end."""
    model = seeded(lambda: Tower("loops", "layer", sees=True))
    config = attrs.evolve(EARLY, on_uncalibrated="skip")
    for mix, ended in {
        "same": [False, True, True, True],
        "text first": [False, False, True],
        "more images": [False, False, True, True, False],
        "more loops": [False, False, True, False, True],
        "other lengths": [False, False, True, False, True],
    }.items():
        assert bits(model, config, MIXES[mix])[1] == ended


def test_what_a_model_reads_of_its_tensors_decides() -> None:
    """Where a pass reads what none has read, it runs to its end."""
    model = seeded(lambda: Tower("value", "layer", sees=False))
    batches: list[Batch] = [{"x": hidden(seed)} for seed in range(8)]
    loops = [int(hidden(seed)[0, 0, 0] > 0) for seed in range(8)]
    assert len(set(loops)) == 2
    ended = bits(model, attrs.evolve(EARLY, on_uncalibrated="skip"), batches)[1]
    first_of_each = {loops.index(0), loops.index(1)}
    assert all(ended[seed] for seed in range(8) if seed not in first_of_each and loops[seed] == loops[0])
    assert not ended[0]


def test_a_masked_llama_ends_early() -> None:
    """The mask is looked at, with the same answer in every pass."""
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[0, :3] = 0
    batches: list[Batch] = [{"input_ids": each, "attention_mask": mask} for each in (TOKENS, TOKENS.flip(1))]
    whole, ended = (bits(tiny_llama(), config, batches) for config in (CONFIG, EARLY))
    assert same_tensors(whole[0], ended[0])
    assert ended[1] == [False, True]


def test_a_vision_language_model_whose_first_batch_is_text() -> None:
    """Its images are not cut off."""
    model, batches = FAMILIES["llava"]()
    whole, early = (prepare(model, config, inplace=False) for config in (CONFIG, EARLY))
    for prepared in (whole, early):
        run(prepared, batches)
    assert same_tensors(tensors_of(convert(whole)), tensors_of(convert(early)))


def test_inputs_that_are_kept_on_disk_are_in_memory_no_more() -> None:
    """Also where passes end before the block does that would give them: 600 tokens take more than 16 KB."""
    model: nn.Module = nn.Sequential(nn.Embedding(10, 8), Block(), Block()).eval()
    model = prepare(model, attrs.evolve(EARLY, offload="disk"))
    for number in range(5):
        model(torch.full((1, 600), number))
    gc.collect()
    held = [each for each in gc.get_objects() if type(each) is Tensor and each.shape == (1, 600, 8)]
    assert held == []
    convert(model)
