"""perplexity and compare: how far a quantized model is from the float one."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn

from tico_config import (
    CalibrationError,
    ConfigError,
    GPTQConfig,
    LifecycleError,
    TicoError,
    UnsupportedError,
)
from tico_quantizers import GPTQQuantizer, Registry, quantizer_entry
from tico_quantizers.evaluation import BlockError, Comparison, compare, perplexity
from tico_quantizers.lifecycle import prepare
from tico_quantizers.testing import process_settings, unchanged
from tiny_models import TOKENS, tiny_llama

REGISTRY = Registry([quantizer_entry(GPTQConfig, GPTQQuantizer)])


class Chain(nn.Module):
    """Three blocks of one linear layer each, and a head, which count their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(3)])
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


def _chain() -> Chain:
    torch.manual_seed(0)
    return Chain().eval()


def _moved(model: Chain, block: int, factor: float = 1.25) -> Chain:
    """Return a copy one block of which gives `factor` times as much."""
    other = copy.deepcopy(model)
    layer = other.blocks[block].get_submodule("0")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(factor)
    return other


def _rows() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def test_error_enters_where_a_block_is_another_one() -> None:
    """A block that gives 1.25 times as much is off by 1/16 of its squared norm; the others add nothing."""
    model = _chain()
    found = compare(model, _moved(model, 1), [_rows()])
    assert [line.path for line in found.lines] == ["blocks.0", "blocks.1", "blocks.2"]
    assert [line.own for line in found.lines] == pytest.approx([0, 1 / 16, 0], abs=1e-7)
    assert found.lines[0].accumulated == 0
    assert found.lines[1].accumulated == pytest.approx(1 / 16)
    assert found.lines[2].accumulated > 0


def test_divergence_is_that_of_the_softmax_of_the_logits() -> None:
    """KL(p, q) = sum of p (log p - log q), its mean over rows, by the definition."""
    model, x = _chain(), _rows()
    other = _moved(model, 2, 3.0)
    found = compare(model, other, [x])
    with torch.no_grad():
        one, two = (each(x).double() for each in (model, other))
    p, q = one.softmax(-1), two.softmax(-1)
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-6)
    assert found.agreement == float((one.argmax(-1) == two.argmax(-1)).double().mean())
    assert found.rows == 6


def test_model_is_no_way_from_itself() -> None:
    """Of a copy every error is 0."""
    found = compare(_chain(), _chain(), [_rows()])
    assert (found.kl, found.agreement) == (0, 1)
    assert all(line.own == line.accumulated == 0 for line in found.lines)


def test_batches_make_no_difference() -> None:
    """One sample is run at a time, however they come."""
    model, x = _chain(), _rows()
    other = _moved(model, 0)
    assert compare(model, other, [x]) == compare(model, other, list(torch.split(x, 1)))


def test_models_and_process_are_left_as_they_were() -> None:
    """Hooks, buffers, modes, gradients, and the random state; the hooks of the user are called."""
    model = _chain()
    other = _moved(model, 0)
    calls: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    before = process_settings()
    with unchanged(model), unchanged(other):
        compare(model, other, [_rows()])
    assert process_settings() == before
    assert len(calls) == 6


