"""watch_points: what the grids of a quantized model see, by the definition, in any order and split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import (
    GPTQConfig,
    PTQConfig,
    calibrate,
    convert,
    prepare,
    report,
    set_backend,
    watch_points,
)
from tico.quantization.config import DType, PerChannel, PerToken, affine
from tico_config import CalibrationError, LifecycleError, UnsupportedError
from tiny_models import TOKENS, tiny_llama, values

A4 = PTQConfig(activation=affine(DType.int(4)))


def converted(model: nn.Module, config: PTQConfig, x: Tensor) -> nn.Module:
    """Return `model`, calibrated on `x` and converted."""
    return convert(calibrate(prepare(model, config, inplace=False), [x], show_progress=False))


def layer(config: PTQConfig = A4, most: float = 1.0) -> nn.Module:
    """Return a layer that was calibrated on numbers up to `most`."""
    x = torch.linspace(-most, most, 16).view(4, 4)
    return converted(nn.Sequential(nn.Linear(4, 4)).eval(), config, x)


def test_counts_are_those_of_the_values() -> None:
    """Every value is in the bin between whose edges it lies, and clipped where the grid is left behind."""
    model, x = layer(), values(1, 64, 4) * 2
    found = watch_points(model, [x]).points[0]
    assert (found.path, found.values, found.masks) == ("0.act_in", x.numel(), 0)
    assert (found.smallest, found.largest) == (float(x.min()), float(x.max()))
    assert sum(each.count for each in found.bins) == x.numel()
    for each in found.bins:
        above = (x >= each.low) & (x < each.high) if each.low >= 0 else (x > each.low) & (x <= each.high)
        assert each.count == int(above.sum())
    assert found.low is not None
    assert found.high is not None
    half = (found.high - found.low) / 15 / 2
    clipped = (x.double() < found.low - half) | (x.double() > found.high + half)
    assert found.clipped == int(clipped.sum()) > 0
    assert found.share_clipped == found.clipped / x.numel()


def test_order_and_split_do_not_matter() -> None:
    """The same samples in other batches give the same counts, also those of a language model."""
    model = converted(tiny_llama(), A4, TOKENS)
    whole = watch_points(model, [TOKENS])
    assert whole == watch_points(model, [TOKENS[1:], TOKENS[:1]])


def test_padding_is_not_counted() -> None:
    """A sample with padding on its left gives what it gives without."""
    model = converted(tiny_llama(), A4, TOKENS)
    padded = torch.cat([torch.zeros_like(TOKENS[:1, :3]), TOKENS[:1]], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    found = watch_points(model, [{"input_ids": padded, "attention_mask": mask}])
    plain = {"input_ids": TOKENS[:1], "attention_mask": torch.ones_like(TOKENS[:1])}
    assert found == watch_points(model, [plain])


def test_masks_are_no_values() -> None:
    """What a mask makes of scores is counted apart, and is not clipped."""
    found = {each.path: each for each in watch_points(converted(tiny_llama(), A4, TOKENS), [TOKENS]).points}
    masked = found["model.layers.0.self_attn.masked"]
    scores = TOKENS.shape[0] * 2 * TOKENS.shape[1] ** 2
    assert masked.masks + masked.values == scores
    assert masked.masks == TOKENS.shape[0] * 2 * sum(range(TOKENS.shape[1]))
    assert masked.smallest > -100


def test_a_grid_that_follows_the_data_clips_nothing() -> None:
    """There is no share, and no range; the histogram is there."""
    found = watch_points(
        layer(PTQConfig(activation=affine(DType.int(8), granularity=PerToken()))), [values(1, 8, 4)]
    )
    point = found.points[0]
    assert (point.clipped, point.share_clipped, point.low, point.high) == (None, None, None, None)
    assert point.bins


def test_each_channel_has_its_own_ends() -> None:
    """A value counts as clipped by the grid of its channel."""
    grid = affine(DType.int(8), granularity=PerChannel(-1))
    x = torch.tensor([[1.0, 6.0, 7.0, 8.0], [-1.0, -6.0, -7.0, -8.0]])
    model = converted(nn.Sequential(nn.Linear(4, 4)).eval(), PTQConfig(activation=grid), x)
    point = watch_points(model, [torch.tensor([[5.0, 5.0, 5.0, 5.0]])]).points[0]
    assert (point.clipped, point.low) == (1, None)


def test_the_model_is_what_it_was() -> None:
    """No hook stays, the back end comes back, and so does the output."""
    model, x = layer(PTQConfig()), values(1, 8, 4)
    set_backend(model, "native")
    before = model(x)
    watch_points(model, [x])
    assert torch.equal(model(x), before)
    assert not any(each._forward_pre_hooks for each in model.modules())


def test_what_was_seen_is_told_as_json_table_and_page(tmp_path: Path) -> None:
    """All have each point; the page has pictures of those that clip most."""
    model = layer()
    found = watch_points(model, [values(1, 64, 4) * 2])
    told = json.loads(found.to_json())["points"]
    assert [each["path"] for each in told] == [each.path for each in found.points]
    assert told[0]["share_clipped"] == found.points[0].share_clipped
    assert "0.act_in" in str(found)
    page = report(model).to_html(tmp_path / "seen.html", seen=found).read_text(encoding="utf-8")
    assert 'id="seen"' in page
    assert "clipped by a grid from" in page


def test_models_without_grids_are_refused() -> None:
    """And those that are prepared, and calls without data."""
    weights = convert(calibrate(prepare(tiny_llama(), GPTQConfig(show_progress=False)), [TOKENS]))
    with pytest.raises(UnsupportedError, match="activations are quantized"):
        watch_points(weights, [TOKENS])
    with pytest.raises(LifecycleError):
        watch_points(prepare(tiny_llama(), A4), [TOKENS])
    with pytest.raises(CalibrationError, match="batches"):
        watch_points(layer(), [])
