"""A graph takes inputs of the formats that it was exported for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PT2EConfig, convert, prepare
from tico_config import UnsupportedError
from tico_quantizers.testing import values


def converted() -> tuple[nn.Module, Tensor]:
    """Return a graph of a layer, and what it was calibrated with."""
    model, x = nn.Sequential(nn.Linear(4, 4)).eval(), values(0, 2, 4)
    prepared = prepare(model, PT2EConfig(), args=(x,), inplace=False)
    prepared(x)
    return convert(prepared), x


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8, torch.int64, torch.bool])
def test_an_input_of_another_format_is_refused(dtype: torch.dtype) -> None:
    """The error names the input, both formats, and the call that works."""
    graph, x = converted()
    pattern = rf"the input \w+ is {dtype}, and the graph was exported for torch.float32; call it with"
    with pytest.raises(UnsupportedError, match=pattern):
        graph(x.abs().to(dtype))
