"""Savers of other libraries that would write integer layers into files which they read as random weights."""

from __future__ import annotations

import sys
from typing import Final

from tico_config import Found, Problem, UnsupportedError

_SAVER: Final = "save_pretrained"
_MODULES: Final = ("transformers.modeling_utils", "diffusers.models.modeling_utils")


def refuse_save_pretrained(prefix: str) -> None:
    """Refuse to be part of a state dict that ``save_pretrained`` of transformers or diffusers asks for.

    Their files hold the codes, but nothing that tells `from_pretrained` to make integer layers: it would make
    float ones with random weights. It is the callers that tell, since the method is the model's own.

    Raises:
        UnsupportedError: naming the call that works.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name != _SAVER or frame.f_globals.get("__name__") not in _MODULES:
            continue
        # With adapters in the model, transformers saves these and nothing else.
        if not getattr(frame.f_locals.get("self"), "_hf_peft_config_loaded", False):
            found, expected = Found(_SAVER), "saved by a function that knows integer layers"
            remedy = (
                "call save_quantized(model, directory), and load_quantized(directory) to load it;"
                " after `import tico.quantization.integrations`, transformers does both itself"
            )
            where = prefix.removesuffix(".")
            raise UnsupportedError(
                Problem(module=where, field="model", value=found, expected=expected, remedy=remedy)
            )
