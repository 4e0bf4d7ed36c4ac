"""What a saved model computes besides its tensors: a file of other modules, settings or values is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from artifact_folder import MANIFEST, rewrite, rewrite_with
from references import same_bits
from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico_config import ArtifactError, TicoError, UnsupportedError
from tico_modules import load_quantized, named_modules, report, save_quantized
from tico_quantizers.testing import unchanged
from tiny_models import logits, tiny_llama, values

GPTQ, PTQ = GPTQConfig(show_progress=False), PTQConfig(strict_wrap=False)
X = values(0, 2, 4, 6, 6)


class Scale(nn.Module):
    """Doubles; stands for a module of somebody's own."""

    def forward(self, x: Tensor) -> Tensor:
        """Return twice `x`."""
        return 2 * x


class Twice(Scale):
    """The same under another name."""


def _net(**changed: nn.Module) -> nn.Module:
    """Return a net of modules that a conversion leaves float or replaces, some of them `changed`."""
    parts: dict[str, nn.Module] = {
        "conv": nn.Conv2d(4, 4, 3, padding=1),
        "norm": nn.GroupNorm(2, 4),
        "act": nn.LeakyReLU(0.1),
        "drop": nn.Dropout(0.1),
        "pool": nn.MaxPool2d(2),
        "up": nn.ConvTranspose2d(4, 2, 2, stride=2, output_padding=1),
        "own": Scale(),
    }
    net = nn.Sequential()
    for name, module in {**parts, **changed}.items():
        net.add_module(name, module)
    return net.eval()


def _converted(config: GPTQConfig | PTQConfig) -> nn.Module:
    prepared = prepare(_net(), config)
    prepared(X)
    return convert(prepared)


CHANGED: dict[str, tuple[str, nn.Module, str]] = {
    "another activation": ("act", nn.ReLU(), "class"),
    "another slope": ("act", nn.LeakyReLU(0.2), "negative_slope"),
    "another stride": ("conv", nn.Conv2d(4, 4, 3, padding=1, stride=2), "stride"),
    "another padding": ("conv", nn.Conv2d(4, 4, 3), "pads"),
    "another padding mode": ("conv", nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "pad_mode"),
    "other groups of a norm": ("norm", nn.GroupNorm(4, 4), "groups"),
    "another eps": ("norm", nn.GroupNorm(2, 4, eps=0.1), "eps"),
    "another pool": ("pool", nn.AvgPool2d(2), "class"),
    "another window": ("pool", nn.MaxPool2d(2, stride=1), "stride"),
    "another output padding": ("up", nn.ConvTranspose2d(4, 2, 2, stride=2), "output_padding"),
    "torch's own in the place of another": ("own", nn.Tanh(), "class"),
}
NAMES = {"groups": "num_groups", "pads": "padding", "pad_mode": "padding_mode"}  # in a float module


@pytest.mark.parametrize("config", [GPTQ, PTQ], ids=["GPTQ", "PTQ"])
@pytest.mark.parametrize("case", CHANGED)
def test_skeleton_of_another_structure_is_refused(
    case: str, config: GPTQConfig | PTQConfig, tmp_path: Path
) -> None:
    """By path and field; the model given stays as it was."""
    save_quantized(_converted(config), tmp_path)
    name, module, field = CHANGED[case]
    model = _net(**{name: module})
    before = {path: id(each) for path, each in named_modules(model)}
    with pytest.raises(ArtifactError, match=r"pass a float model made as the one that was saved") as caught:
        load_quantized(tmp_path, model)
    assert caught.value.field in {field, NAMES.get(field)}
    assert name in str(caught.value.module)
    assert {path: id(each) for path, each in named_modules(model)} == before


@pytest.mark.parametrize("config", [GPTQ, PTQ], ids=["GPTQ", "PTQ"])
@pytest.mark.parametrize(
    "changed",
    [
        {"act": nn.LeakyReLU(0.1, inplace=True)},
        {"drop": nn.Dropout(0.5)},
        {"drop": nn.Identity()},
        {"own": Twice()},
    ],
    ids=["in place", "another dropout", "no dropout", "a renamed class"],
)
def test_what_makes_no_difference_is_accepted(
    changed: dict[str, nn.Module], config: GPTQConfig | PTQConfig, tmp_path: Path
) -> None:
    """A skeleton is made for evaluation, maybe by a later release of one's own code."""
    model = _converted(config)
    save_quantized(model, tmp_path)
    assert same_bits(load_quantized(tmp_path, _net(**changed))(X), model(X))


def test_file_of_an_earlier_release_is_loaded(tmp_path: Path) -> None:
    """It says nothing about structure and the dtype of weights."""

    def forget(manifest: dict[str, object]) -> None:
        del manifest["structure"]
        for entry in manifest["modules"].values():  # type: ignore[attr-defined]
            entry["layout"].get("packed", {}).pop("float_dtype", None)

    model = _converted(GPTQ)
    save_quantized(model, tmp_path)
    rewrite_with(tmp_path, forget)
    assert same_bits(load_quantized(tmp_path, _net())(X), model(X))


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_act", "relu"), ("rms_norm_eps", 0.1), ("num_attention_heads", 4)]
)
def test_another_config_of_transformers_is_refused(field: str, value: object, tmp_path: Path) -> None:
    """What the config says is computed by code that has no module of its own."""
    prepared = prepare(tiny_llama(), GPTQ)
    logits(prepared)
    save_quantized(convert(prepared), tmp_path)
    config = tiny_llama().config
    setattr(config, field, value)
    model = LlamaForCausalLM(config)
    with unchanged(model), pytest.raises(ArtifactError):
        load_quantized(tmp_path, model)


