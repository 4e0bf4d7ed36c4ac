"""Small models and schemes that every target of tico-export is tried on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import attrs
import torch
from torch import Tensor, nn

from tico.quantization import GPTQConfig, PT2EConfig, PTQConfig, convert, prepare
from tico.quantization.config import (
    FP8,
    MXFP4,
    NVFP4,
    BaseConfig,
    DType,
    PerToken,
    QScheme,
    affine,
    no_quant,
)

_WIKI_LLAMA: Final = Path(__file__).parents[1] / "examples" / "wiki_llama"
TOKENS: Final = torch.arange(48).view(2, 24) * 7 % 61 + 1
_SIZES: Final = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@attrs.frozen(eq=False, kw_only=True)
class Subject:
    """A float model and what it is called with."""

    make: Callable[[], nn.Module]
    args: tuple[Tensor, ...]
    kwargs: Mapping[str, object] = attrs.field(factory=dict)


class ConvolutionNet(nn.Module):
    """Convolutions, one of them depthwise and one transposed, and a head."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, 2), nn.Linear(8 * 64, 10)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return ten values for each image (3, 8, 8)."""
        hidden = self.act(self.up(self.act(self.depthwise(self.act(self.first(x))))))
        output: Tensor = self.head(hidden.flatten(1))
        return output


def _stack() -> nn.Module:
    return nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64))


def _encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig.from_dict(_SIZES, attn_implementation="eager"))


def _embedded() -> nn.Module:
    """Return the trained language model of the examples, cut off after its first block."""
    from transformers import LlamaForCausalLM

    made = LlamaForCausalLM.from_pretrained(
        _WIKI_LLAMA, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    made.model.layers, made.config.num_hidden_layers = made.model.layers[:1], 1
    return made


def _qwen() -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {**_SIZES, "head_dim": 32, "num_hidden_layers": 1}
    return Qwen3ForCausalLM(Qwen3Config.from_dict(sizes, attn_implementation="eager"))


def _values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


_NO_CACHE: Final = {"use_cache": False}
SUBJECTS: Final[Mapping[str, Subject]] = {
    "linear stack": Subject(make=_stack, args=(_values(4, 6, 128),)),
    "convolutions": Subject(make=ConvolutionNet, args=(_values(4, 3, 8, 8),)),
    "encoder": Subject(make=_encoder, args=(_values(2, 12, 128),)),
    "LLaMA": Subject(make=_llama, args=(TOKENS,), kwargs=_NO_CACHE),
    "embedded LLaMA": Subject(make=_embedded, args=(TOKENS,), kwargs=_NO_CACHE),
    "Qwen3": Subject(make=_qwen, args=(TOKENS,), kwargs=_NO_CACHE),
}

_INT8, _UINT8 = affine(DType.int(8)), affine(DType.uint(8))
_TOKEN = affine(DType.int(8), granularity=PerToken())
_FP8_TOKEN = affine(FP8(), granularity=PerToken())
_ASYMMETRIC = affine(DType.int(8), QScheme.PER_TENSOR_ASYMM)


def _gptq(group: int | None, *, symmetric: bool) -> GPTQConfig:
    return GPTQConfig(bits=4, group_size=group, symmetric=symmetric, show_progress=False)


SCHEMES: Final[Mapping[str, BaseConfig]] = {
    "W8A8": PTQConfig(activation=_UINT8, weight=_INT8),
    "W8A8 int8": PTQConfig(activation=_ASYMMETRIC, weight=_INT8),
    "W8A8 per token": PTQConfig(activation=_TOKEN, weight=_INT8),
    "W8A8 linear": PTQConfig(activation=_INT8, weight=_INT8, scope="linear"),
    "W8A8 per token linear": PTQConfig(activation=_TOKEN, weight=_INT8, scope="linear"),
    "W8A16": PTQConfig(activation=affine(DType.int(16)), weight=_INT8),
    "W4 g32": _gptq(32, symmetric=False),
    "W4 g32 sym": _gptq(32, symmetric=True),
    "W4 g128": _gptq(128, symmetric=False),
    "W4 g128 sym": _gptq(128, symmetric=True),
    "W4 per channel": _gptq(None, symmetric=True),
    "FP8": PTQConfig(activation=no_quant(), weight=affine(FP8())),
    "FP8 per token linear": PTQConfig(activation=_FP8_TOKEN, weight=affine(FP8()), scope="linear"),
    "MXFP4": PTQConfig(activation=no_quant(), weight=affine(MXFP4())),
    "NVFP4": PTQConfig(activation=no_quant(), weight=affine(NVFP4())),
    "PT2E onnx": PT2EConfig.onnx_runtime(),
    "PT2E xnnpack": PT2EConfig.xnnpack(),
    "PT2E circle": PT2EConfig.circle(),
}


def converted(subject: str, scheme: str) -> nn.Module:
    """Return a model quantized by a scheme, the same one in every process."""
    given, config = SUBJECTS[subject], SCHEMES[scheme]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = given.make().eval()
    inplace = not isinstance(config, PT2EConfig)
    prepared = prepare(model, config, args=given.args, kwargs=dict(given.kwargs), inplace=inplace)
    with torch.no_grad():
        prepared(*given.args, **given.kwargs)
    return convert(prepared, inplace=inplace)
