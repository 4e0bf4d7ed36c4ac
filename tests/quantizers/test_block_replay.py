"""Blocks run again one by one exactly as they ran in the user's passes."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from references import same_bits
from tico_config import CalibrationError
from tico_quantizers import Calibration, find_blocks
from tico_quantizers.calibration import _activation_store as activation_store
from tico_quantizers.calibration._activation_store import ActivationStore
from tico_quantizers.calibration._block_calls import BlockCalls
from tico_quantizers.calibration._calls import FromBlock, leaves_of, tensor_leaves
from tico_quantizers.calibration._forward_watch import watch_forward
from tiny_models import TOKENS, tiny_llama, values


@attrs.define(eq=False)
class Watched:
    """A model with its blocks watched, and what each call of a block really got and gave."""

    model: nn.Module
    blocks: tuple[nn.Module, ...]
    calls: BlockCalls
    calibration: Calibration
    real: list[list[list[Tensor]]]


def watch(model: nn.Module, store: ActivationStore | None = None) -> Watched:
    """Watch the blocks of a model from now on."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    blocks = tuple(block for _, block in find_blocks(model, layers))
    assert blocks
    calls = BlockCalls(blocks, store)
    calibration = Calibration(calls)
    calls.watch(calibration)
    watch_forward(model, calibration)
    watched = Watched(model, blocks, calls, calibration, [[] for _ in blocks])
    _record(watched)
    return watched


