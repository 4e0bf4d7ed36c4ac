"""Which streams and heads are rotated, what ends a rotation, and what the weights are afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tico_config import ConfigError, RotationConfig, TicoError, no_quant
from tico_modules import RotatedInput, named_modules, report
from tico_quantizers import Registry, RotationQuantizer, quantizer_entry
from tico_quantizers.equivalence import as_channel_scale, as_rotated_norm
from tico_quantizers.lifecycle import convert, prepare
from tico_quantizers.testing import seeded, unchanged, values

REGISTRY = Registry([quantizer_entry(RotationConfig, RotationQuantizer)])
TOKENS = torch.arange(24).view(2, 12) % 11
EXACT = 1e-5
WIDTH = 12


class Block(nn.Module):
    """A norm, two layers, and the sum of their output and the input; `step` may do something between."""

    def __init__(self, norm: nn.Module | None = None, step: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH) if norm is None else norm
        self.up = nn.Linear(WIDTH, 16)
        self.down = nn.Linear(16, WIDTH)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state."""
        branch: Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return x + (branch if self.step is None else self.step(branch))


class Attention(nn.Module):
    """Two query heads that share one head of values, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.query, self.key = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 6)
        self.value, self.output = nn.Linear(WIDTH, 6), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state."""
        read = self.norm(x)
        query = self.query(read).unflatten(-1, (2, 6)).transpose(1, 2)
        key, value = (part(read).unflatten(-1, (1, 6)).transpose(1, 2) for part in (self.key, self.value))
        key, value = (part.expand(-1, 2, -1, -1) for part in (key, value))
        mixed = (query @ key.transpose(2, 3)).softmax(-1) @ value
        output: Tensor = x + self.output(mixed.transpose(1, 2).flatten(2))
        return output


class Experts(nn.Module):
    """A router without a layer, experts that get their tokens by index, and a sum by index."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.router = nn.Parameter(values(3, 3, WIDTH))
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state."""
        read = self.norm(x).view(-1, WIDTH)
        share, chosen = F.linear(read, self.router).softmax(-1).max(-1)
        found = torch.zeros_like(read)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                found.index_add_(0, rows, expert(read[rows]) * share[rows, None])
        return x + found.view(x.shape)


class Halved(nn.Module):
    """Half of what a LayerNorm gives, its bias included."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return it."""
        half: Tensor = self.inner(x) * 0.5
        return half


class Joined(nn.Module):
    """A layer that reads what a LayerNorm gives for two tokens at once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.both = nn.LayerNorm(WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the first of every two tokens, and what the layer has made of them."""
        output: Tensor = x[:, ::2] + self.both(self.norm(x).unflatten(1, (-1, 2)).flatten(2))
        return output


class Scaled(nn.Module):
    """Multiplies each channel by a number of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the product."""
        return x * values(1, WIDTH)


class Language(nn.Module):
    """An embedding, blocks, a norm and a head."""

    def __init__(self, *blocks: nn.Module, norm: nn.Module | None = None, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, WIDTH)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.RMSNorm(WIDTH) if norm is None else norm
        self.head = nn.Linear(WIDTH, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        for _, each in self.named_parameters():
            if each.ndim == 1:
                each.data.add_(values(each.numel(), each.numel()) / 4)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of `tokens`."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(tokens))))
        return logits


def rotated(model: nn.Module, config: RotationConfig | None = None, tokens: Tensor = TOKENS) -> nn.Module:
    """Return `model` prepared, run and converted."""
    prepared = prepare(model, config or RotationConfig(), registry=REGISTRY)
    prepared(tokens)
    return convert(prepared)


def notes(model: nn.Module) -> dict[str, str]:
    """Return what the report says of each module."""
    return {line.path: line.reason for line in report(model).layers}


def near(found: Tensor, expected: Tensor) -> bool:
    """Return whether two outputs are the same up to rounding."""
    return float((found - expected).detach().norm()) <= EXACT * float(expected.detach().norm())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "blocks": lambda: Language(Block(), Block()),
    "grouped attention": lambda: Language(Attention(), Block()),
    "layer norms": lambda: Language(Block(nn.LayerNorm(WIDTH)), Block(), norm=nn.LayerNorm(WIDTH)),
    "tied": lambda: Language(Block(), tied=True),
    "no norm before a tied head": lambda: Language(Block(), norm=nn.Identity(), tied=True),
    "experts": lambda: Language(Experts(), Block()),
    "a factor for all channels": lambda: Language(Block(step=lambda x: x * 0.5)),
    "a layer norm whose output is multiplied": lambda: Language(Block(Halved())),
    "a layer over several tokens": lambda: Language(Joined()),
    "moved and moved back": lambda: Language(Block(step=lambda x: x.transpose(0, 1).transpose(0, 1))),
}
BROKEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a function of channels": (lambda: Language(Block(), nn.Tanh()), r"tanh reads it in blocks\.1"),
    "a factor per channel": (lambda: Language(Scaled()), "mul reads it"),
    "a function in a branch": (
        lambda: Language(Block(step=torch.tanh)),
        r"no layer has written is added to it in blocks\.0",
    ),
    "a tensor of nobody": (lambda: Language(Block(step=lambda x: x + 1)), "no layer has written is added"),
    "channels in another order": (
        lambda: Language(Block(step=lambda x: x.flip(-1))),
        "no layer has written is added",
    ),
    "a norm that is an output": (
        lambda: nn.Sequential(Language().embed, Block(), nn.RMSNorm(WIDTH)),
        "output",
    ),
    "a norm of groups": (
        lambda: Language(norm=nn.GroupNorm(3, WIDTH)),
        "group_norm reads it",
    ),
    "a layer of another kind": (lambda: Language(Block(), norm=nn.Conv1d(12, 12, 1)), "norm reads it"),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_function_is_kept_and_weights_are_not(make: Callable[[], nn.Module]) -> None:
    """Outputs stay within 1e-5 of their norm, and the embedding is another one."""
    model = seeded(make)
    expected, before = model(TOKENS), copy.deepcopy(model.get_parameter("embed.weight"))
    assert near(rotated(model)(TOKENS), expected)
    assert not torch.allclose(model.get_parameter("embed.weight"), before)


