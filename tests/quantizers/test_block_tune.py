"""Learned rounding of a model: each block comes nearer to the float one, or stays where it starts."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn

from tico_config import (
    FP8,
    MXFP4,
    NVFP4,
    BlockTuneConfig,
    CalibrationError,
    ConfigError,
    FloatFormat,
    GPTQConfig,
    UnsupportedError,
)
from tico_modules import QuantizedConv2d, QuantizedLinear, Report, report
from tico_quantizers import BlockTuneQuantizer, GPTQQuantizer, Registry, quantizer_entry
from tico_quantizers.lifecycle import convert, load_calibration, prepare, save_calibration
from tico_quantizers.testing import ConvNet, ResidualBlock, same_tensors, seeded, tensors_of, values

REGISTRY = Registry(
    [quantizer_entry(BlockTuneConfig, BlockTuneQuantizer), quantizer_entry(GPTQConfig, GPTQQuantizer)]
)
CONFIG = BlockTuneConfig(bits=3, show_progress=False)
BEFORE, AFTER = "error of the block at its start", "error of the block"


def blocks() -> nn.Module:
    """Return two blocks."""
    return seeded(lambda: nn.Sequential(ResidualBlock(), ResidualBlock()))


def tuned(model: nn.Module, config: BlockTuneConfig | GPTQConfig = CONFIG, *batches: Tensor) -> nn.Module:
    """Return a model, converted after it has run `batches`, by default 16 sequences."""
    prepared = prepare(model, config, registry=REGISTRY)
    for batch in batches or (values(0, 16, 6, 8),):
        prepared(batch)
    return convert(prepared)


def figures(found: Report, path: str) -> dict[str, float]:
    """Return the figures of one line of a report."""
    return dict(next(line.figures for line in found.layers if line.path == path))


def reason(model: nn.Module, path: str) -> str:
    """Return what the report says of a layer besides figures."""
    return next(line.reason for line in report(model).layers if line.path == path)


def test_every_block_comes_nearer_to_the_float_one() -> None:
    """Also on sequences that were no part of the calibration, and both blocks together."""
    fresh, model = values(7, 32, 6, 8), tuned(blocks())
    start = tuned(blocks(), attrs.evolve(CONFIG, steps=0))
    expected = blocks()(fresh)
    for path in ("0.first", "1.second"):
        found = figures(report(model), path)
        assert 0 < found[AFTER] < found[BEFORE]
    assert (model(fresh) - expected).norm() < (start(fresh) - expected).norm()


def test_without_steps_it_is_gptq() -> None:
    """The start is what GPTQ gives with its defaults."""
    for size in (None, 4):
        none = attrs.evolve(CONFIG, steps=0, group_size=size)
        gptq = GPTQConfig(bits=3, group_size=size, show_progress=False)
        found, expected = tuned(blocks(), none), tuned(blocks(), gptq)
        assert same_tensors(tensors_of(found), tensors_of(expected))
        assert "stays at its start" in reason(found, "0.first")


@pytest.mark.parametrize("dtype", [MXFP4(), NVFP4(), FP8()], ids=str)
def test_elements_start_from_gptq_and_come_nearer(dtype: FloatFormat) -> None:
    """Without steps it is GPTQ, and steps bring blocks nearer to the float one, or keep the start."""
    start = tuned(blocks(), BlockTuneConfig(dtype=dtype, steps=0, show_progress=False))
    gptq = tuned(blocks(), GPTQConfig(dtype=dtype, show_progress=False))
    assert same_tensors(tensors_of(start), tensors_of(gptq))
    longer = BlockTuneConfig(dtype=dtype, steps=96, rate=0.05, show_progress=False)
    model = tuned(blocks(), longer)
    found = [figures(report(model), path) for path in ("0.first", "1.second")]
    assert all(0 < each[AFTER] <= each[BEFORE] for each in found)
    assert any(each[AFTER] < each[BEFORE] for each in found)
    layer = model.get_submodule("0.first")
    assert isinstance(layer, QuantizedLinear)
    assert layer.packed.dtype == dtype


def test_a_format_says_bits_and_blocks() -> None:
    """Both together are refused, and a grouped convolution can't share the scale of NVFP4's tensor."""
    with pytest.raises(ConfigError, match="2 problems"):
        BlockTuneConfig(dtype=MXFP4(), bits=3, group_size=8)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ConfigError, match="different scales of the tensor in nvfp4"):
        prepare(model, BlockTuneConfig(dtype=NVFP4(), show_progress=False), registry=REGISTRY)


def test_a_start_may_be_rounded_to_nearest() -> None:
    """It is further off than that of GPTQ, and moves too."""
    nearest = attrs.evolve(CONFIG, start="nearest")
    found = figures(report(tuned(blocks(), nearest)), "0.first")
    assert found[BEFORE] > figures(report(tuned(blocks())), "0.first")[BEFORE]
    assert found[AFTER] < found[BEFORE]


def test_overrides_hold_layer_by_layer() -> None:
    """Bits, groups and the start may differ within a block; what is left out stays float."""
    changes = {"0.first": {"bits": 8, "group_size": 4}, "1.first": {"start": "nearest", "symmetric": True}}
    model = tuned(blocks(), attrs.evolve(CONFIG, overrides=changes))
    layers = dict(model.named_modules())
    found = layers["0.first"]
    assert isinstance(found, QuantizedLinear)
    assert (found.bits, found.group_size) == (8, 4)
    other = layers["1.first"]
    assert isinstance(other, QuantizedLinear)
    assert (other.bits, other.packed.dtype.signed) == (3, True)


def test_other_seeds_hold_other_sequences_out() -> None:
    """The seed is what decides, not the state of torch's generator."""
    torch.manual_seed(1)
    one = tuned(blocks())
    torch.manual_seed(2)
    same, other = tuned(blocks()), tuned(blocks(), attrs.evolve(CONFIG, seed=1))
    assert same_tensors(tensors_of(one), tensors_of(same))
    assert figures(report(one), "0.first")[BEFORE] != figures(report(other), "0.first")[BEFORE]