def _record(watched: Watched) -> None:
    """Keep copies of what every call of a block gets and gives in `real`."""

    def before(block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        number = watched.blocks.index(block)
        watched.real[number].append([x.detach().clone() for x in tensor_leaves((args, kwargs))])

    def after(block: nn.Module, args: object, output: object) -> None:
        number = watched.blocks.index(block)
        watched.real[number][-1] += [x.detach().clone() for x in tensor_leaves(output)]

    for block in watched.blocks:
        block.register_forward_pre_hook(before, with_kwargs=True)
        block.register_forward_hook(after)


def require_same_replay(watched: Watched) -> None:
    """Run every block again and compare what it gets and gives with what it really got and gave."""
    real, watched.real = watched.real, [[] for _ in watched.blocks]
    watched.calibration.watching = False
    outputs: dict[FromBlock, Tensor] = {}
    for number in range(len(watched.blocks)):
        for tensors in watched.calls.run(number, outputs, keep=True):
            outputs |= tensors
    for again, before in zip(watched.real, real, strict=True):
        assert len(again) == len(before)
        for one, other in zip(again, before, strict=True):
            assert len(one) == len(other)
            assert all(same_bits(x, y) for x, y in zip(one, other, strict=True))


class Block(nn.Module):
    """A residual block that can be called in many ways; `style` says how it treats its input."""

    def __init__(self, style: str, number: int) -> None:
        """Make the parts."""
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.style = style
        self.number = number

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        *,
        extra: tuple[Tensor, ...] = (),
        memory: object = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the hidden state, with a second output for the style `tuple`."""
        change: Tensor = self.linear(hidden if mask is None else hidden * mask)
        for one in extra:
            change = change + one
        if isinstance(memory, SimpleNamespace):
            memory.states[self.number] = memory.states[self.number] + change
            change = change + memory.states[self.number]
        if self.style == "in place":
            return hidden.add_(change)
        return (hidden + change, change) if self.style == "tuple" else hidden + change


class Stack(nn.Module):
    """Three blocks, called the way that `style` says."""

    def __init__(self, style: str) -> None:
        """Make the parts."""
        super().__init__()
        self.blocks = nn.ModuleList(Block(style, number) for number in range(3))
        self.style = style
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the last hidden state."""
        self.calls += 1
        hidden, mask = x * 1, (x > 0).float()
        memory = SimpleNamespace(states=[torch.zeros(6) for _ in self.blocks])
        for _ in range(2 if self.style == "twice" else 1):
            for number, block in enumerate(self.blocks):
                if self.style == "skipped" and number == 1 and self.calls % 2:
                    continue
                hidden = self._called(block, number, hidden, mask, memory)
        return hidden

    def _called(self, block: nn.Module, number: int, hidden: Tensor, mask: Tensor, memory: object) -> Tensor:
        output: Tensor
        match self.style:
            case "keyword":
                output = block(hidden=hidden, mask=mask)
            case "tuple":
                output, _ = block(hidden, extra=(hidden, mask))
            case "own mask":
                output = block(hidden, mask * number, extra=(mask,))
            case "memory":
                output = block(hidden, memory=memory)
            case "written to":
                output = block(hidden).add_(1)
            case "mask written to":
                output = block(hidden, mask.mul_(0.5))
            case "view":
                output = block(hidden[:, :6])
            case _:
                output = block(hidden, mask)
        return output


STYLES = [
    "positional",
    "keyword",
    "tuple",
    "own mask",
    "memory",
    "in place",
    "written to",
    "mask written to",
    "view",
    "skipped",
    "twice",
]
MODES: dict[str, Callable[[], torch.no_grad | torch.enable_grad | torch.inference_mode]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("style", STYLES)
def test_what_blocks_get_and_give_is_repeated(style: str, mode: str) -> None:
    """Whatever way they are called, every input and output has the same bits again."""
    watched = watch(Stack(style))
    with MODES[mode]():
        for seed in range(3):
            watched.model(values(seed, 2 + seed, 6))
    require_same_replay(watched)


@pytest.mark.parametrize("style", STYLES)
def test_what_is_kept_on_disk_is_repeated(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument comes back from there with the same bits, and shared ones are written once."""
    monkeypatch.setattr(activation_store, "_SMALLEST", 1)
    watched = watch(Stack(style), ActivationStore(offload=Path(tempfile.gettempdir())))
    with torch.no_grad():
        for seed in range(2):
            watched.model(values(seed, 2 + seed, 6))
    kept = [leaf for calls in watched.calls.accepted for call in calls for leaf in leaves_of(call)]
    assert not any(isinstance(leaf, Tensor) for leaf in kept)
    require_same_replay(watched)


@pytest.mark.parametrize(
    "style", [style for style in STYLES if "written" not in style and style != "in place"]
)
def test_passes_with_gradients_are_repeated(style: str) -> None:
    """Nobody has to switch gradients off to calibrate."""
    watched = watch(Stack(style))
    for seed in range(2):
        watched.model(values(seed, 3, 6))
    require_same_replay(watched)


def test_hidden_states_are_kept_once() -> None:
    """Only the first block's are copies; a mask that all blocks share is copied once a pass."""
    watched = watch(Stack("positional"))
    with torch.no_grad():
        watched.model(values(1, 4, 6))
    first, second, third = (calls[0] for calls in watched.calls._accepted)
    assert isinstance(first.args[0], Tensor)
    assert (second.args[0], third.args[0]) == (FromBlock(0, 0, 0), FromBlock(1, 0, 0))
    assert first.args[1] is second.args[1] is third.args[1]


def test_nothing_of_a_pass_is_kept_alive() -> None:
    """The model's own tensors go when the user's pass ends."""
    watched, seen = watch(Stack("positional")), []
    watched.blocks[1].register_forward_hook(lambda *call: seen.append(weakref.ref(call[2])))
    with torch.no_grad():
        watched.model(values(1, 4, 6))
    assert [reference() for reference in seen] == [None]


def test_a_pass_that_fails_is_not_counted() -> None:
    """What its blocks were called with is forgotten, and the next pass counts as usual."""
    watched = watch(Stack("positional"))
    handle = watched.blocks[2].register_forward_pre_hook(_fail)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        watched.model(values(1, 4, 6))
    handle.remove()
    watched.real = [[] for _ in watched.blocks]
    with torch.no_grad():
        watched.model(values(2, 4, 6))
    assert [len(calls) for calls in watched.calls._accepted] == [1, 1, 1]
    require_same_replay(watched)


def _fail(*call: object) -> None:
    raise KeyboardInterrupt


def test_blocks_called_without_the_model_count() -> None:
    """A model used by another of its methods is calibrated too; a call that fails is not counted."""
    watched = watch(Stack("positional"))
    with torch.no_grad(), pytest.raises(RuntimeError):
        watched.blocks[0](values(1, 4, 5))
    watched.real = [[] for _ in watched.blocks]
    with torch.no_grad():
        hidden = values(2, 4, 6)
        for block in watched.blocks:
            hidden = block(hidden)
    assert [len(calls) for calls in watched.calls._accepted] == [1, 1, 1]
    assert watched.calls._accepted[1][0].args == (FromBlock(0, 0, 0),)
    require_same_replay(watched)


def test_the_users_hooks_on_blocks_run_once_a_call() -> None:
    """A hook that changes the input of a block changes it again when the block runs again, not twice."""
    model = Stack("positional")
    model.blocks[1].register_forward_pre_hook(lambda _, args: (args[0] * 3, *args[1:]))
    watched = watch(model)
    with torch.no_grad():
        model(values(1, 4, 6))
    require_same_replay(watched)


def test_an_object_that_cannot_be_copied_is_refused() -> None:
    """The error says which argument and what to do, in the pass and not when the model is converted."""
    watched = watch(Stack("positional"))
    leaf = values(1, 2, 6).requires_grad_() * 2
    with pytest.raises(CalibrationError) as caught:
        watched.blocks[0](values(2, 2, 6), memory=SimpleNamespace(states=[leaf]))
    assert caught.value.field == "block argument"
    assert "no_grad" in str(caught.value)


@pytest.mark.parametrize("mode", [*MODES, "gradients", "autocast"])
@pytest.mark.parametrize("use", ["forward", "padded", "continued", "generate", "beams"])
def test_a_llama_is_repeated(use: str, mode: str) -> None:
    """Rotary positions, masks, and a cache that grows from call to call, or is reordered between calls."""
    watched = watch(tiny_llama())
    with _mode(mode):
        _use(watched.model, use)
    require_same_replay(watched)


def _mode(mode: str) -> torch.autocast | torch.no_grad | torch.enable_grad | torch.inference_mode:
    if mode == "autocast":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return torch.enable_grad() if mode == "gradients" else MODES[mode]()


def _use(model: nn.Module, use: str) -> None:
    mask = torch.ones_like(TOKENS)
    match use:
        case "forward":
            model(TOKENS)
            model(TOKENS[:1, :5])
        case "padded":
            mask[0, :4] = 0
            model(TOKENS, attention_mask=mask)
        case "continued":
            output = model(TOKENS, use_cache=True)
            model(TOKENS[:, :3], past_key_values=output.past_key_values)
        case _:
            assert isinstance(model, LlamaForCausalLM)
            beams = 3 if use == "beams" else 1
            model.generate(  # type: ignore[misc]  # transformers types self as a mixin's protocol
                TOKENS,
                attention_mask=mask,
                max_new_tokens=4,
                do_sample=False,
                num_beams=beams,
                pad_token_id=0,
            )