@pytest.mark.parametrize(("make", "reason"), BROKEN.values(), ids=BROKEN)
def test_what_else_touches_a_stream_ends_it(make: Callable[[], nn.Module], reason: str) -> None:
    """The model is refused with the reason, and nothing has changed."""
    model = seeded(make)
    with pytest.raises(TicoError, match=reason), unchanged(model):
        prepare(model, RotationConfig(), (TOKENS,), registry=REGISTRY)


def test_norms_that_commute_are_told_by_what_they_do() -> None:
    """RMSNorm commutes with any matrix, LayerNorm with those that keep the mean, BatchNorm with none."""
    found = []
    for module in (nn.RMSNorm(12), nn.LayerNorm(12), nn.BatchNorm1d(12).eval()):
        scale = as_channel_scale(module)
        assert scale is not None
        norm = as_rotated_norm(scale)
        found.append(None if norm is None else norm.keeps_mean)
    assert found == [False, True, None]


def test_norms_are_folded_into_their_readers() -> None:
    """A norm of a rotated stream has a weight of ones afterwards, and no bias that a reader can take."""
    model = rotated(seeded(MODELS["layer norms"]))
    first, last = (model.get_submodule(path) for path in ("blocks.0.norm", "norm"))
    assert isinstance(first, nn.LayerNorm)
    assert isinstance(last, nn.LayerNorm)
    assert torch.equal(first.weight, torch.ones(WIDTH))
    assert torch.equal(last.weight, torch.ones(WIDTH))
    assert not bool(first.bias.any())
    assert bool(last.bias.any())  # the head has no bias


def test_head_without_a_norm_stays_tied() -> None:
    """Rows and columns of the shared weight are the same channels, so that it needs no second one."""
    model = rotated(seeded(MODELS["no norm before a tied head"]))
    assert model.get_parameter("head.weight") is model.get_parameter("embed.weight")
    assert "tied" not in notes(model)["head"]


def test_outliers_are_spread() -> None:
    """A channel that is a hundred times as large as the others is not afterwards."""
    model = seeded(MODELS["blocks"])
    embedding = model.get_parameter("embed.weight")
    embedding.data[:, 5] += 100.0
    rotated(model)
    largest = model.get_parameter("embed.weight").detach().abs().amax(0)
    assert float(largest.max() / largest.min()) < 2


def test_experts_without_tokens_follow_their_peers() -> None:
    """An expert that no token reached is rotated like the others, so that it fits when one does."""
    model = seeded(MODELS["experts"])
    every = [model(torch.tensor([[token]])) for token in range(11)]
    said = notes(rotated(model, tokens=torch.tensor([[0]])))
    assert sum("only its peers" in note for note in said.values()) == 2
    assert all(near(model(torch.tensor([[token]])), expected) for token, expected in enumerate(every))


def test_value_heads_are_rotated_once_for_all_queries() -> None:
    """The layer of the values and the one behind the attention are named, with the size of a head."""
    said = notes(rotated(seeded(MODELS["grouped attention"]), RotationConfig(residual=False)))
    assert said["blocks.0.value"] == "output rotated: heads of 6 from blocks.0.value"
    assert said["blocks.0.output"] == "input rotated back: heads of 6 from blocks.0.value"
    assert "rotated" not in said["embed"].replace("rotates", "")


