"""Which wrapper serves which class, and what looking it up costs."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
from torch import Tensor, nn

from tico.quantization import PTQConfig, prepare
from tico.quantization.config import ConfigError, UnsupportedError
from tico_quantizers import QuantizedEmbedding, QuantizedLinear
from tico_quantizers.testing import refused
from tico_wrapq import (
    MatMul,
    QuantConv,
    QuantConvTranspose,
    QuantEmbedding,
    QuantEmbeddingBag,
    QuantInteger,
    QuantIntegerEmbedding,
    QuantJoint,
    QuantLinear,
    QuantLlamaMLP,
    QuantModuleBase,
    QuantNorm,
    QuantUnary,
    WrapperRegistry,
    coverage,
    lookup,
    pass_through_entry,
    register,
    register_pass_through,
    try_register,
    wrapper_entry,
)
from tico_wrapq.base import REGISTRY, RegistryEntry


class _Layer(nn.Linear):
    """A class of the user's that nothing is registered for."""


class _Wrapper(QuantUnary):
    """A wrapper of the user's."""


@pytest.mark.parametrize(
    ("kind", "wrapper"),
    [
        (nn.Linear, QuantLinear),
        (nn.Embedding, QuantEmbedding),
        (nn.Conv1d, QuantConv),
        (nn.Conv3d, QuantConv),
        (nn.LayerNorm, QuantNorm),
        (nn.GELU, QuantUnary),
        (nn.ConvTranspose2d, QuantConvTranspose),
        (nn.EmbeddingBag, QuantEmbeddingBag),
        (MatMul, QuantJoint),
        (QuantizedLinear, QuantInteger),
        (QuantizedEmbedding, QuantIntegerEmbedding),
        (_Layer, QuantLinear),
        (nn.LSTM, None),
        (nn.Module, None),
    ],
)
def test_class_is_served_by_the_wrapper_of_its_nearest_base(
    kind: type[nn.Module], wrapper: type[QuantModuleBase] | None
) -> None:
    """The method resolution order decides; a class without a served base has no wrapper."""
    assert lookup(kind) is wrapper


def test_nearest_base_wins_over_a_farther_one() -> None:
    """A wrapper for a subclass goes before the one for its base."""
    registry = WrapperRegistry(
        [wrapper_entry(nn.Linear, QuantLinear), wrapper_entry(_Layer, _Wrapper)],
    )
    assert registry.lookup(_Layer) is _Wrapper
    assert registry.lookup(nn.Linear) is QuantLinear


def test_variants_are_kept_apart() -> None:
    """A class can have a wrapper for each variant; one without entry has none."""
    registry = WrapperRegistry(
        [wrapper_entry(nn.Linear, QuantLinear), wrapper_entry(nn.Linear, _Wrapper, "integer-only")],
    )
    assert registry.lookup(nn.Linear) is QuantLinear
    assert registry.lookup(nn.Linear, "integer-only") is _Wrapper
    assert registry.lookup(nn.Linear, "another") is None


def test_second_wrapper_for_a_class_is_refused() -> None:
    """Both are named; the first stays."""
    with refused(None, ConfigError, field="wrapper") as error:
        register(nn.Linear)(_Wrapper)
    assert "_Wrapper beside QuantLinear" in str(error.value)
    assert lookup(nn.Linear) is QuantLinear


def test_same_entry_twice_is_one() -> None:
    """A module that is imported again registers the same again."""
    assert register(nn.Linear)(QuantLinear) is QuantLinear


def test_class_that_is_not_installed_can_be_served() -> None:
    """The dotted path is kept until such a class comes along."""
    path = "not_installed.models.Layer"
    try_register(path, variant="absent")(_Wrapper)
    late = type("Layer", (nn.Module,), {"__module__": "not_installed.models"})
    assert lookup(late, "absent") is _Wrapper


class _Router(nn.Module):
    """A class of the user's that hands its input on."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class _OwnForward(_Router):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class _SameForward(_Router):
    """A subclass that computes the same."""


def test_class_that_passes_tensors_on_is_registered_with_its_reason() -> None:
    """Subclasses are meant too, unless they have a forward of their own."""
    registry = WrapperRegistry([pass_through_entry(_Router, "it hands on")])
    reasons = [registry.pass_reason(kind) for kind in (_Router, _SameForward, _OwnForward, nn.Linear)]
    assert reasons == ["it hands on", "it hands on", None, None]


def test_reason_is_in_the_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of such a class is left as it is, without an error."""
    entry = pass_through_entry(_Router, "it hands on")
    monkeypatch.setattr("tico_wrapq.ptq._quantizer.REGISTRY", WrapperRegistry((*REGISTRY.entries, entry)))
    model = prepare(nn.Sequential(nn.Linear(4, 2), _Router()).eval(), PTQConfig())
    assert [line.reason for line in coverage(model).lines] == ["", "it hands on"]


