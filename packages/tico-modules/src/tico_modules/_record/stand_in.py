"""What passes from a module to the module that stands in for it: state, and answers to questions."""

from __future__ import annotations

from torch import Tensor, nn

from tico_modules._record.history import remember, runs_of
from tico_modules._storage.packed_weight import PackedWeight
from tico_modules._tree.answers import answer_for
from tico_modules._tree.module_tree import children

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def carry_over(old: nn.Module, new: nn.Module) -> None:
    """Give `new` the mode, the hooks, the runs and the answers of `old`.

    Both share the dictionaries of hooks, so that handles which the user holds remove hooks from both.
    Runs are taken over only where `new` has none of its own.
    """
    new.train(old.training)
    attributes = vars(old)
    for name in _HOOKS:
        vars(new)[name] = attributes[name]
    if not runs_of(new):
        for run in runs_of(old):
            remember((new,), run)
    answer_for(old, new)
    weight: object = getattr(old, "weight", None)
    packed = children(new).get("packed")
    if isinstance(packed, PackedWeight) and isinstance(weight, Tensor) and weight.is_floating_point():
        packed.stand_for(weight.dtype)