def test_config_that_makes_no_difference_is_accepted(tmp_path: Path) -> None:
    """Dropout, the cache and the dtype of the float weights are not looked at."""
    model = prepare(tiny_llama(), GPTQ)
    logits(model)
    save_quantized(convert(model), tmp_path)
    config = tiny_llama().config
    config.attention_dropout, config.use_cache, config.dtype = 0.1, False, "bfloat16"
    assert same_bits(logits(load_quantized(tmp_path, LlamaForCausalLM(config))), logits(model))


VALUES: dict[str, tuple[tuple[str, ...], object]] = {
    "eps is NaN": (("norm", "settings", "eps"), float("nan").hex()),
    "eps is negative": (("norm", "settings", "eps"), (-1.0).hex()),
    "eps is infinite": (("norm", "settings", "eps"), "inf"),
    "eps is another one": (("norm", "settings", "eps"), (1.0).hex()),
    "groups of no norm": (("norm", "settings", "groups"), 7),
    "no groups": (("norm", "settings", "groups"), 0),
    "groups that do not divide": (("conv", "settings", "groups"), 3),
    "other groups": (("conv", "settings", "groups"), 2),
    "another norm": (("norm", "settings", "norm"), "layer"),
    "another shape": (("norm", "settings", "shape"), [2, 2]),
    "axes that the weight has not": (("conv", "settings", "stride"), [1]),
    "another stride": (("conv", "settings", "stride"), [2, 2]),
    "a dtype of integers": (("conv", "packed", "float_dtype"), "int8"),
    "an axis for a grid": (("conv", "act_in", "unit"), "PerChannel"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_are_checked_and_not_the_seal_alone(case: str, tmp_path: Path) -> None:
    """A file that was changed and sealed again holds nothing that no such model has."""
    save_quantized(_converted(PTQ), tmp_path)
    (name, *place), value = VALUES[case]
    rewrite(tmp_path, ("modules", name, "layout", *place), value)
    model = _net()
    with pytest.raises(ArtifactError) as caught:
        load_quantized(tmp_path, model)
    assert str(tmp_path / MANIFEST) in str(caught.value.module)
    assert model.get_submodule("conv").weight.requires_grad


def _cycle() -> nn.Module:
    model = _converted(GPTQ)
    model.get_submodule("own").above = model
    return model


def test_module_that_holds_itself_is_refused(tmp_path: Path) -> None:
    """It has no end of paths, which nothing may try to list."""
    save_quantized(_converted(GPTQ), tmp_path)
    with pytest.raises(UnsupportedError, match="holds itself"):
        save_quantized(_cycle(), tmp_path)
    with pytest.raises(UnsupportedError, match="holds itself"):
        load_quantized(tmp_path, _cycle())
    assert report(_cycle()).layers


def test_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    """A folder, the manifest, a shard or the card: an error at once, or it is left alone or not read."""
    model = _converted(GPTQ)
    save_quantized(model, tmp_path / "saved")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="a folder"):
        load_quantized(tmp_path / "pipe", _net())
    for name in [path.name for path in (tmp_path / "saved").iterdir()]:
        folder = tmp_path / name
        save_quantized(model, folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        if name == "README.md":
            save_quantized(model, folder)
            assert not (folder / name).is_file()
        elif name == "quantized.safetensors.index.json":  # which is for other tools
            load_quantized(folder, _net())
        else:
            with pytest.raises(ArtifactError, match=r"regular file|as the manifest names it"):
                load_quantized(folder, _net())


@pytest.mark.parametrize("view", [lambda x: torch.conj(x).imag, lambda x: torch.view_as_real(x)[..., 0]])
def test_buffer_that_is_a_lazy_view_comes_back(view: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    """A tensor whose negative bit is set is stored with the values that it has."""
    model, skeleton = _converted(GPTQ), _net()
    numbers = view(torch.complex(values(1, 3), values(2, 3)))
    model.register_buffer("table", numbers)
    skeleton.register_buffer("table", torch.zeros(3))
    save_quantized(model, tmp_path)
    assert same_bits(dict(load_quantized(tmp_path, skeleton).named_buffers())["table"], numbers.resolve_neg())


def test_model_without_values_is_not_saved(tmp_path: Path) -> None:
    """The error names the tensors and the way out."""
    with pytest.raises(UnsupportedError, match="load the weights before") as caught:
        save_quantized(_converted(GPTQ).to("meta"), tmp_path / "new")
    assert "conv.packed.codes" in {problem.module for problem in caught.value.problems}
    assert not (tmp_path / "new").exists()


def test_save_pretrained_is_refused(tmp_path: Path) -> None:
    """Of the whole model and of a part: it would write what reloads as random layers."""
    model = prepare(tiny_llama(), GPTQ)
    logits(model)
    model = convert(model)
    for part in (model, model.model):
        with pytest.raises(TicoError, match="save_quantized"):
            part.save_pretrained(tmp_path)  # type: ignore[operator, union-attr]
    assert not list(tmp_path.glob("*.safetensors"))
    assert model.state_dict()
    tiny_llama().save_pretrained(tmp_path)
