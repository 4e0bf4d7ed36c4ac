"""Observers without a grid of their own: the tensor stays in float, or each block brings its scale."""

from __future__ import annotations

from abc import ABC
from typing import final

import torch
from torch import Tensor

from tico_config import (
    MXFP8,
    ConfigError,
    FloatFormat,
    Found,
    Granularity,
    NumberFormat,
    PerGroup,
    PerTensor,
    Problem,
    QScheme,
    TicoError,
    UnsupportedError,
)
from tico_config.validation import check_integer, refuse
from tico_observers._affine_params import AffineParams
from tico_observers._block_rounding import fake_quantize_blocks
from tico_observers._identity import IdentityStatistic
from tico_observers._observer import Observer, S, located
from tico_observers._range import RangeStatistic
from tico_observers._tensor_checks import OnNonfinite


class _GridlessObserver(Observer[S], ABC):
    """An observer that no scale and zero point can stand for."""

    def _grid(self) -> AffineParams:
        kind = type(self).__name__
        remedy = "call fake_quant(x), which needs no data"
        expected = "an observer that determines scale and zero point"
        raise UnsupportedError(
            Problem(
                module=self.name,
                field="params",
                value=Found(kind),
                expected=expected,
                sentence=f"{'an' if kind[0] in 'AEIO' else 'a'} {kind} has no scale and zero point",
                remedy=remedy,
            )
        )

    @property
    def params(self) -> AffineParams:
        """Refused: there is no grid.

        Raises:
            UnsupportedError: always.
        """
        return self._grid()

    def load_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        """Refuse: there is no grid to replace.

        Raises:
            UnsupportedError: always.
        """
        del scale, zero_point
        self._grid()


@final
class IdentityObserver(_GridlessObserver[IdentityStatistic]):
    """The tensor stays as it is; only the number of elements is counted.

    `compute_qparams` gives the neutral scale 1 and zero point 0, with or without data.

    >>> observer = IdentityObserver("act_in")
    >>> observer.fake_quant(torch.tensor([0.1])).item() == torch.tensor(0.1).item()
    True
    """

    def _empty(self) -> IdentityStatistic:
        return IdentityStatistic()

    def compute_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale 1 and zero point 0."""
        return torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)

    def fake_quant(self, x: Tensor) -> Tensor:
        """Return `x` itself."""
        return x


@final
class MXObserver(_GridlessObserver[RangeStatistic]):
    """Blocks along an axis take their scale from the values that come, so no data are needed.

    `dtype` is a format of blocks, by default `MXFP8`; `axis`, or a `granularity` of its blocks, says along
    which axis they run.

    What is collected, the range, is for reports.

    Raises:
        ConfigError: `dtype` is no format of blocks, or `axis` not an axis.

    >>> from tico_config import MXFP4
    >>> observer = MXObserver("act_in", MXFP4())
    >>> observer.fake_quant(torch.tensor([7.0, 1.2])).tolist()
    [6.0, 1.0]
    """

    def __init__(
        self,
        name: str = "act_in",
        dtype: NumberFormat | type[FloatFormat] | None = None,
        qscheme: QScheme | None = None,
        channel_axis: int | None = None,
        *,
        granularity: Granularity | None = None,
        on_nonfinite: OnNonfinite = "error",
        axis: int = -1,
    ) -> None:
        refuse(check_integer("axis", axis, -8, 7))
        form = MXFP8() if dtype is None else dtype
        super().__init__(
            name, form, qscheme, channel_axis, granularity=granularity, on_nonfinite=on_nonfinite
        )
        blocks = self.granularity
        if not isinstance(self.dtype, FloatFormat) or not isinstance(blocks, PerGroup):
            expected = "a format of blocks, such as MXFP4()"
            raise ConfigError(Problem(field="dtype", value=self.dtype, expected=expected))
        self.format = self.dtype
        self.axis = axis if granularity is None else blocks.axis

    def _empty(self) -> RangeStatistic:
        return RangeStatistic(granularity=PerTensor(), on_nonfinite=self.on_nonfinite)

    def fake_quant(self, x: Tensor) -> Tensor:
        """Return `x` as the format holds it.

        Raises:
            UnsupportedError: `x` is not a dense floating-point tensor.
            CalibrationError: `x` has no such axis.
        """
        try:
            return fake_quantize_blocks(x, self.format, self.axis)
        except TicoError as error:
            raise located(error, self.name) from None

    def __repr__(self) -> str:
        """Return kind, name and format."""
        return f"MXObserver({self.name!r}, {self.dtype}, axis {self.axis})"
