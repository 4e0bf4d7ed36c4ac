"""Which layer gets how many bits: what each choice costs, and the choices that cost least."""

from tico_quantizers.analysis._analysis import Analysis, AnalysisLine, CurvePoint
from tico_quantizers.analysis._analyze import CANDIDATES, analyze
from tico_quantizers.analysis._budget import Budget
from tico_quantizers.analysis._choice import choose

__all__ = ["CANDIDATES", "Analysis", "AnalysisLine", "Budget", "CurvePoint", "analyze", "choose"]
