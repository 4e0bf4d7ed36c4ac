"""Wrappers of the LLaMA family's own modules."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from tico_wrapq._point import PointDeclaration, Role
from tico_wrapq._quant_module_base import QuantModuleBase
from tico_wrapq._registry import try_register

_PRODUCT = PointDeclaration("product", Role.OTHER)


@try_register("transformers.models.llama.modeling_llama.LlamaMLP")
class QuantLlamaMLP(QuantModuleBase):
    """``down_proj(act_fn(gate_proj(x)) * up_proj(x))`` with a point for the product."""

    kind: ClassVar[str] = "ptq.llama_mlp"
    points: ClassVar[tuple[PointDeclaration, ...]] = (_PRODUCT,)
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return that `module` computes something else than LLaMA's MLP, or None."""
        forward = type(module).forward
        own = "forward" in vars(module) or forward.__qualname__ != "LlamaMLP.forward"
        return "it has a forward of its own" if own and not isinstance(module, cls) else None

    def adopt(self, module: nn.Module) -> None:
        """Keep the four modules under their own names."""
        for name in ("gate_proj", "up_proj", "down_proj", "act_fn"):
            self.add_module(name, module.get_submodule(name))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated product, projected down."""
        gated: Tensor = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        output: Tensor = self.down_proj(self.point("product")(gated))
        return output