def test_refusals_stand_beside_what_was_done() -> None:
    """A layer whose input is rotated back, and whose own output cannot be rotated, has both in its line."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.norm = Attention(), nn.RMSNorm(WIDTH)
            self.head = nn.Linear(WIDTH, 11)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.norm(self.attention(x)))
            return logits

    model = seeded(Body)
    said = notes(rotated(model, tokens=values(0, 2, 5, WIDTH)))
    assert "input rotated back: heads of 6" in said["attention.output"]
    assert "output not rotated: attention.output: something" in said["attention.output"]


def test_overrides_hold_for_all_that_shares_a_matrix() -> None:
    """One of them leaves out the stream, and says so; two that differ are an error that names both."""
    model = seeded(MODELS["grouped attention"])
    said = notes(rotated(copy.deepcopy(model), RotationConfig(overrides={"head": no_quant()})))
    assert "head is left out by the override 'head'" in said["embed"]
    assert "heads of 6" in said["blocks.0.value"]
    clash = RotationConfig(overrides={"embed": {"seed": 1}, "head": {"seed": 2}})
    with pytest.raises(ConfigError, match="say different things") as caught:
        rotated(model, clash)
    assert caught.value.module == "embed"


def test_later_passes_can_end_a_stream() -> None:
    """What one pass does with a channel counts, whatever the others do."""

    class Sometimes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if len(x) > 1 else x.tanh()

    model = seeded(lambda: Language(Block(), Sometimes()))
    prepared = prepare(model, RotationConfig(), (TOKENS,), registry=REGISTRY)
    prepared(TOKENS)
    prepared(TOKENS[:1])
    with unchanged(prepared), pytest.raises(ConfigError, match=r"tanh reads it in blocks\.1"):
        convert(prepared)


def test_hidden_writing_is_caught_by_running_the_model() -> None:
    """What no function of torch shows changes the output, and the rotation is named and taken back."""

    class Secret(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                torch.Tensor.mul_(x[..., :1], 3.0)
            return x

    model = seeded(lambda: Language(Block(), Secret(), Block()))
    expected = model(TOKENS)
    prepared = prepare(model, RotationConfig(), registry=REGISTRY)
    prepared(TOKENS)
    with unchanged(prepared), pytest.raises(ConfigError, match="changes the output of the model") as caught:
        convert(prepared)
    assert caught.value.module == "embed"
    assert torch.equal(model(TOKENS), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_stays(dtype: torch.dtype) -> None:
    """Weights are computed in float64 and rounded once; outputs move by their precision at most."""
    model = seeded(MODELS["layer norms"]).to(dtype)
    expected = model(TOKENS).detach()
    found = rotated(model)(TOKENS).detach()
    limit = 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps ** 0.5
    assert found.dtype == dtype
    assert float((found - expected).double().norm()) <= limit * float(expected.double().norm())


def test_threads_make_no_difference() -> None:
    """The same bits on one thread and on three."""
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(rotated(seeded(MODELS["grouped attention"])).state_dict())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


ONLINE = RotationConfig(online_inputs=True)


def online(model: nn.Module) -> list[str]:
    """Return the paths of the layers whose input is rotated while the model runs."""
    return [path for path, module in named_modules(model) if isinstance(module, RotatedInput)]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_online_rotations_keep_the_function(make: Callable[[], nn.Module]) -> None:
    """Outputs stay within 1e-5 of their norm."""
    model = seeded(make)
    expected = model(TOKENS)
    assert near(rotated(model, ONLINE)(TOKENS), expected)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ONLINE, ["blocks.1.down"]),
        (RotationConfig(residual=False, online_inputs=True), ["blocks.1.down"]),
        (RotationConfig(heads=False, online_inputs=True), ["blocks.0.output", "blocks.1.down"]),
        (RotationConfig(online_inputs=True, overrides={"blocks.1.down": {"online_inputs": False}}), []),
        (RotationConfig(overrides={"*.down": {"online_inputs": True}}), ["blocks.1.down"]),
    ],
)
def test_inputs_that_nothing_else_spreads_are_rotated_online(
    config: RotationConfig, expected: list[str]
) -> None:
    """Those of layers that read a norm are not, nor those that a folded matrix reaches."""
    model = rotated(seeded(MODELS["grouped attention"]), config)
    assert online(model) == expected
    said = notes(model)
    assert all("input rotated online (4 * 4)" in said[path] for path in expected if path.endswith("down"))


def test_a_layer_that_is_left_out_gets_no_rotation() -> None:
    """The other layer of the model does."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    config = RotationConfig(online_inputs=True, overrides={"2": no_quant()})
    prepared = prepare(model, config, registry=REGISTRY)
    prepared(values(0, 2, 8))
    assert online(convert(prepared)) == ["0"]


def test_no_input_is_rotated_twice() -> None:
    """A second run leaves the layer behind a rotation as it is."""
    model = rotated(seeded(MODELS["blocks"]), ONLINE)
    before = online(model)
    again = rotated(model, ONLINE)
    assert online(again) == before


def test_experts_that_no_token_reached_are_rotated_as_their_peers() -> None:
    """All experts read spread inputs afterwards; the report says of which it was not the data that asked."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.RMSNorm(WIDTH)
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, WIDTH)) for _ in range(2)
            )

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = x + self.experts[int(len(x) > 2)](self.norm(x))
            return output

    model = seeded(lambda: Language(Gated()))
    expected = model(TOKENS.repeat(2, 1))
    found = rotated(model, ONLINE)
    assert online(found) == ["blocks.0.experts.0.2", "blocks.0.experts.1.2"]
    assert "no data reached it" in notes(found)["blocks.0.experts.1.2"]
    assert near(found(TOKENS.repeat(2, 1)), expected)
