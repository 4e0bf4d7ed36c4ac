"""Arithmetic of floating-point formats, for solvers and modules: elements, codes and scales.

A value of a `FloatFormat` is an element times a scale. `round_elements` finds the nearest element,
`encode_elements` and `decode_elements` go from it to its code and back; `scales_of` gives the scales of the
standard, `nearby_scales` those that a search looks at, `encode_scales` and `decode_scales` what is stored.

>>> import torch
>>> from tico_config import MXFP4
>>> scale = scales_of(torch.tensor(5.0), MXFP4())
>>> (round_elements(torch.tensor([5.0, 0.7]) / scale, MXFP4().encoding) * scale).tolist()
[4.0, 0.5]
"""

from tico_observers._affine_params import params_from_largest
from tico_observers._elements import (
    decode_elements,
    element_gaps,
    element_values,
    encode_elements,
    round_elements,
    round_elements_,
)
from tico_observers._fake_quant import require_numbers
from tico_observers._float_scales import (
    decode_scales,
    encode_scales,
    nearby_scales,
    scales_of,
    tensor_scale_of,
)

__all__ = [
    "decode_elements",
    "decode_scales",
    "element_gaps",
    "element_values",
    "encode_elements",
    "encode_scales",
    "nearby_scales",
    "params_from_largest",
    "require_numbers",
    "round_elements",
    "round_elements_",
    "scales_of",
    "tensor_scale_of",
]
