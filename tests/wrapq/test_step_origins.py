"""What no function of torch has made, what only decides, and what a mask will leave out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, prepare, report
from tico_config import DType, UnsupportedError, affine, no_quant
from tico_quantizers.testing import seeded, values
from tico_wrapq import PTQWrapper, coverage, load_calibration, save_calibration

A16 = PTQConfig(activation=affine(DType.int(16)))


class Numpy(nn.Module):
    """Doubles its input by numpy."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class says, times three."""
        return torch.from_numpy(x.numpy() * 2) * 3.0


class Extension(nn.Module):
    """Doubles its input where torch tells nobody, as an extension in C++ does."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class says, times three."""
        with torch._C.DisableTorchFunction():
            doubled = x * 2
        return (doubled * 3.0).exp() + x


class Constants(nn.Module):
    """Holds tensors in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.several = torch.randn(8), [torch.randn(8)]
        self.register_buffer("buffer", torch.randn(8))
        self.buffer: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return a sum with functions of all of them."""
        return x + (self.plain * 2.0 + self.several[0].exp() + self.buffer.cos())


class Places(nn.Module):
    """Puts coordinates into buckets, and reads the places of the largest alone."""

    def __init__(self) -> None:
        super().__init__()
        self.book = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return a sum that depends on all of them (samples, 8)."""
        place = torch.bucketize((x * 0.5 + 0.25).reshape(-1), torch.linspace(0.0, 1.0, 5)).view(x.shape)
        largest = torch.topk(x * 7.0, 2).indices
        nearest = torch.cdist(x, self.book).argmin(-1)
        return x.gather(-1, largest)[..., :1] + place + self.book[nearest] * 2.0


class Both(nn.Module):
    """Compares one result, and computes with it in some batches only."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class says."""
        y = x * 2.0
        positive = (y > 0).any(-1, keepdim=True)
        return torch.where(positive, x, y) if len(x) > 2 else torch.where(positive, x, 0.0)


def calibrated(model: nn.Module, config: PTQConfig = A16, *shape: int) -> nn.Module:
    """Return `model`, prepared, after one batch of `shape`."""
    prepared = prepare(model.eval(), config)
    with torch.no_grad():
        prepared(values(0, *(shape or (4, 8))))
    return prepared


def notes(model: nn.Module) -> str:
    """Return what the report says of the model's own forward."""
    return report(model).layers[0].reason


@pytest.mark.parametrize(("kind", "steps"), [(Numpy, ("numpy_0", "mul_0")), (Extension, ("mul_1",))])
def test_the_first_forward_refuses_data_of_unknown_origin(
    kind: Callable[[], nn.Module], steps: tuple[str, ...]
) -> None:
    """All at once, by the names of the steps; `convert` does too."""
    prepared = prepare(kind().eval(), A16)
    for run in (lambda: prepared(values(0, 4, 8)), lambda: convert(prepared)):
        with pytest.raises(UnsupportedError) as caught:
            run()
        assert all(f"{step}: it " in str(caught.value) for step in steps)
    wrapper = PTQWrapper(kind().eval(), A16)
    wrapper.enable_calibration()
    with pytest.raises(UnsupportedError, match=steps[-1]):
        wrapper(values(0, 4, 8))


def test_data_of_unknown_origin_have_points_and_are_named() -> None:
    """Where they are not refused, as everything that is computed from them has."""
    model = convert(calibrated(Extension(), attrs.evolve(A16, strict_wrap=False)))
    assert [name.split()[0] for name in coverage(model).lines[0].points] == ["add_0", "exp_0", "mul_1"]
    assert "what mul_1 reads was made by no function of torch" in notes(model)
    asked = attrs.evolve(A16, overrides={"mul_1": no_quant()})
    assert len(coverage(convert(calibrated(Extension(), asked))).lines[0].points) == 2


def test_what_modules_hold_are_constants() -> None:
    """Parameters, buffers, and tensors in attributes and lists of them."""
    points = coverage(convert(calibrated(seeded(Constants)))).lines[0].points
    assert [name.split()[0] for name in points] == ["add_0"]


def test_what_only_decides_has_no_grid(tmp_path: Path) -> None:
    """With eight bits the decisions are those of the float model; a calibration file knows of them."""
    config = PTQConfig()
    prepared = calibrated(seeded(Places), config, 64, 8)
    save_calibration(prepared, tmp_path / "seen")
    other = prepare(seeded(Places), config)
    load_calibration(other, tmp_path / "seen")
    for model in (convert(prepared), convert(other)):
        for step in ("mul_0", "add_0", "mul_1", "cdist_0"):
            assert f"{step} stays float: only comparisons and indices read it" in notes(model)
        points = [name.split()[0] for name in coverage(model).lines[0].points]
        assert points == ["book", "add_1", "add_2", "mul_2"]


def test_an_override_gives_what_only_decides_a_grid() -> None:
    """As it was asked for by name."""
    asked = attrs.evolve(A16, overrides={"mul_1": {"dtype": DType.int(8)}})
    points = coverage(convert(calibrated(seeded(Places), asked))).lines[0].points
    assert "mul_1 int8 static" in points


@pytest.mark.parametrize("order", [(2, 4), (4, 2)])
def test_one_batch_that_computes_with_a_number_gives_it_a_grid(order: tuple[int, int]) -> None:
    """Whichever batch comes first."""
    prepared = prepare(Both().eval(), A16)
    for count in order:
        prepared(values(0, count, 8))
    assert "mul_0 int16 static" in coverage(convert(prepared)).lines[0].points
