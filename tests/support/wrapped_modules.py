"""Every module that has a wrapper, in one table: how to make it, what to feed it, and the points it has."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, SiLUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tico_wrapq import Add, Concat, MatMul, Mul, QuantStub
from tiny_models import values

ROWS, LINE, IMAGES, VIDEOS = (5, 8), (2, 4, 9), (2, 4, 6, 6), (1, 2, 4, 4, 4)

UNARY = ("act_in", "act_out")
JOINT = ("left", "right", "act_out")
OUT = ("act_out",)


@attrs.frozen(kw_only=True)
class Row:
    """One module: `make`, the shapes of its `inputs` (or whole tensors), and the `points` it gets.

    `integer` says whether an integer module takes its place at `convert`. `inside` are the points of the
    modules that it is taken apart into, `first` the one that sees data first. `exact` is whether watching
    changes no bit: torch's fused attention rounds otherwise than its steps. Inputs are passed `times` times.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...] | Tensor, ...]
    points: tuple[str, ...] = UNARY
    integer: bool = False
    inside: tuple[str, ...] = ()
    first: str = ""
    exact: bool = True
    times: int = 1

    @property
    def all_points(self) -> list[str]:
        """The paths of all points, sorted."""
        return sorted(f"part.{name}" for name in (*self.points, *self.inside))

    @property
    def first_point(self) -> str:
        """The path of the point that sees data first."""
        return f"part.{self.first or self.points[0]}"

    def model(self) -> nn.Module:
        """Return the module as part `part` of a model, always the same one, in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Whole(self.make(), self.times)
            for module in model.modules():
                as_if_trained(module)
        return model.eval()

    def data(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Return arguments, always the same ones for a seed."""
        return tuple(
            one if isinstance(one, Tensor) else values(seed + index, *one)
            for index, one in enumerate(self.inputs)
        )


class Whole(nn.Module):
    """A model of one part."""

    def __init__(self, part: nn.Module, times: int) -> None:
        """Keep the part, which takes each argument `times` times."""
        super().__init__()
        self.part = part
        self.times = times

    def forward(self, *args: Tensor) -> Tensor:
        """Return what the part makes of the arguments; of several outputs the first."""
        output: Tensor | tuple[Tensor, ...] = self.part(*args * self.times)
        return output[0] if isinstance(output, tuple) else output


def as_if_trained(module: nn.Module) -> None:
    """Give a batch norm random statistics, weight and bias; leave any other module as it is."""
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return
    if module.running_mean is not None and module.running_var is not None:
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2.0)
    if module.affine:
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias)


def _layer(make: Callable[[], nn.Module], *inputs: tuple[int, ...]) -> Row:
    return Row(make=make, inputs=inputs, integer=True)


def _unary(make: Callable[[], nn.Module], *inputs: tuple[int, ...]) -> Row:
    return Row(make=make, inputs=inputs or (ROWS,))


def _bag(mode: str) -> Row:
    indices = torch.arange(12).view(3, 4)
    return Row(make=lambda: nn.EmbeddingBag(12, 4, mode=mode), inputs=(indices,), points=OUT, integer=True)


def _of(path: str) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" for name in UNARY)


STEPS = ("scaled_query", "logits", "probabilities", "context")
SUMS = ("attention_sum", "feed_forward_sum")
ENCODER = (
    *(f"self_attn.{name}" for name in (*STEPS, *_of("in_proj"), *_of("out_proj"))),
    *(name for part in ("linear1", "activation", "linear2", "norm1", "norm2") for name in _of(part)),
)

