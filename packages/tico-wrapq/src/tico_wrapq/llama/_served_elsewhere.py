"""Classes of the family that a wrapper of torch's modules serves, or that need none."""

from __future__ import annotations

from tico_wrapq.base import register_pass_through, try_register
from tico_wrapq.llama._family import classes_of
from tico_wrapq.torch_nn import QuantUnary

_ACTIVATIONS = (
    *("SiLUActivation", "GELUActivation", "GELUTanh", "NewGELUActivation", "FastGELUActivation"),
    *("QuickGELUActivation", "ClippedGELUActivation", "AccurateGELUActivation", "MishActivation"),
    *("LaplaceActivation", "ReLUSquaredActivation", "SqrtSoftplusActivation"),
)

try_register(*(f"transformers.activations.{name}" for name in _ACTIVATIONS), *classes_of("RMSNorm"))(
    QuantUnary
)
register_pass_through("transformers.activations.LinearActivation", reason="it does not compute")

register_pass_through(*classes_of("RotaryEmbedding"), reason="it computes constants of the positions")
register_pass_through(
    *classes_of("Model"), *classes_of("ForCausalLM"), reason="it hands tensors on, and makes the mask"
)
