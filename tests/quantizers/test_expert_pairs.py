"""Experts that make up for the errors of earlier layers, for the tokens that go to them in both models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expert_models import Mixture, tokens
from fused_models import experts_of, fused_model, token_ids
from gptq_models import require_same_codes
from tico.quantization import GPTQConfig, convert, prepare, report
from tico_config import no_quant
from tico_modules import PackedWeight, QuantizedLinear
from tico_quantizers.calibration._block_driver import UNPAIRED
from tico_quantizers.layers import fused_experts
from tico_quantizers.solvers._gptq import solve
from tico_quantizers.testing import seeded

CONFIG: Final = GPTQConfig(
    bits=2, asymmetric=0.5, token_weights="uniform", min_expert_tokens=1, show_progress=False
)


@attrs.frozen(eq=False)
class Read:
    """What a layer reads of a token in one model, by the token's number."""

    rows: dict[int, Tensor]


def expected_codes(weight: Tensor, own: Read, true: Read, config: GPTQConfig = CONFIG) -> Tensor:
    """Return the codes by definition: token by token, of which only those in both models drift."""
    size = weight.shape[1]
    gram, cross = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for number, row in own.rows.items():
        x = row.double()
        gram += torch.outer(x, x)
        if number in true.rows:
            cross += torch.outer(true.rows[number].double() - x, x)
    plain = GPTQConfig(bits=config.bits)
    return solve(weight, gram, plain, cross_gram=config.asymmetric * cross).codes


def calibrated(model: nn.Module, x: Tensor, config: GPTQConfig = CONFIG) -> nn.Module:
    """Return a copy of `model` after GPTQ on one batch."""
    prepared = prepare(model, config, inplace=False)
    with torch.no_grad():
        prepared(x)
    return convert(prepared)


def read_in_mixture(block: Mixture, x: Tensor) -> dict[str, Read]:
    """Return what each layer of the experts reads of the tokens `x`, one token at a time."""
    found: dict[str, Read] = {}
    for number, row in enumerate(x):
        chosen = int(row[0] > 0) * 2 + int(row[1] > 0)
        first = block.get_submodule(f"experts.{chosen}.0")
        found.setdefault(f"experts.{chosen}.0", Read({})).rows[number] = row
        found.setdefault(f"experts.{chosen}.1", Read({})).rows[number] = first(row)
    return found


def mixture(number: int, model: nn.Module) -> Mixture:
    """Return a block of a model of mixtures."""
    block = model.get_submodule(str(number))
    assert isinstance(block, Mixture)
    return block


def test_experts_in_a_list_are_paired_token_by_token() -> None:
    """Though other tokens go to them in the float model."""
    model, x = seeded(lambda: nn.Sequential(Mixture(), Mixture())), tokens((30, 25, 20, 15))
    with torch.no_grad():
        model.get_submodule("0.mixed").get_parameter("weight").mul_(4)
        found = calibrated(model, x)
        own = read_in_mixture(mixture(1, model), mixture(0, found)(x))
        true = read_in_mixture(mixture(1, model), mixture(0, model)(x))
        moved = [path for path in own if own[path].rows.keys() != true[path].rows.keys()]
        assert len(moved) >= 4
        for path, read in own.items():
            layer = found.get_submodule(f"1.{path}")
            assert isinstance(layer, QuantizedLinear)
            weight = model.get_submodule(f"1.{path}").get_parameter("weight")
            require_same_codes(layer.packed.integer_codes(), expected_codes(weight, read, true[path]))
    assert not any(UNPAIRED in line.reason for line in report(found).layers)