def test_models_are_left_as_they_were_after_an_error() -> None:
    """A forward that fails leaves no hook."""
    model = _chain()
    other = _moved(model, 0)
    with unchanged(model), unchanged(other), pytest.raises(RuntimeError):
        compare(model, other, [torch.ones(2, 3)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_nowhere(side: str) -> None:
    """Padded on the left, on the right or not at all, the same tokens give the same bits."""
    model, other = tiny_llama(), tiny_llama()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(1.1)
    tokens = TOKENS[:1, :6]
    padding, real = torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 6, dtype=torch.int64)
    order = slice(None) if side == "right" else slice(None, None, -1)
    padded = torch.cat([tokens, padding][order], 1)
    mask = torch.cat([real, padding][order], 1)
    plain = compare(model, other, [{"input_ids": tokens, "attention_mask": real}])
    assert compare(model, other, [{"input_ids": padded, "attention_mask": mask}]) == plain
    assert plain.rows == 6
    assert plain.lines[0].own > 0
    assert plain.lines[1].own == 0


def test_padding_that_cannot_be_cut_counts_nowhere() -> None:
    """A token that the mask hides in the middle of others is no row of any block, nor of the output."""

    class Masked(Chain):
        def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    model = Masked().eval()
    other = _moved(model, 1)
    x, mask = torch.randn(1, 4, 4), torch.tensor([[1, 0, 1, 1]])
    hidden = x.clone()
    hidden[0, 1] = 100.0
    found = compare(model, other, [{"x": hidden, "attention_mask": mask}])
    assert found == compare(model, other, [{"x": x, "attention_mask": mask}])
    assert found.rows == 3


def test_caches_are_not_filled_twice() -> None:
    """Blocks of a model that hands a cache from one to the next have the errors that they have without."""
    model, other = tiny_llama(), tiny_llama()
    with torch.no_grad():
        other.model.layers[1].self_attn.o_proj.weight.mul_(1.5)
    found = [compare(model, other, [{"input_ids": TOKENS[:1], "use_cache": kept}]) for kept in (True, False)]
    assert found[0] == found[1]
    assert found[0].lines[0].own == 0
    assert found[0].lines[1].own > 0


def test_block_without_a_partner_is_refused() -> None:
    """The paths are named."""
    with pytest.raises(UnsupportedError) as caught:
        compare(_chain(), nn.Linear(4, 5).eval(), [_rows()])
    assert [problem.module for problem in caught.value.problems] == ["blocks.0", "blocks.1", "blocks.2"]


def test_what_cannot_be_evaluated_is_refused() -> None:
    """A prepared model would learn, one in training mode is another one, and no data tell nothing."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval()
    prepared = prepare(model, GPTQConfig(), inplace=False, registry=REGISTRY)
    refusals: list[tuple[nn.Module, list[Tensor], type[TicoError]]] = [
        (prepared, [_rows()], LifecycleError),
        (copy.deepcopy(model).train(), [_rows()], CalibrationError),
        (model, [], CalibrationError),
    ]
    for other, batches, error in refusals:
        with pytest.raises(error):
            compare(model, other, batches)
    with pytest.raises(LifecycleError):
        perplexity(prepared, torch.zeros(1, 2, dtype=torch.int64))


def test_comparison_is_a_table_and_json() -> None:
    """An error of 0 has infinitely many dB; what is no number is null."""
    lines = (
        BlockError(path="0", own=0.01, accumulated=0.1),
        BlockError(path="1", own=0.0, accumulated=math.nan),
    )
    found = Comparison(lines=lines, kl=0.25, agreement=0.5, rows=4)
    assert "| 0 | 0.01 | 20.0 | 0.1 | 10.0 |" in str(found)
    assert "KL divergence 0.25 nats, same first choice in 50.00% of 4 rows" in found.to_markdown()
    told = json.loads(found.to_json())
    assert (told["kl"], told["lines"][0]["own"], told["lines"][1]["accumulated"]) == (0.25, 0.01, None)


class _Next(nn.Module):
    """Says that the next token is one higher, with a probability of 1/2, or any other of 8."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits."""
        logits = torch.zeros(*tokens.shape, 8)
        return logits.scatter(-1, ((tokens + 1) % 8)[..., None], math.log(7))


def test_perplexity_is_exp_of_the_mean_loss() -> None:
    """Tokens that follow as foreseen lose log 2, others log 14; the first of a window loses nothing."""
    windows = torch.tensor([[0, 1, 2], [3, 4, 4]])
    expected = math.exp((3 * math.log(2) + math.log(14)) / 4)
    assert perplexity(_Next().eval(), windows) == pytest.approx(expected, rel=1e-6)
    assert perplexity(_Next().eval(), windows, batch=1) == pytest.approx(expected, rel=1e-6)


def test_perplexity_of_a_language_model_needs_no_cache() -> None:
    """A model of transformers is told so; gradients and modes stay as they were."""
    model = tiny_llama()
    with unchanged(model):
        found = perplexity(model, TOKENS)
    assert 1 < found < math.inf


@pytest.mark.parametrize("wrong", [torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 3), "tokens"])
def test_windows_that_are_none_are_refused(wrong: object) -> None:
    """Windows are whole numbers, two or more in each; the number of windows a call is checked, too."""
    with pytest.raises(ConfigError):
        perplexity(_Next().eval(), wrong)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ConfigError):
        perplexity(_Next().eval(), torch.zeros(2, 3, dtype=torch.int64), batch=0)
