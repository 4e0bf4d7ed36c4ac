"""One module, or a tree of them, in wrappers, with its life in the caller's hands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from torch import nn

from tico_config import LifecycleError, Problem, PTQConfig
from tico_modules import Edit
from tico_quantizers import Calibration
from tico_wrapq.base import REGISTRY, Mode, Passage, QuantPoint, WeightCodes, require_grids
from tico_wrapq.ptq._wrapping import wrap


@final
class PTQWrapper(nn.Module):
    """`module` in wrappers, outside of any model: float at first, then watched, then quantized.

    Raises:
        UnsupportedError: with `strict_wrap`, a module that has no wrapper.
        ConfigError: an override matches nothing, or two contradict each other.

    >>> import torch
    >>> layer = PTQWrapper(nn.Linear(4, 2))
    >>> layer.enable_calibration()
    >>> y = layer(torch.ones(3, 4))
    >>> layer.freeze_qparams()
    >>> layer.mode, type(layer.wrapped).__name__
    (<Mode.QUANT: 'quant'>, 'QuantizedLinear')
    """

    wrapped: nn.Module

    def __init__(self, module: nn.Module, config: PTQConfig | None = None) -> None:
        super().__init__()
        self.training = module.training
        self.mode = Mode.NO_QUANT
        with Edit() as edit:
            found = wrap(module, config or PTQConfig(), REGISTRY.with_installed(), edit)
        self._wrappers = found.wrappers
        self.wrapped = found.root
        self._passage = Passage()
        self._calibration = Calibration(self._passage)
        self._passage.calibration = self._calibration

    def forward(self, *args: object, **kwargs: object) -> object:
        """Return what the wrapped module returns; a pass that raises shows the points nothing.

        Raises:
            LifecycleError: another thread has called the module since, while it is watched.
            NumericsError: a point that watches saw NaN or infinity.
        """
        if self.mode is not Mode.CALIB:
            return self._output(*args, **kwargs)
        self._calibration.begin([], args, kwargs)
        output = self._output(*args, **kwargs)
        self._calibration.end(args, kwargs, output)
        return output

    def _output(self, *args: object, **kwargs: object) -> object:
        output: object = self.wrapped(*args, **kwargs)
        return output

    def _points(self) -> Iterator[QuantPoint]:
        return (point for wrapper in self._wrappers.values() for _, point in wrapper.named_points())

    def enable_calibration(self) -> None:
        """Watch every point from now on, forgetting what was seen before.

        Raises:
            LifecycleError: the module is quantized already.
        """
        self._require(Mode.NO_QUANT, Mode.CALIB)
        for wrapper in self._wrappers.values():
            wrapper.enable_calibration(self._passage)
        self.mode = Mode.CALIB

    def freeze_qparams(self) -> None:
        """Put integers in the place of weights and fix every grid.

        Raises:
            LifecycleError: the module was not watched.
            CalibrationError: points saw no data; nothing was changed.
        """
        self._require(Mode.CALIB)
        require_grids(self._points())
        weights = WeightCodes()
        with Edit() as edit:
            for wrapper in self._wrappers.values():
                edit.replace(self, wrapper, wrapper.finish(weights, edit))
            edit.set_attribute(self, "_wrappers", {})
            edit.set_attribute(self, "mode", Mode.QUANT)

    def _require(self, *modes: Mode) -> None:
        if self.mode not in modes:
            expected = " or ".join(mode.name for mode in modes)
            raise LifecycleError(
                Problem(module="PTQWrapper", field="mode", value=self.mode.name, expected=expected)
            )