def gates(experts: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what an expert does between its two products."""
    own: object = getattr(experts, "_apply_gate", None)
    if callable(own):
        return own

    def gated(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, -1)
        return F.silu(gate) * up

    return gated


def read_by_experts(model: nn.Module, x: Tensor, experts: nn.Module, path: str) -> dict[str, Read]:
    """Return what the `experts` at `path` read when `model` is run, one token of each expert at a time.

    The weights are those of the float `experts`, as what a layer reads is found before its block is changed.
    """
    given: list[tuple[Tensor, ...]] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda module, args: given.append(args))
    model(x)
    handle.remove()
    about = fused_experts(experts)
    assert about is not None
    found: dict[str, Read] = {}
    for token, expert, row in routed(given[0], about.count):
        weight = experts.get_parameter("gate_up_proj")[expert]
        bias = dict(experts.named_parameters()).get("gate_up_proj_bias")
        both = row @ (weight if about.transposed["gate_up_proj"] else weight.T)
        both = both if bias is None else both + bias[expert]
        found.setdefault(f"gate_up_proj.{expert}", Read({})).rows[token] = row
        found.setdefault(f"down_proj.{expert}", Read({})).rows[token] = gates(experts)(both)
    return found


def routed(given: tuple[Tensor, ...], count: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield number, expert and values of each token that goes to an expert."""
    if len(given) == 1:
        for place, row in enumerate(given[0]):
            if bool(row.any()):
                yield place, place // (len(given[0]) // count), row
    else:
        for number, chosen in enumerate(given[1].tolist()):
            for expert in chosen:
                yield number, expert, given[0][number]


@pytest.mark.parametrize("name", ["mixtral", "qwen3", "gpt_oss", "llama4"])
def test_experts_in_one_parameter_are_paired_token_by_token(name: str) -> None:
    """As far as a token goes to an expert in both models; the others count in the Hessian alone."""
    model, x = fused_model(name), token_ids(rows=10)
    path, experts = experts_of(model)
    # Attention of the second layer stays float, so that what comes before its experts is the first layer.
    config = attrs.evolve(CONFIG, overrides={"model.layers.1.self_attn": no_quant()})
    with torch.no_grad():
        found = calibrated(model, x, config)
        changed = copy.deepcopy(found)
        own = read_by_experts(changed, x, experts, path)
        true = read_by_experts(model, x, experts, path)
        moved = [each for each in own if own[each].rows.keys() != true[each].rows.keys()]
        assert moved
        for place, read in own.items():
            packed = found.get_submodule(f"{path}.{place}")
            assert isinstance(packed, PackedWeight)
            stack, number = place.split(".")
            weight = experts.get_parameter(stack)[int(number)]
            about = fused_experts(experts)
            assert about is not None
            matrix = weight.T if about.transposed[stack] else weight
            require_same_codes(packed.integer_codes(), expected_codes(matrix, read, true[place]))
    assert not any(UNPAIRED in line.reason for line in report(found).layers)


class Pooling(nn.Module):
    """Has a layer that reads those tokens whose first value is above the mean, doubled."""

    def __init__(self) -> None:
        """Make the parts."""
        super().__init__()
        self.mixed = nn.Linear(6, 6)
        self.doubled = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens (rows, 6)."""
        x = self.mixed(x)
        rows = (x[:, 0] > x[:, 0].mean()).nonzero()[:, 0]
        return x.index_add(0, rows, self.doubled(2 * x[rows]))


def test_where_tokens_cannot_be_told_nothing_is_made_up_for() -> None:
    """The codes are those without it, and the report says so; other layers are paired as before."""
    model, x = seeded(lambda: nn.Sequential(Pooling(), Pooling())), tokens((30, 25, 20, 15))
    found = calibrated(model, x)
    lines = {line.path: line.reason for line in report(found).layers}
    assert [path for path, reason in lines.items() if UNPAIRED in reason] == ["0.doubled", "1.doubled"]
    with torch.no_grad():
        own, true = (part.get_submodule("0")(x) for part in (found, model))
        weight = model.get_submodule("1.mixed").get_parameter("weight")
        before, after = (Read(dict(enumerate(rows))) for rows in (true, own))
        layer = found.get_submodule("1.mixed")
        assert isinstance(layer, QuantizedLinear)
        require_same_codes(layer.packed.integer_codes(), expected_codes(weight, after, before))
        mixed = model.get_submodule("1.mixed")(own)
        rows = 2 * mixed[mixed[:, 0] > mixed[:, 0].mean()]
        picked = Read(dict(enumerate(rows)))
        weight = model.get_submodule("1.doubled").get_parameter("weight")
        layer = found.get_submodule("1.doubled")
        assert isinstance(layer, QuantizedLinear)
        require_same_codes(layer.packed.integer_codes(), expected_codes(weight, picked, Read({})))
