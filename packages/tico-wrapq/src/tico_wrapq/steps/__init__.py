"""Points for the functional steps of modules that have no wrapper, found while their own forward runs."""

from tico_wrapq.steps._kept_scores import kept_scores, moved_within_reach, with_zeros
from tico_wrapq.steps._step_points import StepPoints
from tico_wrapq.steps._stepped_class import STEPS, Stepped, why_not_stepped

__all__ = [
    "STEPS",
    "StepPoints",
    "Stepped",
    "kept_scores",
    "moved_within_reach",
    "why_not_stepped",
    "with_zeros",
]
