"""The variant ``"stepwise"``: norms, SiLU and softmax with a point for each of their steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from tico_config import Found, PerTensor, Problem, UnsupportedError
from tico_modules import Edit, PackedWeight, Parts, parameter
from tico_wrapq.base import (
    ACT_IN,
    ACT_OUT,
    PointDeclaration,
    QuantModuleBase,
    Role,
    WeightCodes,
    pack_weight,
    register,
    try_register,
)
from tico_wrapq.llama._attention import Mask, QuantLlamaAttention, head_points
from tico_wrapq.llama._family import classes_of
from tico_wrapq.torch_nn import (
    NORM_WEIGHT,
    NormSettings,
    QuantizedNorm,
    QuantUnary,
    why_not_integer,
)

STEPWISE: Final = "stepwise"
_NORMS = tuple(each for each in classes_of("RMSNorm") if ".gemma." not in each)  # Gemma adds 1
_EXPONENTIALS: Final = ("shifted", "exponential", "sum", "inverse_sum")


def _others(*names: str) -> tuple[PointDeclaration, ...]:
    return tuple(PointDeclaration(name, Role.OTHER) for name in names)


@try_register(*_NORMS, variant=STEPWISE)
class QuantSteppedNorm(QuantModuleBase):
    """RMSNorm (Zhang and Sennrich, arXiv 1910.07467) with a point for each step.

    ``act_out = weight * normalized``, ``normalized = act_in * inverse_root``,
    ``inverse_root = 1 / sqrt(mean + eps)``, with the `mean` of each token's `square`. After `convert` the
    weight is that of a `QuantizedNorm`. Where tokens differ much in size, as in trained models, `square`,
    `mean` and `inverse_root` need a grid for each token.
    """

    kind: ClassVar[str] = "ptq.stepped_norm"
    points: ClassVar[tuple[PointDeclaration, ...]] = (
        ACT_IN,
        *_others("square", "mean", "inverse_root", "normalized"),
        NORM_WEIGHT,
        ACT_OUT,
    )
    takes_hooks: ClassVar[bool] = True
    replaces_forward: ClassVar[bool] = True
    module: nn.Module
    eps: float

    def adopt(self, module: nn.Module) -> None:
        """Keep the norm, for its weight."""
        self.module = module
        eps: float = vars(module)["variance_epsilon"]
        self.eps = eps

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return why its weight cannot be made of integers, or None."""
        return why_not_integer(module, (type(module).forward,))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the norm of the hidden states, step by step."""
        x: Tensor = self.point("act_in")(hidden_states)
        wide = x.to(torch.float32)
        square = self.point("square")(wide.pow(2))
        mean = self.point("mean")(square.mean(-1, keepdim=True))
        inverse_root = self.point("inverse_root")(torch.rsqrt(mean + self.eps))
        normalized = self.point("normalized")(wide * inverse_root).to(x.dtype)
        moved: Tensor = self.point("act_out")(self._weight().to(x.dtype) * normalized)
        return moved

    def _weight(self) -> Tensor:
        weight: Tensor = getattr(self.module, "weight")  # noqa: B009  # torch's type
        return weight

    def rounded_from(self, original: nn.Module) -> Mapping[PackedWeight, Tensor]:
        """Return the weight of the norm `original`."""
        return self.module.rounded_from(original) if isinstance(self.module, QuantizedNorm) else {}

    def finish(self, weights: WeightCodes, edit: Edit) -> nn.Module:
        """Return the wrapper, with an integer norm in the place of the float one.

        Raises:
            CalibrationError: a point saw no data.
        """
        weight, spec = parameter(self.module, "weight"), self.weight_specs["weight"]
        if weight is not None and spec.is_quantized:
            packed = pack_weight(weight.detach().view(1, -1), spec, self.path, PerTensor())
            settings = NormSettings(norm="rms", shape=tuple(weight.shape), eps=self.eps)
            children: dict[str, nn.Module | None] = self._modules
            edit.put(children, "module", QuantizedNorm(Parts(packed=packed), settings).train(self.training))
        return super().finish(weights, edit)


@register(nn.SiLU, variant=STEPWISE)
@try_register("transformers.activations.SiLUActivation", variant=STEPWISE)
class QuantSteppedSiLU(QuantUnary):
    """``act_out = act_in * sigmoid``, with a point for the sigmoid. Until `convert` it is torch's `silu`."""

    kind: ClassVar[str] = "ptq.stepped_silu"
    points: ClassVar[tuple[PointDeclaration, ...]] = (ACT_IN, *_others("sigmoid"), ACT_OUT)

    def _output(self, *args: object, **kwargs: object) -> Tensor:
        (x,) = (*args, *kwargs.values())
        if not isinstance(x, Tensor):
            found = Found(type(x).__name__)
            raise UnsupportedError(Problem(module=self.path, field="input", value=found, expected="a tensor"))
        sigmoid = self.point("sigmoid")
        moved: Tensor | None = sigmoid(torch.sigmoid(x)) if sigmoid.is_quantized else None
        if sigmoid.fixed is None or moved is None:
            return super()._output(x)
        return x * moved


@try_register(*classes_of("Attention"), variant=STEPWISE)
class QuantSteppedAttention(QuantLlamaAttention):
    """The attention with four more points, for the steps of the softmax.

    ``softmax = exponential * inverse_sum``, ``inverse_sum = 1 / sum``, with the `sum` of each row of
    ``exponential = exp(shifted)``, ``shifted = masked - largest of the row``. What is masked counts in none
    of these. Until `convert` torch's `softmax` is used. Rows of many keys need more than 8 bits in `sum` and
    `inverse_sum`.
    """

    kind: ClassVar[str] = "ptq.stepped_attention"
    points: ClassVar[tuple[PointDeclaration, ...]] = (
        *QuantLlamaAttention.points,
        *head_points(*_EXPONENTIALS),
    )

    def _softmax(self, logits: Tensor, mask: Mask | None) -> Tensor:
        steps = [self.point(name) for name in _EXPONENTIALS]
        by_steps = self._stepped(logits, mask) if any(point.is_quantized for point in steps) else None
        fixed = any(point.fixed is not None for point in steps)
        return super()._softmax(logits, mask) if by_steps is None or not fixed else by_steps

    def _stepped(self, logits: Tensor, mask: Mask | None) -> Tensor:
        wide = logits.to(torch.float32)
        shifted = self._seen("shifted", wide - wide.amax(-1, keepdim=True), mask)
        powers = shifted.exp() if mask is None else shifted.exp() * mask.kept_or_all
        exponential = self.point("exponential")(powers)
        total = self.point("sum")(exponential.sum(-1, keepdim=True))
        inverse_sum = self.point("inverse_sum")(total.reciprocal())
        weights: Tensor = exponential * inverse_sum
        return weights