ROWS_BY_NAME: dict[str, Row] = {
    "Linear": _layer(lambda: nn.Linear(8, 3), ROWS),
    "Linear without bias": _layer(lambda: nn.Linear(8, 3, bias=False), ROWS),
    "Conv1d": _layer(lambda: nn.Conv1d(4, 2, 3, stride=2), LINE),
    "Conv2d": _layer(lambda: nn.Conv2d(4, 6, 3, padding="same", groups=2), IMAGES),
    "Conv2d circular": _layer(lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), IMAGES),
    "Conv2d dilated": _layer(lambda: nn.Conv2d(4, 2, 2, dilation=2), IMAGES),
    "Conv3d": _layer(lambda: nn.Conv3d(2, 2, 2), VIDEOS),
    "ConvTranspose1d": _layer(lambda: nn.ConvTranspose1d(4, 2, 3, stride=2), LINE),
    "ConvTranspose2d": _layer(
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), IMAGES
    ),
    "ConvTranspose3d": _layer(lambda: nn.ConvTranspose3d(2, 2, 2, padding=1), VIDEOS),
    "Embedding": Row(
        make=lambda: nn.Embedding(10, 4), inputs=(torch.arange(10).view(2, 5),), points=OUT, integer=True
    ),
    "EmbeddingBag sum": _bag("sum"),
    "EmbeddingBag mean": _bag("mean"),
    "EmbeddingBag max": _bag("max"),
    "EmbeddingBag with offsets": Row(
        make=lambda: nn.EmbeddingBag(12, 4, padding_idx=0),
        inputs=(torch.arange(12), torch.tensor([0, 5, 7])),
        points=OUT,
        integer=True,
    ),
    "BatchNorm1d": _layer(lambda: nn.BatchNorm1d(8), ROWS),
    "BatchNorm2d": _layer(lambda: nn.BatchNorm2d(4), IMAGES),
    "BatchNorm3d": _layer(lambda: nn.BatchNorm3d(2), VIDEOS),
    "BatchNorm2d without weight": _unary(lambda: nn.BatchNorm2d(4, affine=False), IMAGES),
    "BatchNorm2d without statistics": _unary(lambda: nn.BatchNorm2d(4, track_running_stats=False), IMAGES),
    "GroupNorm": _layer(lambda: nn.GroupNorm(2, 4), IMAGES),
    "InstanceNorm2d": _unary(lambda: nn.InstanceNorm2d(4), IMAGES),
    "LayerNorm": _layer(lambda: nn.LayerNorm(8), ROWS),
    "LayerNorm of two axes": _layer(lambda: nn.LayerNorm((5, 8)), (3, 5, 8)),
    "LayerNorm without bias": _layer(lambda: nn.LayerNorm(8, bias=False), ROWS),
    "LayerNorm without weight": _unary(lambda: nn.LayerNorm(8, elementwise_affine=False)),
    "RMSNorm": _layer(lambda: nn.RMSNorm(8), ROWS),
    "RMSNorm with eps": _layer(lambda: nn.RMSNorm(8, eps=1e-3), ROWS),
    "AdaptiveAvgPool1d": _unary(lambda: nn.AdaptiveAvgPool1d(2), LINE),
    "AdaptiveAvgPool2d": _unary(lambda: nn.AdaptiveAvgPool2d(2), IMAGES),
    "AdaptiveAvgPool3d": _unary(lambda: nn.AdaptiveAvgPool3d(2), VIDEOS),
    "AdaptiveMaxPool2d": _unary(lambda: nn.AdaptiveMaxPool2d(2), IMAGES),
    "AvgPool1d": _unary(lambda: nn.AvgPool1d(2), LINE),
    "AvgPool2d": _unary(lambda: nn.AvgPool2d(2), IMAGES),
    "AvgPool3d": _unary(lambda: nn.AvgPool3d(2), VIDEOS),
    "MaxPool1d": _unary(lambda: nn.MaxPool1d(2), LINE),
    "MaxPool2d": _unary(lambda: nn.MaxPool2d(2), IMAGES),
    "MaxPool3d": _unary(lambda: nn.MaxPool3d(2), VIDEOS),
    "Upsample": _unary(lambda: nn.Upsample(scale_factor=2), IMAGES),
    "Upsample bilinear": _unary(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGES),
    "CELU": _unary(nn.CELU),
    "ELU": _unary(nn.ELU),
    "GELU": _unary(nn.GELU),
    "GELU by tanh": _unary(lambda: nn.GELU("tanh")),
    "Hardsigmoid": _unary(nn.Hardsigmoid),
    "Hardswish": _unary(nn.Hardswish),
    "Hardtanh": _unary(nn.Hardtanh),
    "LeakyReLU": _unary(nn.LeakyReLU),
    "LogSigmoid": _unary(nn.LogSigmoid),
    "LogSoftmax": _unary(lambda: nn.LogSoftmax(-1)),
    "Mish": _unary(nn.Mish),
    "PReLU": _unary(nn.PReLU),
    "ReLU": _unary(nn.ReLU),
    "ReLU6": _unary(nn.ReLU6),
    "SELU": _unary(nn.SELU),
    "SiLU": _unary(nn.SiLU),
    "Sigmoid": _unary(nn.Sigmoid),
    "Softmax": _unary(lambda: nn.Softmax(-1)),
    "Softplus": _unary(nn.Softplus),
    "Softsign": _unary(nn.Softsign),
    "Tanh": _unary(nn.Tanh),
    "Add": Row(make=Add, inputs=(ROWS, ROWS), points=JOINT),
    "Add of a vector": Row(make=Add, inputs=(ROWS, (8,)), points=JOINT),
    "Mul": Row(make=Mul, inputs=(ROWS, ROWS), points=JOINT),
    "MatMul": Row(make=MatMul, inputs=((2, 5, 8), (2, 8, 3)), points=JOINT),
    "Concat": Row(make=Concat, inputs=(ROWS, (5, 3)), points=OUT),
    "QuantStub": Row(make=QuantStub, inputs=(ROWS,), points=OUT),
    "MultiheadAttention": Row(
        make=lambda: nn.MultiheadAttention(8, 2),
        inputs=((5, 2, 8),),
        points=STEPS,
        inside=(*_of("in_proj"), *_of("out_proj")),
        first="in_proj.act_in",
        times=3,
    ),
    "MultiheadAttention without bias": Row(
        make=lambda: nn.MultiheadAttention(8, 2, bias=False, batch_first=True),
        inputs=((2, 5, 8),),
        points=STEPS,
        inside=(*_of("in_proj"), *_of("out_proj")),
        first="in_proj.act_in",
        times=3,
    ),
    "TransformerEncoderLayer": Row(
        make=lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        inputs=((2, 5, 8),),
        points=SUMS,
        inside=ENCODER,
        first="self_attn.in_proj.act_in",
        exact=False,
    ),
    "TransformerEncoderLayer with norms first": Row(
        make=lambda: nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, activation="gelu"),
        inputs=((5, 2, 8),),
        points=SUMS,
        inside=ENCODER,
        first="norm1.act_in",
        exact=False,
    ),
    "GELUActivation": _unary(GELUActivation),
    "LlamaRMSNorm": _unary(lambda: LlamaRMSNorm(8)),
    "SiLUActivation": _unary(SiLUActivation),
}
