"""What processes tell each other comes out as it went in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tico_config import UnsupportedError
from tico_quantizers.calibration import Ranks
from tico_quantizers.calibration._messages import Messages
from tiny_models import values


def sent(value: object, modules: dict[str, nn.Module] | None = None) -> object:
    """Return what another process makes of `value`; it knows other `modules` by the same paths."""
    there = {path: nn.Identity() for path in modules or {}}
    return Messages(there).unpack(Messages(modules or {}).pack(value))


@pytest.mark.parametrize(
    "tensor",
    [
        values(1, 3, 5),
        values(1, 6, 4).T[1:],
        values(1, 3).bfloat16(),
        values(1, 4) > 0,
        torch.tensor(3),
        torch.empty(0, 7),
        torch.tensor([float("nan"), float("-inf"), -0.0]),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_tensors_keep_their_bits(tensor: Tensor) -> None:
    """Of any type and layout, empty ones too, between values of any other kind."""
    found = sent(["before", tensor, (7, None)])
    assert isinstance(found, list)
    assert (found[0], found[2]) == ("before", (7, None))
    assert (found[1].dtype, found[1].shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(found[1].contiguous().view(-1).view(torch.uint8), _bytes(tensor))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def test_what_was_one_tensor_stays_one() -> None:
    """A mask that many calls were given takes no more memory than it did."""
    mask = values(1, 4)
    found = sent({"first": mask, "second": mask, "other": mask.clone()})
    assert isinstance(found, dict)
    assert found["first"] is found["second"]
    assert found["first"] is not found["other"]


def test_a_module_of_the_model_is_the_one_of_the_other_model() -> None:
    """It is named by its path, and not copied."""
    module = nn.Linear(2, 2)
    there = {"layers.0": nn.Identity()}
    assert Messages(there).unpack(Messages({"layers.0": module}).pack([module])) == [there["layers.0"]]


def test_what_cannot_be_sent_is_refused() -> None:
    """As an argument of the model that is bound to this process."""
    with pytest.raises(UnsupportedError, match="cannot be sent to another process") as caught:
        Messages({}).pack(lambda: None)
    assert caught.value.field == "group"


def test_work_goes_to_who_has_least() -> None:
    """The dearest part first; parts of one cost in their order, so that all ranks find the same."""
    ranks = Ranks()
    ranks.count = 2
    assert ranks.owners([1.0, 8.0, 2.0, 3.0]) == [1, 0, 1, 1]
    assert ranks.owners([5.0, 5.0]) == [0, 1]
