"""Mixtures of experts: each token passes through a few modules of a list only."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from expert_models import Mixture, tokens
from tico.quantization import GPTQConfig, convert, prepare
from tico_config import CalibrationError
from tico_quantizers import LayerReport, QuantizedLinear, report
from tico_quantizers.solvers import nearest
from tico_quantizers.testing import refused
from tiny_models import values


def lines(model: nn.Module) -> dict[str, LayerReport]:
    """Return the report by path."""
    return {line.path: line for line in report(model).layers}


@pytest.mark.parametrize("depth", [1, 2])
def test_experts_that_saw_too_few_tokens_are_rounded_and_named(
    depth: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether they saw a few or none, in the report and in a warning of the log; others are solved for."""
    model = nn.Sequential(*(Mixture() for _ in range(depth))).eval()
    first = model.get_submodule("0.experts.2.0")
    assert isinstance(first, nn.Linear)
    config = GPTQConfig(min_expert_tokens=10, show_progress=False)
    prepared = prepare(model, config, inplace=False)
    with torch.no_grad():
        prepared(tokens((40, 10, 9, 0)))
    with caplog.at_level(logging.WARNING, logger="tico_quantizers"):
        found = convert(prepared)
    about = lines(found)
    starved = {path for path, line in about.items() if "fewer than 10" in line.reason}
    assert {path for path in starved if path.startswith("0.")} == {
        *("0.experts.2.0", "0.experts.2.1"),
        *("0.experts.3.0", "0.experts.3.1"),
    }
    assert "read 9 tokens" in about["0.experts.2.0"].reason
    assert dict(about["0.experts.1.0"].figures)["tokens"] == 10
    assert all(any(path in message for message in caplog.messages) for path in starved)
    new = found.get_submodule("0.experts.2.0")
    assert isinstance(new, QuantizedLinear)
    assert torch.equal(new.packed.integer_codes(), nearest(first.weight, config).codes)


def test_data_for_every_expert_can_be_required() -> None:
    """Then one without is refused, as any other layer that no data have reached."""
    prepared = prepare(nn.Sequential(Mixture()).eval(), GPTQConfig(min_expert_tokens=0))
    prepared(tokens((5, 5, 5, 0)))
    with refused(prepared, CalibrationError, module="0.experts.3.0"):
        convert(prepared)


def test_layers_that_no_data_reach_are_no_experts() -> None:
    """A list of which nothing was called, and a block that was not, are refused."""
    prepared = prepare(nn.Sequential(Mixture(), Mixture()).eval(), GPTQConfig())
    with refused(prepared, CalibrationError, module="0.mixed"):
        convert(prepared)
    chain = nn.ModuleList([nn.Sequential(nn.Linear(6, 6)) for _ in range(3)])
    prepared = prepare(chain.eval(), GPTQConfig())
    hidden = values(2, 40, 6)
    for number in range(2):
        hidden = prepared.get_submodule(str(number))(hidden)
    with refused(prepared, CalibrationError, module="2.0"):
        convert(prepared)


def test_a_list_of_layers_that_all_read_the_same_has_no_experts() -> None:
    """However few tokens that were."""
    model = nn.Sequential(Mixture()).eval()
    prepared = prepare(model, GPTQConfig(show_progress=False))
    prepared(tokens((3, 3, 3, 3)))
    assert not any("rounded" in line.reason for line in lines(convert(prepared)).values())
