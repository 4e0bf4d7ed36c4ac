"""What a type checker makes of the public API.

Every `assert_type` is checked by mypy; every ``type: ignore`` marks a mistake that mypy has to find, since an
ignore that is not needed is an error.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

from tico.quantization import GPTQConfig, PTQConfig, Report, convert, load_quantized, prepare, report
from tico.quantization.config import (
    BaseConfig,
    ConfigError,
    DType,
    QuantSpec,
    Resolution,
    TicoError,
    affine,
    from_json,
    to_json,
)
from tico_observers import AffineParams, MinMaxObserver, RangeStatistic
from tico_quantizers import BaseQuantizer, GPTQQuantizer, QuantizerEntry, quantizer_entry
from tico_quantizers.algorithms.gptq import Solution, quantize_weight
from tico_quantizers.conversion import BlockCalibration


def test_facade_takes_and_gives_modules(tmp_path: Path) -> None:
    """`prepare` and `convert` give modules, `report` a report."""
    model = prepare(nn.Sequential(nn.Linear(4, 4)).eval(), PTQConfig())
    assert_type(model, nn.Module)
    model(torch.ones(1, 4))
    assert_type(convert(model), nn.Module)
    assert_type(report(model), Report)
    with pytest.raises(FileNotFoundError):
        assert_type(load_quantized(tmp_path), nn.Module)


def test_facade_refuses_what_is_no_config() -> None:
    """A dict is no config, and a list is no tuple of arguments."""
    with pytest.raises(ConfigError):
        prepare(nn.Linear(4, 4), {"bits": 4})  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        prepare(nn.Linear(4, 4), PTQConfig(), args=[torch.ones(1)])  # type: ignore[arg-type]


def test_configs_are_typed_values() -> None:
    """Fields have types; resolving a path gives a spec with its origin."""
    config = GPTQConfig(bits=3)
    assert_type(config.bits, int)
    assert_type(config.group_size, int | None)
    assert_type(config.resolve("fc"), Resolution[GPTQConfig])
    assert_type(PTQConfig().resolve("fc.weight"), Resolution[QuantSpec])
    assert_type(from_json(to_json(config)), BaseConfig)
    assert_type(affine(DType.int(8)), QuantSpec)


def test_configs_refuse_wrong_types() -> None:
    """Positional fields, unknown fields and wrong types are errors to the checker and at run time."""
    with pytest.raises(TypeError):
        GPTQConfig(4)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        GPTQConfig(bit=4)  # type: ignore[call-arg]
    with pytest.raises(ConfigError):
        GPTQConfig(bits="4")  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        GPTQConfig().bits = 3  # type: ignore[misc]


def test_observers_are_typed() -> None:
    """An observer knows its statistic and gives tensors."""
    observer = MinMaxObserver("x", DType.uint(8))
    observer.collect(torch.ones(3))
    assert_type(observer.statistics, RangeStatistic)
    assert_type(observer.compute_qparams(), tuple[Tensor, Tensor])
    assert_type(observer.params, AffineParams)
    assert_type(observer.fake_quant(torch.ones(3)), Tensor)


def test_solver_is_typed() -> None:
    """The solver takes keywords and gives a solution."""
    solution = quantize_weight(torch.eye(2), torch.eye(2), bits=4)
    assert_type(solution, Solution)
    assert_type(solution.loss, float)
    with pytest.raises(TypeError):
        quantize_weight(torch.eye(2), torch.eye(2), 4)  # type: ignore[call-arg]


def test_entry_ties_a_config_to_its_quantizer() -> None:
    """An entry that names another config than its quantizer takes is an error to the checker."""
    assert_type(quantizer_entry(GPTQConfig, GPTQQuantizer), QuantizerEntry)
    assert_type(GPTQQuantizer(GPTQConfig()).config, GPTQConfig)
    quantizer: BaseQuantizer[GPTQConfig, BlockCalibration[GPTQConfig]] = GPTQQuantizer(GPTQConfig())
    assert isinstance(quantizer, GPTQQuantizer)
    quantizer_entry(PTQConfig, GPTQQuantizer)  # type: ignore[arg-type]


def test_errors_say_what_they_are_about() -> None:
    """An error's attributes are typed, and it can be caught as the builtin it is."""
    with pytest.raises(ValueError, match="bits") as caught:
        GPTQConfig(bits=1)
    assert isinstance(caught.value, TicoError)
    assert_type(caught.value.module, str | None)
    assert_type(caught.value.field, str | None)
