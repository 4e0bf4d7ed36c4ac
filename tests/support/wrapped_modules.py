"""Every module of torch and transformers that has a wrapper, in one table of cases."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, SiLUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tico_wrapq import Add, Concat, MatMul, Mul, QuantStub
from tico_wrapq.testing import WrapperCase
from tiny_models import values

ROWS, LINE, IMAGES, VIDEOS = (5, 8), (2, 4, 9), (2, 4, 6, 6), (1, 2, 4, 4, 4)

UNARY = ("act_in", "act_out")
JOINT = ("left", "right", "act_out")
OUT = ("act_out",)


def as_if_trained(module: nn.Module) -> nn.Module:
    """Give a batch norm random statistics, weight and bias; leave any other module as it is; return it."""
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
        return module
    if module.running_mean is not None and module.running_var is not None:
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2.0)
    if module.affine:
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias)
    return module


def _case(make: Callable[[], nn.Module], *shapes: tuple[int, ...], points: tuple[str, ...]) -> WrapperCase:
    """Return the case of a module that takes random tensors of these shapes."""
    inputs = tuple(values(seed, *shape) for seed, shape in enumerate(shapes))
    return WrapperCase(make=make, inputs=inputs, points=points)


def _unary(make: Callable[[], nn.Module], shape: tuple[int, ...] = ROWS) -> WrapperCase:
    return _case(make, shape, points=UNARY)


def _table(make: Callable[[], nn.Module], *indices: Tensor) -> WrapperCase:
    """Return the case of a module that takes indices, which have no grid."""
    return WrapperCase(make=make, inputs=indices, points=OUT)


def _bag(mode: str) -> WrapperCase:
    return _table(lambda: nn.EmbeddingBag(12, 4, mode=mode), torch.arange(12).view(3, 4))


def _attention(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> WrapperCase:
    """Return the case of an attention of a tensor of this shape to itself."""
    x = values(0, *shape)
    return WrapperCase(make=make, inputs=(x, x, x), points=(*STEPS, *_of("in_proj"), *_of("out_proj")))


def _encoder(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> WrapperCase:
    # Steps of length 8 in float32: the sums of products may round differently, by some 2**-24 of the output.
    return WrapperCase(make=make, inputs=(values(0, *shape),), points=ENCODER, watched_error=1e-5)


def _trained(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a maker of batch norms that have seen data."""
    return lambda: as_if_trained(make())


def _of(path: str) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" for name in UNARY)


STEPS = ("scaled_query", "logits", "probabilities", "context")
ENCODER = (
    "attention_sum",
    "feed_forward_sum",
    *(f"self_attn.{name}" for name in (*STEPS, *_of("in_proj"), *_of("out_proj"))),
    *(name for part in ("linear1", "activation", "linear2", "norm1", "norm2") for name in _of(part)),
)

