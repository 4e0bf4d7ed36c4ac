"""A wrapper that breaks a promise is found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
from torch import Tensor, nn

from tico_wrapq import ACT_IN, ACT_OUT, PointDeclaration, QuantModuleBase, WrapperRegistry, wrapper_entry
from tico_wrapq.base import REGISTRY
from tico_wrapq.testing import WrapperCase, WrapperPromises
from tiny_models import values


class _Double(nn.Module):
    """Twice its input."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class _Quant(QuantModuleBase):
    """A wrapper that keeps every promise."""

    kind: ClassVar[str] = "test.double"
    points: ClassVar[tuple[PointDeclaration, ...]] = (ACT_IN, ACT_OUT)
    module: nn.Module

    def adopt(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = self.point("act_out")(self.module(self.point("act_in")(x)))
        return moved


class _OtherFunction(_Quant):
    """It computes a little more than the module."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 2**-20)


class _ForgottenPoint(_Quant):
    """It has a point that no tensor goes through."""

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = self.point("act_out")(self.module(x))
        return moved


class _CalledTwice(_Quant):
    """It calls the module, and the user's hooks, once more."""

    def forward(self, x: Tensor) -> Tensor:
        self.module(x)
        return super().forward(x)


class _LateCheck(_Quant):
    """It hides the tensor that is not finite from the first point."""

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = self.point("act_out")(self.module(self.point("act_in")(x.nan_to_num())))
        return moved


CASE = WrapperCase(make=_Double, inputs=(values(0, 5, 8),))
PROMISES = WrapperPromises()

BROKEN: list[tuple[type[QuantModuleBase], Callable[[WrapperCase], None]]] = [
    (_OtherFunction, PROMISES.test_float_function_is_kept),
    (_ForgottenPoint, PROMISES.test_one_pass_reaches_every_point),
    (_CalledTwice, PROMISES.test_hooks_are_called_in_every_state),
    (_LateCheck, PROMISES.test_data_that_are_not_finite_are_refused),
]


def _register(monkeypatch: pytest.MonkeyPatch, wrapper: type[QuantModuleBase]) -> None:
    registry = WrapperRegistry((*REGISTRY.entries, wrapper_entry(_Double, wrapper)))
    for place in ("ptq._quantizer", "ptq._wrapper", "testing._wrapper_promises"):
        monkeypatch.setattr(f"tico_wrapq.{place}.REGISTRY", registry)


@pytest.mark.parametrize(("wrapper", "promise"), BROKEN, ids=lambda each: each.__name__)
def test_broken_promise_fails(
    wrapper: type[QuantModuleBase],
    promise: Callable[[WrapperCase], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The promise passes for the wrapper that keeps it and fails for the one that does not."""
    _register(monkeypatch, _Quant)
    promise(CASE)
    _register(monkeypatch, wrapper)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        promise(CASE)


def test_wrapper_that_is_not_registered_fails() -> None:
    """A module whose class no wrapper serves."""
    with pytest.raises(AssertionError):
        PROMISES.test_wrapper_is_found(CASE)
