"""`GPTQFormat()` and `AWQFormat()`: what stands in the folder, and what is refused."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

import export_gptq
from export_models import TOKENS
from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico.quantization.config import BaseConfig, DType, affine, no_quant
from tico_config import ConfigError, LayerBlocks, UnsupportedError
from tico_export import AWQFormat, ExportTarget, GPTQFormat, QuantizedWeight, Source, export
from tico_observers import read_sealed

SIZES: Final = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attention_bias": True,
}
AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)


def gptq(bits: int = 4, group_size: int | None = 32, **further: object) -> GPTQConfig:
    """Return a config for layers in blocks."""
    return GPTQConfig(bits=bits, group_size=group_size, show_progress=False, **further)  # type: ignore[arg-type]


def quantized(config: BaseConfig) -> nn.Module:
    """Return a tiny model quantized by `config`, the same one in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = LlamaForCausalLM(LlamaConfig.from_dict(SIZES))
        model.eval()
    prepared = prepare(model, config, args=(TOKENS,))
    with torch.no_grad():
        prepared(TOKENS)
    return convert(prepared).eval()


def code(words: list[int], place: int, bits: int) -> int:
    """Return the code at `place` of a stream of codes in words of 32 bits, bit by bit."""
    found = 0
    for bit in range(bits):
        word, at = divmod(place * bits + bit, 32)
        found |= (words[word] >> at & 1) << bit
    return found


def gptq_values(held: dict[str, Tensor], weight: QuantizedWeight, version: int) -> Tensor:
    """Return the weight that a layer in the format of GPTQ stands for, element by element."""
    rows, columns = weight.shape
    bits, name = weight.dtype.bits, weight.path
    scales, index = held[f"{name}.scales"].float(), held[f"{name}.g_idx"].tolist()
    codes, zeros = held[f"{name}.qweight"].T.tolist(), held[f"{name}.qzeros"].tolist()
    values = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            zero = code(zeros[index[column]], row, bits) + (1 if version == 1 else 0)
            values[row, column] = (code(codes[row], column, bits) - zero) * scales[index[column], row]
    return values


