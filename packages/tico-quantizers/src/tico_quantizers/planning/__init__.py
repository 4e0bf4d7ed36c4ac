"""What configs will do to a model, known before there are data: values, a table, and bytes."""

from tico_modules import bytes_by_line, total_bytes
from tico_quantizers.planning._agreement import differences
from tico_quantizers.planning._plan import Plan
from tico_quantizers.planning._plan_line import PlanLine

__all__ = ["Plan", "PlanLine", "bytes_by_line", "differences", "total_bytes"]
