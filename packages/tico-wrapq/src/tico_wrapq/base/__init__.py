"""What every wrapper stands on: quantization points, their life, the registry, and what points have seen."""

from tico_wrapq.base._declaration import ACT_IN, ACT_OUT, PointDeclaration, Role, spec_problem
from tico_wrapq.base._mode import Mode
from tico_wrapq.base._passage import Passage
from tico_wrapq.base._picked_rows import PickedRows, moved_rows
from tico_wrapq.base._point import (
    Frozen,
    Passing,
    QuantPoint,
    State,
    Watching,
    require_data,
    require_grids,
)
from tico_wrapq.base._point_calibration import PointCalibration
from tico_wrapq.base._point_statistics import PointStatistics
from tico_wrapq.base._quant_module_base import QuantModuleBase, Resolve, WeightCodes
from tico_wrapq.base._registry import (
    REGISTRY,
    PassThroughEntry,
    RegistryEntry,
    WrapperEntry,
    WrapperRegistry,
    lookup,
    pass_through_entry,
    register,
    register_pass_through,
    try_register,
    wrapper_entry,
)
from tico_wrapq.base._weight_packing import WEIGHT, pack_weight

__all__ = [
    "ACT_IN",
    "ACT_OUT",
    "REGISTRY",
    "WEIGHT",
    "Frozen",
    "Mode",
    "PassThroughEntry",
    "Passage",
    "Passing",
    "PickedRows",
    "PointCalibration",
    "PointDeclaration",
    "PointStatistics",
    "QuantModuleBase",
    "QuantPoint",
    "RegistryEntry",
    "Resolve",
    "Role",
    "State",
    "Watching",
    "WeightCodes",
    "WrapperEntry",
    "WrapperRegistry",
    "lookup",
    "moved_rows",
    "pack_weight",
    "pass_through_entry",
    "register",
    "register_pass_through",
    "require_data",
    "require_grids",
    "spec_problem",
    "try_register",
    "wrapper_entry",
]
