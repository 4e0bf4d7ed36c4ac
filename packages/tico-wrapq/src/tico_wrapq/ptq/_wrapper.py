"""One module, or a tree of them, in wrappers, with its life in the caller's hands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from torch import nn

from tico_config import Found, LifecycleError, Problem, PTQConfig
from tico_modules import Edit, named_modules
from tico_quantizers import Calibration
from tico_quantizers.calibration import WatchedModule
from tico_wrapq.base import (
    REGISTRY,
    Mode,
    Passage,
    PointCalibration,
    QuantModuleBase,
    QuantPoint,
    WeightCodes,
    require_grids,
)
from tico_wrapq.ptq._step_settling import StepRefusal, idle_steps, settle_steps
from tico_wrapq.ptq._wrapping import Wrapped, wrap
from tico_wrapq.ptq._writes import InputWrites


@final
class PTQWrapper(WatchedModule):
    """`module` in wrappers, outside of any model: float at first, then watched, then quantized.

    The layers of `module` are replaced in place, as `prepare` does: give a copy to keep it.

    Raises:
        LifecycleError: `module` is in wrappers already, which are not quantized yet.
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
        _require_unwrapped(module)
        self.training = module.training
        self.mode = Mode.NO_QUANT
        self._config = config or PTQConfig()
        with Edit() as edit:
            found = wrap(module, self._config, REGISTRY.with_installed(), edit)
        self._wrapping: Wrapped | None = found
        self._wrappers = found.wrappers
        self.wrapped = found.root
        self._passage = Passage()
        refusal = StepRefusal(found, self._config)
        self._calibration = PointCalibration(self, found.wrappers.values(), self._passage, refusal)
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

    @property
    def calibration(self) -> Calibration:
        """What the points have seen so far."""
        return self._calibration

    def _points(self) -> Iterator[QuantPoint]:
        return (point for wrapper in self._wrappers.values() for _, point in wrapper.named_points())

    def enable_calibration(self) -> None:
        """Watch every point from now on, forgetting what was seen before.

        Raises:
            LifecycleError: the module is quantized already.
        """
        self._require(Mode.NO_QUANT, Mode.CALIB)
        if not self._calibration.handles:
            InputWrites(self._calibration).watch(self._wrappers)
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
        weights = WeightCodes()
        with Edit() as edit:
            if self._wrapping is not None:
                settle_steps(self._wrapping, self._config, edit)
            require_grids(self._points())
            idle = idle_steps(self._wrappers)
            for path, wrapper in self._wrappers.items():
                if path in idle:
                    idle[path].leave(edit)
                else:
                    edit.replace(self, wrapper, wrapper.finish(weights, edit))
            edit.set_attribute(self, "_wrappers", {})
            edit.set_attribute(self, "_wrapping", None)
            edit.set_attribute(self, "mode", Mode.QUANT)
        for handle in self._calibration.handles:
            handle.remove()

    def _require(self, *modes: Mode) -> None:
        if self.mode not in modes:
            expected = " or ".join(mode.name for mode in modes)
            sentence = f"its mode is {self.mode.name}, and this needs {expected}"
            remedy = "call enable_calibration() first" if Mode.CALIB in modes else None
            raise LifecycleError(
                Problem(
                    module="PTQWrapper",
                    field="mode",
                    value=self.mode.name,
                    expected=expected,
                    sentence=sentence,
                    remedy=remedy if self.mode is Mode.NO_QUANT else "make a new one of the float module",
                )
            )


def _require_unwrapped(module: nn.Module) -> None:
    """Refuse a module that holds wrappers of another `PTQWrapper`, or of a prepared model."""
    for path, part in named_modules(module):
        if isinstance(part, QuantModuleBase) and part.mode is not Mode.QUANT:
            raise LifecycleError(
                Problem(
                    module=path or type(part).__name__,
                    field="module",
                    value=Found("one in a wrapper"),
                    expected="a module that is in no wrapper yet",
                    sentence="it is in a wrapper already, which is not quantized yet",
                    remedy="quantize that one first, or take a copy that was made before",
                )
            )
