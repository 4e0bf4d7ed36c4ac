"""Algorithms that find the codes of a layer from its weight alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar, TypeVar, final

from torch import nn

from tico_config import ModuleConfig, Problem
from tico_modules import Edit, Progress
from tico_quantizers.calibration import Calibration
from tico_quantizers.conversion._conversion import Conversion
from tico_quantizers.conversion._opened_experts import open_experts
from tico_quantizers.conversion._planning import planned_layers
from tico_quantizers.layers import QuantizedWeight, Target, outline, plan_layers
from tico_quantizers.protocol import BaseQuantizer, Converted, Example, Planned

C = TypeVar("C", bound=ModuleConfig)


@final
class NoCalibration(Calibration):
    """A calibration that learns nothing, and so the same on every rank."""

    told_by_recorders: ClassVar[bool] = True


class WeightQuantizer(BaseQuantizer[C, Calibration]):
    """An algorithm that needs nothing of a layer but its weight, and no data.

    >>> from tico_config import DType, GPTQConfig
    >>> from tico_modules import Edit, LayerReport, PackedWeight
    >>> from tico_quantizers.layers import matrix, shape
    >>> class Rounding(WeightQuantizer[GPTQConfig]):
    ...     def quantize(self, target):
    ...         weight, dtype = matrix(target.layer).view(shape(target.layer)), DType.uint(target.config.bits)
    ...         packed = PackedWeight.round_to_nearest(weight, dtype, symmetric=False, group_size=None)
    ...         return QuantizedWeight(packed, LayerReport(path=target.path, module="", algorithm="rounding"))
    >>> with Edit() as edit:
    ...     model, prepared = Rounding(GPTQConfig()).start(nn.Sequential(nn.Linear(4, 2)).eval(), None, edit)
    >>> with Edit() as edit:
    ...     print(prepared.convert(model, edit)[0].bits)
    4
    """

    checks_target: ClassVar[bool] = True

    @abstractmethod
    def quantize(self, target: Target[C]) -> QuantizedWeight:
        """Return the codes of a layer, and its line of the report."""

    def problems(self, target: Target[C]) -> Iterable[Problem]:
        """Return what is wrong with a layer and the config that holds for it."""
        return ()

    def shows_progress(self) -> bool:
        """Return whether a bar is shown."""
        return True

    def outline(self, target: Target[C]) -> QuantizedWeight:
        """Return the weight that a layer is to get, without values, and its line of the report.

        Both follow from the `weight_format` of the config, unless this is overridden.
        """
        return outline(target)

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what would become of `model`."""
        model = open_experts(model, edit)
        plan = plan_layers(model, self.config, check=self.problems)
        return planned_layers(model, plan, self.outline, self.config.name, edit)

    def prepare(self, model: nn.Module, example: Example | None, edit: Edit) -> tuple[nn.Module, Calibration]:
        """Refuse what is wrong with model and config."""
        model = open_experts(model, edit)
        plan_layers(model, self.config, check=self.problems)
        return model, NoCalibration()

    def convert(self, model: nn.Module, calibration: Calibration, edit: Edit) -> Converted:
        """Replace the layers by integer ones."""
        plan, name = plan_layers(model, self.config, check=self.problems), self.config.name
        shows = self.shows_progress() and calibration.ranks.number == 0
        with Progress(name.upper(), total=len(plan.targets), show=shows) as bar:
            work = Conversion(model, plan.layers, edit, bar)
            work.put_all(self.quantize(target) for target in plan.targets.values())
        return work.converted(plan.lines_left(work.close_experts(), name))