def test_second_reason_for_a_class_is_refused() -> None:
    """Both are named; the first stays."""
    with refused(None, ConfigError, field="reason") as error:
        register_pass_through(nn.Dropout, reason="it is noise")
    assert "'it is noise' beside 'it does nothing in evaluation mode'" in str(error.value)
    assert REGISTRY.pass_reason(nn.Dropout) == "it does nothing in evaluation mode"


def test_what_is_no_wrapper_is_refused() -> None:
    """A module class of another kind cannot be registered."""
    with refused(None, UnsupportedError, field="wrapper"):
        wrapper_entry(nn.Linear, nn.ReLU)  # type: ignore[arg-type]


def test_llama_is_served_without_being_imported() -> None:
    """Wrappers of transformers' classes wait under their names."""
    script = (
        "import sys; from torch import nn; import torch; before = set(sys.modules);"
        "from tico_wrapq import lookup; assert lookup(nn.Linear).__name__ == 'QuantLinear';"
        "print(*(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", script]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert not [name for name in loaded if name.partition(".")[0] in {"transformers", "torchao", "tqdm"}]
    assert "tico_wrapq" in loaded


def test_llama_mlp_has_its_wrapper() -> None:
    """The path that is registered is the one that transformers has."""
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    assert lookup(LlamaMLP) is QuantLlamaMLP
    assert lookup(LlamaRMSNorm) is QuantUnary


class _Alternative(QuantUnary):
    """Another wrapper of the user's."""


@pytest.fixture
def alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a second wrapper for ReLU, as the variant "alternative"."""
    entry = wrapper_entry(nn.ReLU, _Alternative, "alternative")
    monkeypatch.setattr("tico_wrapq.ptq._quantizer.REGISTRY", WrapperRegistry((*REGISTRY.entries, entry)))


@pytest.mark.usefixtures("alternative")
def test_variant_is_taken_where_there_is_one() -> None:
    """The config names it; classes without it have their default wrapper."""
    model = prepare(nn.Sequential(nn.ReLU(), nn.Tanh()).eval(), PTQConfig(variant="alternative"))
    assert [type(part) for part in model.children()] == [_Alternative, QuantUnary]


def test_unknown_variant_is_refused() -> None:
    """A typing error is told before anything is changed."""
    model = nn.Sequential(nn.ReLU())
    with refused(model, ConfigError, field="variant") as error:
        prepare(model, PTQConfig(variant="integer-onyl"))
    assert "'default'" in str(error.value)


@pytest.mark.parametrize("path", ["torch.nn.Softshrink", "torch.nn.modules.Softshrink"])
def test_any_path_of_a_class_serves(path: str) -> None:
    """A package that re-exports a class gives it a second path, which is as good as the first."""
    registry = WrapperRegistry([wrapper_entry(path, _Wrapper)])
    assert registry.lookup(nn.Softshrink) is _Wrapper
    assert registry.bases_of(_Wrapper, nn.Softshrink) == [nn.Softshrink]
    assert WrapperRegistry([pass_through_entry(path, "so")]).pass_reason(nn.Softshrink) == "so"


def test_path_of_a_class_that_is_imported_later_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry is made before the package is imported that re-exports the class."""
    entries: list[RegistryEntry] = [
        wrapper_entry("late_package.Late", _Wrapper),
        pass_through_entry("late_package.Other", "so"),
    ]
    registry = WrapperRegistry(entries)
    late, other = (type(name, (nn.Module,), {"__module__": "late_package._x"}) for name in ("Late", "Other"))
    assert (registry.lookup(late), registry.pass_reason(other)) == (None, None)
    package = ModuleType("late_package")
    vars(package).update(Late=late, Other=other)
    monkeypatch.setitem(sys.modules, "late_package", package)
    assert (registry.lookup(late), registry.pass_reason(other)) == (_Wrapper, "so")
    assert registry.lookup(type("Late", (nn.Module,), {})) is None


def test_second_path_of_a_class_is_no_second_class() -> None:
    """Another wrapper for it is refused under whatever name."""
    with refused(None, ConfigError, field="wrapper"):
        try_register("torch.nn.Linear")(_Wrapper)


@pytest.mark.parametrize(
    "path", ["torch.nn.Lienar", "torch.nn.modules.linear.Lienar", "torch.nn.functional.relu"]
)
@pytest.mark.parametrize("registering", [try_register, register])
def test_misspelt_classes_of_torch_are_refused(path: str, registering: type) -> None:
    """What torch is known to lack will never come along."""
    with refused(None, ConfigError, field="target") as error:
        registering(path)(_Wrapper)
    assert path in str(error.value)
    if "Lienar" in path:
        assert "'Linear'" in str(error.value)
