"""Layers that read the same tensor share one Gram matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tico_quantizers import Calibration
from tico_quantizers.calibration._forward_watch import watch_forward
from tico_quantizers.calibration._input_grams import InputGrams
from tiny_models import TOKENS, tiny_llama, values


def watched(model: nn.Module, *inputs: Tensor) -> InputGrams:
    """Return the Gram matrices of every linear layer for the given passes."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    grams = InputGrams(layers)
    calibration = Calibration(grams)
    grams.watch(calibration)
    watch_forward(model, calibration)
    with torch.no_grad():
        for x in inputs:
            model(x)
    return grams


def matrix(grams: InputGrams, path: str) -> Tensor:
    """Return the Gram matrix of what the layer at `path` has read."""
    gram = grams.gram(path)
    assert gram is not None
    return gram.parts[0].matrix()


def test_query_key_and_value_share_one_matrix() -> None:
    """So do the two projections that open an MLP; all others have their own."""
    readers = {
        frozenset(path.rsplit(".")[-1] for path in paths) for paths in watched(tiny_llama(), TOKENS)._grams
    }
    assert readers == {
        frozenset({"q_proj", "k_proj", "v_proj"}),
        frozenset({"o_proj"}),
        frozenset({"gate_proj", "up_proj"}),
        frozenset({"down_proj"}),
        frozenset({"lm_head"}),
    }


@pytest.mark.parametrize("sizes", [[1] * 1100, [511, 1, 588], [1100], [600, 500]])
def test_the_split_of_the_rows_does_not_matter(sizes: list[int]) -> None:
    """The bits are those of all rows at once, on one thread or two."""
    x = values(1, 1100, 40)
    whole = matrix(watched(nn.Sequential(nn.Linear(40, 2)), x), "0")
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    try:
        split = matrix(watched(nn.Sequential(nn.Linear(40, 2)), *torch.split(x, sizes)), "0")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(split, whole)


class Twice(nn.Module):
    """Two layers, of which the second reads what the first does, or what it has written there since."""

    def __init__(self, write: bool) -> None:
        """Make the parts."""
        super().__init__()
        self.one, self.two, self.write = nn.Linear(3, 2), nn.Linear(3, 2), write

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of what both make of `x`, which may change in between."""
        x = x * 1
        first: Tensor = self.one(x)
        second: Tensor = self.two(x.mul_(2) if self.write else x)
        return first + second


@pytest.mark.parametrize("write", [False, True])
def test_a_tensor_that_was_written_to_is_another_input(write: bool) -> None:
    """The tensor is the same, its values are not."""
    x = values(2, 7, 3)
    grams = watched(Twice(write), x)
    assert len(grams._grams) == (2 if write else 1)
    factor = 4 if write else 1
    assert torch.equal(matrix(grams, "two"), matrix(grams, "one") * factor)


def test_a_layer_called_twice_counts_twice() -> None:
    """On the same tensor, too; sums of whole numbers are exact."""
    layer = nn.Linear(3, 3)
    x = (values(3, 7, 3) * 4).round()
    once = matrix(watched(nn.Sequential(layer), x), "0")
    grams = InputGrams({"layer": layer})
    calibration = Calibration(grams)
    grams.watch(calibration)
    calibration.in_forward = True
    layer(x)
    layer(x)
    calibration.accept()
    assert torch.equal(matrix(grams, "layer"), once * 2)


def test_an_unfinished_pass_is_forgotten() -> None:
    """What was read in it does not count."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    handle = model[1].register_forward_hook(_fail)
    grams = watched(model)
    with pytest.raises(KeyboardInterrupt):
        model(values(4, 5, 3))
    handle.remove()
    with torch.no_grad():
        model(values(5, 5, 3))
    assert torch.equal(
        matrix(grams, "0"), matrix(watched(nn.Sequential(nn.Linear(3, 3)), values(5, 5, 3)), "0")
    )


def _fail(*call: object) -> None:
    raise KeyboardInterrupt


def test_a_layer_that_read_nothing_has_no_matrix() -> None:
    """It is for the caller to say that data are missing."""
    assert watched(nn.Sequential(nn.Linear(3, 3))).gram("0") is None
