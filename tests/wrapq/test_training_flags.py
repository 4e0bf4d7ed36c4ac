"""Whatever stands in the place of a module has its mode."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from torch import nn

from llama_families import TOKENS, tiny
from tico.quantization import PTQConfig, convert, load_quantized, prepare, save_quantized
from tico_wrapq import PTQWrapper
from tiny_models import images, net
from wrapped_modules import CASES


def _flags(model: nn.Module) -> dict[str, bool]:
    return {path: module.training for path, module in model.named_modules(remove_duplicate=False)}


def _expected(found: dict[str, bool], before: dict[str, bool]) -> dict[str, bool]:
    """Return the flag of each module: its own, or that of the nearest one above that was there before."""
    expected = {}
    for path in found:
        known = path
        while known not in before:
            known = known.rpartition(".")[0]
        expected[path] = before[known]
    return expected


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", CASES)
def test_flags_stay(name: str, training: bool) -> None:
    """Prepared, converted, and both once more: of every wrapper, and of all that it holds."""
    case = CASES[name]
    model = case.model()
    model.get_submodule("part").train(training)
    model.training = not training
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.RReLU | nn.modules.batchnorm._NormBase):
            module.eval()  # they refuse to be calibrated otherwise
    before = _flags(model)
    for _ in range(2):
        prepare(model, case.config)
        assert (found := _flags(model)) == _expected(found, before)
        model(*case.inputs)
        convert(model)
        assert (found := _flags(model)) == _expected(found, before)


@pytest.mark.parametrize("variant", ["default", "stepwise"])
def test_models_in_evaluation_mode_stay_in_it(variant: str, tmp_path: Path) -> None:
    """A language model, and one whose batch norm is folded; in copies and files too."""
    language, other = tiny("Qwen3"), net()
    prepare(language, PTQConfig(variant=variant)), prepare(other, PTQConfig(variant=variant))
    language(TOKENS), other(images(0))
    for number, model in enumerate((convert(language), convert(other))):
        assert not any(_flags(model).values())
        assert not any(_flags(copy.deepcopy(model)).values())
        save_quantized(model, tmp_path / str(number))
    assert not any(_flags(load_quantized(tmp_path / "0")).values())
    assert not any(_flags(load_quantized(tmp_path / "1", net())).values())


@pytest.mark.parametrize("training", [False, True])
def test_a_lone_wrapper_has_the_mode_of_its_module(training: bool) -> None:
    """From the start."""
    assert set(_flags(PTQWrapper(nn.Linear(4, 2).train(training))).values()) == {training}