def awq_values(held: dict[str, Tensor], weight: QuantizedWeight) -> Tensor:
    """Return the weight that a layer in the format of AWQ stands for, element by element."""
    rows, columns = weight.shape
    size = weight.group_size or columns
    codes, zeros = (held[f"{weight.path}.{each}"].tolist() for each in ("qweight", "qzeros"))
    scales = held[f"{weight.path}.scales"].float()
    values = torch.empty(rows, columns)
    for row in range(rows):
        place = row // 8 * 8 + AWQ_ORDER.index(row % 8)
        for column in range(columns):
            step = code(codes[column], place, 4) - code(zeros[column // size], place, 4)
            values[row, column] = step * scales[column // size, row]
    return values


def written(model: nn.Module, path: Path, target: ExportTarget) -> dict[str, Tensor]:
    """Return the tensors in a folder."""
    result = export(model, path, target)
    assert result.bytes == sum(each.stat().st_size for each in path.iterdir())
    return dict(read_sealed(path / "model.safetensors").tensors)


SCHEMES: Final = {
    "4 bits": gptq(),
    "4 bits, zero points": gptq(symmetric=False),
    "4 bits, a scale a row": gptq(group_size=None),
    "2 bits": gptq(2),
    "3 bits": gptq(3),
    "8 bits": gptq(8),
    "columns in an order of their own": gptq(static_groups=False),
    "round to nearest": PTQConfig(
        activation=no_quant(),
        weight=affine(DType.int(4)),
        overrides={"model.embed_tokens": no_quant(), "lm_head": no_quant()},
    ),
}


@functools.cache
def quantized_by(scheme: str) -> nn.Module:
    """Return the model of a scheme, which an export leaves as it was."""
    return quantized(SCHEMES[scheme])


def nearly(weight: QuantizedWeight, values: Tensor) -> bool:
    """Whether `values` are those of a weight, but for scales that are rounded to float16."""
    return torch.allclose(values, weight.dequantize(), rtol=2**-11, atol=0.0)  # half of float16's last bit


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_stands_for_its_weight(scheme: str, version: int, tmp_path: Path) -> None:
    """Codes, zero points and groups are those of the layer, and scales are rounded to float16."""
    model = quantized_by(scheme)
    held = written(model, tmp_path / "m", GPTQFormat(version=1 if version == 1 else 2))
    weight = Source.read(model).weights["model.layers.1.self_attn.k_proj"]
    assert nearly(weight, gptq_values(held, weight, version))
    assert weight.bias is not None
    assert torch.equal(held[f"{weight.path}.bias"], weight.bias.half())


@pytest.mark.parametrize("scheme", ["4 bits", "4 bits, zero points", "4 bits, a scale a row"])
def test_a_layer_of_awq_stands_for_its_weight(scheme: str, tmp_path: Path) -> None:
    """In the order that the kernel has."""
    model = quantized_by(scheme)
    held = written(model, tmp_path / "m", AWQFormat())
    weight = Source.read(model).weights["model.layers.1.self_attn.k_proj"]
    assert nearly(weight, awq_values(held, weight))


def settings_in(folder: Path) -> dict[str, object]:
    """Return the config of the quantization in a folder."""
    config: dict[str, dict[str, object]] = json.loads((folder / "config.json").read_text())
    return config["quantization_config"]


def test_the_config_says_which_layers_are_integers(tmp_path: Path) -> None:
    """The bits and groups of all, and the names of those in a block where some are left in float."""
    model = quantized(gptq(overrides={"*.v_proj": no_quant(), "*.mlp.*": no_quant()}))
    export(model, tmp_path / "gptq", GPTQFormat(version=2))
    export(model, tmp_path / "awq", AWQFormat())
    found = settings_in(tmp_path / "gptq")
    assert (found["bits"], found["group_size"], found["desc_act"]) == (4, 32, False)
    assert (found["format"], found["block_name_to_quantize"]) == ("gptq_v2", "model.layers")
    names = [["self_attn.k_proj"], ["self_attn.o_proj"], ["self_attn.q_proj"]]
    assert found["modules_in_block_to_quantize"] == names
    left = settings_in(tmp_path / "awq")["modules_to_not_convert"]
    assert isinstance(left, list)
    assert len(left) == 2 * 4 + 1
    assert r"model\.layers\.1\.self_attn\.v_proj" in left


@pytest.mark.parametrize("target", [GPTQFormat(), AWQFormat()])
def test_the_result_says_what_was_rounded_and_that_nothing_was_verified(
    target: ExportTarget, tmp_path: Path
) -> None:
    """Without GPTQModel, which this environment does not have."""
    result = export(quantized_by("4 bits"), tmp_path / "m", target, args=(TOKENS,))
    assert not result.verified
    assert "pip install 'tico-export[gptq]'" in result.consumer
    assert result.notes == (
        "the scales of 14 of 14 layers are rounded to float16, as the format has them",
        "weights left in float: model.embed_tokens.weight, lm_head.weight",
    )


REFUSED: Final[dict[str, tuple[BaseConfig, ExportTarget, str]]] = {
    "bits": (gptq(5), GPTQFormat(), r"takes weights of 2, 3, 4, 8 bits, and this one has uint5"),
    "bits of AWQ": (gptq(8), AWQFormat(), r"takes weights of 4 bits, and this one has uint8"),
    "an order": (gptq(static_groups=False), AWQFormat(), r"act_order=False"),
    "groups": (gptq(group_size=40, ragged_groups=True), GPTQFormat(), r"64 columns in groups of 40"),
    "a size without a kernel": (gptq(group_size=8), GPTQFormat(), r"groups of 16, 32, 64"),
    "mixed": (
        gptq(overrides={"*.mlp.*": {"bits": 8}}),
        GPTQFormat(),
        r"the same bits and groups in all layers",
    ),
    "a head": (
        PTQConfig(activation=no_quant(), weight=affine(DType.int(4))),
        GPTQFormat(),
        r"layers of Linear",
    ),
    "one block": (
        gptq(overrides={"model.layers.0.*": no_quant()}),
        GPTQFormat(),
        r"the same layers of every block",
    ),
    "inputs": (PTQConfig(), AWQFormat(), r"inputs in float"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_format_cannot_hold_is_refused(case: str, tmp_path: Path) -> None:
    """Before anything is written, with the reason."""
    config, target, reason = REFUSED[case]
    with pytest.raises(UnsupportedError, match=reason):
        export(quantized(config), tmp_path / "m", target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", [GPTQFormat(), AWQFormat()])
def test_transposed_layers_are_refused(target: ExportTarget, tmp_path: Path) -> None:
    """Readers of AWQ leave ``Conv1D`` in float, and those of GPTQ fail to replace it."""
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 1, "vocab_size": 64, "n_positions": 64}
    made: nn.Module = GPT2LMHeadModel(GPT2Config.from_dict(sizes))
    prepared = prepare(made.eval(), gptq(), args=(TOKENS,))
    prepared(TOKENS)
    with pytest.raises(UnsupportedError, match=r"c_attn: .*layers of Linear, and this one has a Conv1D"):
        export(convert(prepared), tmp_path / "m", target)


class MixerConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """The config of a mixer, which has nothing in it."""


class Mixer(PreTrainedModel):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Two blocks of a linear layer and a convolution."""

    config_class = MixerConfig

    def __init__(self, config: MixerConfig) -> None:
        """Make the blocks."""
        super().__init__(config)
        parts = [nn.ModuleDict({"mix": nn.Conv2d(32, 32, 1), "out": nn.Linear(32, 32)}) for _ in range(2)]
        self.blocks = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the linear layers make of `x`."""
        for each in self.blocks:
            x = each["out"](x)  # type: ignore[index]  # a dictionary of layers
        return x


def test_convolutions_in_blocks_are_told_from_integer_layers(tmp_path: Path) -> None:
    """The reader replaces every convolution of a block, unless the config names the layers."""
    config = gptq(overrides={"*.mix": no_quant()})
    made: nn.Module = Mixer(MixerConfig())
    prepared = prepare(made.eval(), config, args=(torch.eye(32),))
    prepared(torch.eye(32))
    export(convert(prepared), tmp_path / "m", GPTQFormat(version=2))
    assert settings_in(tmp_path / "m")["modules_in_block_to_quantize"] == [["out"]]


def test_zero_points_of_zero_are_refused_in_the_first_version(tmp_path: Path) -> None:
    """It has them less 1, and -1 is no code: readers would carry it into the next zero point."""
    model = quantized(gptq(symmetric=False))
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    layer.packed.zero_point[0, 0] = 0  # type: ignore[union-attr,operator]
    with pytest.raises(UnsupportedError, match=r"up_proj.*use version=2"):
        export(model, tmp_path / "m", GPTQFormat())
    export(model, tmp_path / "m", GPTQFormat(version=2))


def test_other_versions_are_refused() -> None:
    """There are two."""
    with pytest.raises(ConfigError, match=r"version"):
        GPTQFormat(version=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"version"):
        GPTQFormat(version=True)  # type: ignore[arg-type]


def test_blocks_are_named_only_where_no_other_layer_has_the_name() -> None:
    """A reader takes every layer whose path ends with a name."""
    assert LayerBlocks.of(["h.0.up"], ["h.0.gate_up", "head"]) is None
    assert LayerBlocks.of(["h.0.mlp.up"], ["h.0.mlp.gate_up"]) == LayerBlocks(path="h", names=("mlp.up",))
    assert LayerBlocks.of(["h.0.up", "head"], []) is None


def test_a_folder_has_the_same_bytes_again(tmp_path: Path) -> None:
    """Whatever the order of the passes."""
    for name in ("one", "two"):
        export(quantized(gptq()), tmp_path / name, GPTQFormat())
    for each in (tmp_path / "one").iterdir():
        assert each.read_bytes() == (tmp_path / "two" / each.name).read_bytes()


@pytest.mark.parametrize("name", export_gptq.TARGETS)
def test_the_example_writes_a_folder(name: str, tmp_path: Path) -> None:
    """With the tensors and the config."""
    result = export_gptq.write(name, tmp_path)
    assert {"config.json", "model.safetensors"} <= {each.name for each in result.path.iterdir()}