def test_one_sequence_is_too_little() -> None:
    """None could be held out then, and the model stays as it was."""
    model = prepare(blocks(), CONFIG, registry=REGISTRY)
    model(values(0, 1, 6, 8))
    with pytest.raises(CalibrationError, match="at least two samples"):
        convert(model)
    model(values(1, 1, 6, 8))
    assert isinstance(convert(model).get_submodule("0.first"), QuantizedLinear)


class _Hidden(nn.Module):
    """A block that computes without derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ResidualBlock()

    def forward(self, x: Tensor) -> Tensor:
        """Return what the inner block does."""
        with torch.no_grad():
            found: Tensor = self.inner(x)
        return found


def test_a_block_without_derivatives_stays_at_its_start() -> None:
    """The report says why."""
    model = tuned(seeded(lambda: nn.Sequential(_Hidden(), _Hidden())))
    assert reason(model, "0.inner.first") == "its block has no derivatives, so it stays at its start"


class _Overflowing(nn.Module):
    """A block whose output is beyond the finite numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ResidualBlock()

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of what the inner block gives and the largest number."""
        found: Tensor = self.inner(x) * torch.finfo(torch.float32).max
        return found.nan_to_num(0.0, 1e30, -1e30)


def test_a_block_whose_error_is_not_finite_stays_at_its_start() -> None:
    """The squares of its outputs are infinite, which does not tell one step from another."""
    model = tuned(seeded(_Overflowing))
    assert reason(model, "inner.first") == "what its block gives is not finite, so it stays at its start"


class _Mixing(nn.Module):
    """A block in which samples of a batch depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ResidualBlock()

    def forward(self, x: Tensor) -> Tensor:
        """Return what the inner block does for the distance from the mean of the batch."""
        found: Tensor = self.inner(x - x.mean(0))
        return found


def test_samples_that_depend_on_each_other_stay_together() -> None:
    """A batch is then one sample, so that two of them are needed, and sixteen sequences are not enough."""

    def mixing() -> nn.Module:
        return seeded(lambda: nn.Sequential(_Mixing(), _Mixing()))

    with pytest.raises(CalibrationError, match="at least two samples"):
        tuned(mixing())
    model = tuned(mixing(), CONFIG, values(0, 16, 6, 8), values(1, 16, 6, 8))
    assert AFTER in figures(report(model), "0.inner.first")


class _Ends(nn.Module):
    """Blocks between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.Sequential(ResidualBlock(), ResidualBlock())

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the last block."""
        found: Tensor = self.blocks(self.first(x))
        return found


def test_layers_outside_of_blocks_stay_at_their_start() -> None:
    """Nothing of the float model is known that they could be compared with; the report says so."""
    model = tuned(seeded(_Ends))
    assert "it is in no block" in reason(model, "first")
    assert AFTER not in figures(report(model), "first")


def test_a_model_without_blocks_is_one() -> None:
    """Convolutions, too, are tuned towards what the whole model gives."""
    model = tuned(seeded(ConvNet), CONFIG, values(0, 16, 2, 4, 4))
    assert isinstance(model.get_submodule("conv"), QuantizedConv2d)
    found = figures(report(model), "conv")
    assert found == figures(report(model), "conv") | {AFTER: figures(report(model), "head")[AFTER]}
    assert found[AFTER] < found[BEFORE]


def test_integers_are_not_moved_again() -> None:
    """Layers that were integers already start anew from GPTQ, and the report says that they stay there."""
    model = tuned(tuned(blocks()))
    assert "none of a float layer" in reason(model, "0.first")


def test_a_calibration_file_is_refused(tmp_path: Path) -> None:
    """Steps need the data themselves; the file may serve GPTQ."""
    source = prepare(blocks(), CONFIG, registry=REGISTRY)
    source(values(0, 16, 6, 8))
    save_calibration(source, tmp_path / "seen")
    with pytest.raises(UnsupportedError, match="needs the data themselves"):
        load_calibration(prepare(blocks(), CONFIG, registry=REGISTRY), tmp_path / "seen")
    gptq = prepare(blocks(), GPTQConfig(show_progress=False, token_weights="uniform"), registry=REGISTRY)
    load_calibration(gptq, tmp_path / "seen")
    assert isinstance(convert(gptq).get_submodule("0.first"), QuantizedLinear)


def test_an_interrupted_conversion_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Blocks that were finished before it was interrupted are not tuned again."""
    config, whole = attrs.evolve(CONFIG, checkpoint_dir=str(tmp_path)), tuned(blocks())
    prepared = prepare(blocks(), config, registry=REGISTRY)
    prepared(values(0, 16, 6, 8))
    convert(prepared)
    (folder,) = tmp_path.iterdir()
    (folder / "block-00001.safetensors").unlink()
    again = tuned(blocks(), config)
    assert same_tensors(tensors_of(again), tensors_of(whole))
    # Their configs differ in the folder.
    assert report(again).without_times().layers == report(whole).without_times().layers