CASES: dict[str, WrapperCase] = {
    "Linear": _unary(lambda: nn.Linear(8, 3), ROWS),
    "Linear without bias": _unary(lambda: nn.Linear(8, 3, bias=False), ROWS),
    "Conv1d": _unary(lambda: nn.Conv1d(4, 2, 3, stride=2), LINE),
    "Conv2d": _unary(lambda: nn.Conv2d(4, 6, 3, padding="same", groups=2), IMAGES),
    "Conv2d circular": _unary(lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), IMAGES),
    "Conv2d dilated": _unary(lambda: nn.Conv2d(4, 2, 2, dilation=2), IMAGES),
    "Conv3d": _unary(lambda: nn.Conv3d(2, 2, 2), VIDEOS),
    "ConvTranspose1d": _unary(lambda: nn.ConvTranspose1d(4, 2, 3, stride=2), LINE),
    "ConvTranspose2d": _unary(
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), IMAGES
    ),
    "ConvTranspose3d": _unary(lambda: nn.ConvTranspose3d(2, 2, 2, padding=1), VIDEOS),
    "Embedding": _table(lambda: nn.Embedding(10, 4), torch.arange(10).view(2, 5)),
    "EmbeddingBag sum": _bag("sum"),
    "EmbeddingBag mean": _bag("mean"),
    "EmbeddingBag max": _bag("max"),
    "EmbeddingBag with offsets": _table(
        lambda: nn.EmbeddingBag(12, 4, padding_idx=0), torch.arange(12), torch.tensor([0, 5, 7])
    ),
    "BatchNorm1d": _unary(_trained(lambda: nn.BatchNorm1d(8)), ROWS),
    "BatchNorm2d": _unary(_trained(lambda: nn.BatchNorm2d(4)), IMAGES),
    "BatchNorm3d": _unary(_trained(lambda: nn.BatchNorm3d(2)), VIDEOS),
    "BatchNorm2d without weight": _unary(_trained(lambda: nn.BatchNorm2d(4, affine=False)), IMAGES),
    "BatchNorm2d without statistics": _unary(
        _trained(lambda: nn.BatchNorm2d(4, track_running_stats=False)), IMAGES
    ),
    "SyncBatchNorm": _unary(_trained(lambda: nn.SyncBatchNorm(4)), IMAGES),
    "GroupNorm": _unary(lambda: nn.GroupNorm(2, 4), IMAGES),
    "InstanceNorm2d": _unary(lambda: nn.InstanceNorm2d(4), IMAGES),
    "LayerNorm": _unary(lambda: nn.LayerNorm(8), ROWS),
    "LayerNorm of two axes": _unary(lambda: nn.LayerNorm((5, 8)), (3, 5, 8)),
    "LayerNorm without bias": _unary(lambda: nn.LayerNorm(8, bias=False), ROWS),
    "LayerNorm without weight": _unary(lambda: nn.LayerNorm(8, elementwise_affine=False)),
    "RMSNorm": _unary(lambda: nn.RMSNorm(8), ROWS),
    "RMSNorm with eps": _unary(lambda: nn.RMSNorm(8, eps=1e-3), ROWS),
    "AdaptiveAvgPool1d": _unary(lambda: nn.AdaptiveAvgPool1d(2), LINE),
    "AdaptiveAvgPool2d": _unary(lambda: nn.AdaptiveAvgPool2d(2), IMAGES),
    "AdaptiveAvgPool3d": _unary(lambda: nn.AdaptiveAvgPool3d(2), VIDEOS),
    "AdaptiveMaxPool2d": _unary(lambda: nn.AdaptiveMaxPool2d(2), IMAGES),
    "AvgPool1d": _unary(lambda: nn.AvgPool1d(2), LINE),
    "AvgPool2d": _unary(lambda: nn.AvgPool2d(2), IMAGES),
    "AvgPool3d": _unary(lambda: nn.AvgPool3d(2), VIDEOS),
    "LPPool2d": _unary(lambda: nn.LPPool2d(2, 2), IMAGES),
    "FractionalMaxPool2d": _unary(
        lambda: nn.FractionalMaxPool2d(2, output_size=3, _random_samples=torch.full((2, 4, 2), 0.5)), IMAGES
    ),
    "Fold": _unary(lambda: nn.Fold((4, 4), 2, stride=1), (2, 8, 9)),
    "ConstantPad2d": _unary(lambda: nn.ConstantPad2d(1, -0.5), IMAGES),
    "LocalResponseNorm": _unary(lambda: nn.LocalResponseNorm(3), IMAGES),
    "CrossMapLRN2d": _unary(lambda: nn.CrossMapLRN2d(3), IMAGES),
    "MaxPool1d": _unary(lambda: nn.MaxPool1d(2), LINE),
    "MaxPool2d": _unary(lambda: nn.MaxPool2d(2), IMAGES),
    "MaxPool3d": _unary(lambda: nn.MaxPool3d(2), VIDEOS),
    "Upsample": _unary(lambda: nn.Upsample(scale_factor=2), IMAGES),
    "Upsample bilinear": _unary(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGES),
    "CELU": _unary(nn.CELU),
    "ELU": _unary(nn.ELU),
    "GELU": _unary(nn.GELU),
    "GELU by tanh": _unary(lambda: nn.GELU("tanh")),
    "GLU": _unary(nn.GLU),
    "Hardshrink": _unary(nn.Hardshrink),
    "Hardsigmoid": _unary(nn.Hardsigmoid),
    "Hardswish": _unary(nn.Hardswish),
    "Hardtanh": _unary(nn.Hardtanh),
    "LeakyReLU": _unary(nn.LeakyReLU),
    "LogSigmoid": _unary(nn.LogSigmoid),
    "LogSoftmax": _unary(lambda: nn.LogSoftmax(-1)),
    "Mish": _unary(nn.Mish),
    "PReLU": _unary(nn.PReLU),
    "RReLU": _unary(nn.RReLU),
    "ReLU": _unary(nn.ReLU),
    "ReLU6": _unary(nn.ReLU6),
    "SELU": _unary(nn.SELU),
    "SiLU": _unary(nn.SiLU),
    "Sigmoid": _unary(nn.Sigmoid),
    "Softmax": _unary(lambda: nn.Softmax(-1)),
    "Softmax2d": _unary(nn.Softmax2d, IMAGES),
    "Softmin": _unary(lambda: nn.Softmin(-1)),
    "Softplus": _unary(nn.Softplus),
    "Softshrink": _unary(nn.Softshrink),
    "Softsign": _unary(nn.Softsign),
    "Tanh": _unary(nn.Tanh),
    "Tanhshrink": _unary(nn.Tanhshrink),
    "Threshold": _unary(lambda: nn.Threshold(0.1, 0.0)),
    "Add": _case(Add, ROWS, ROWS, points=JOINT),
    "Add of a vector": _case(Add, ROWS, (8,), points=JOINT),
    "Mul": _case(Mul, ROWS, ROWS, points=JOINT),
    "MatMul": _case(MatMul, (2, 5, 8), (2, 8, 3), points=JOINT),
    "CosineSimilarity": _case(lambda: nn.CosineSimilarity(-1), ROWS, ROWS, points=JOINT),
    "PairwiseDistance": _case(nn.PairwiseDistance, ROWS, ROWS, points=JOINT),
    "Concat": _case(Concat, ROWS, (5, 3), points=OUT),
    "QuantStub": _case(QuantStub, ROWS, points=OUT),
    "MultiheadAttention": _attention(lambda: nn.MultiheadAttention(8, 2), (5, 2, 8)),
    "MultiheadAttention without bias": _attention(
        lambda: nn.MultiheadAttention(8, 2, bias=False, batch_first=True), (2, 5, 8)
    ),
    "TransformerEncoderLayer": _encoder(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)
    ),
    "TransformerEncoderLayer with norms first": _encoder(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, activation="gelu"), (5, 2, 8)
    ),
    "GELUActivation": _unary(GELUActivation),
    "LlamaRMSNorm": _unary(lambda: LlamaRMSNorm(8)),
    "SiLUActivation": _unary(SiLUActivation),
}
