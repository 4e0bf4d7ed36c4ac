"""The hooks by which transformers records outputs are taken back as a whole."""

from __future__ import annotations

import pytest
from torch import nn
from transformers.utils import output_capturing

from tico_modules import Edit, record_outputs


def _fail_with_a_hook(model: nn.Module) -> None:
    with Edit() as edit:
        record_outputs(model, edit)
        model.register_forward_hook(lambda *_: None, with_kwargs=True, always_call=True)
        raise KeyError


def test_hooks_that_are_undone_leave_no_trace() -> None:
    """Neither the hooks themselves, nor what torch notes of how they are called."""
    assert output_capturing.__name__  # what makes the edit look at hooks at all
    model = nn.Linear(2, 2)
    with pytest.raises(KeyError):
        _fail_with_a_hook(model)
    assert [*model._forward_hooks, *model._forward_hooks_with_kwargs] == []
    assert [*model._forward_hooks_always_called] == []
