"""Wrappers of the LLaMA family's MLP and decoder layer."""

from __future__ import annotations

import inspect
from typing import ClassVar

from torch import Tensor, nn

from tico_config import Problem, UnsupportedError
from tico_wrapq.base import ACT_OUT, PointDeclaration, QuantModuleBase, Role, try_register
from tico_wrapq.llama._family import classes_of


@try_register(*classes_of("MLP"))
class QuantLlamaMLP(QuantModuleBase):
    """``down_proj(act_fn(gate_proj(x)) * up_proj(x))`` with a point for the product."""

    kind: ClassVar[str] = "ptq.llama_mlp"
    points: ClassVar[tuple[PointDeclaration, ...]] = (PointDeclaration("product", Role.OTHER),)
    replaces_forward: ClassVar[bool] = True
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def adopt(self, module: nn.Module) -> None:
        """Keep the four modules under their own names."""
        for name in ("gate_proj", "up_proj", "down_proj", "act_fn"):
            self.add_module(name, module.get_submodule(name))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated product, projected down."""
        gated: Tensor = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        output: Tensor = self.down_proj(self.point("product")(gated))
        return output


@try_register(*classes_of("DecoderLayer"))
class QuantLlamaDecoderLayer(QuantModuleBase):
    """Attention and MLP, each behind a norm and added to its input, with a point for either sum."""

    kind: ClassVar[str] = "ptq.llama_decoder_layer"
    points: ClassVar[tuple[PointDeclaration, ...]] = (
        PointDeclaration("attention_sum", Role.OTHER),
        ACT_OUT,
    )
    replaces_forward: ClassVar[bool] = True
    self_attn: nn.Module
    mlp: nn.Module
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module
    defaults: dict[str, object]

    def adopt(self, module: nn.Module) -> None:
        """Keep the four modules under their own names."""
        for name in ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm"):
            self.add_module(name, module.get_submodule(name))
        self.defaults = _defaults(module)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return the hidden states after the layer; every other argument goes to the attention.

        Raises:
            UnsupportedError: the float module does not take so many positional arguments.
        """
        named = dict(zip(self.defaults, args, strict=False))
        if len(args) > len(self.defaults) or named.keys() & kwargs.keys():
            raise self._misplaced(len(args))
        given = {**self.defaults, **named, **kwargs}
        attended: tuple[Tensor, Tensor | None] = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states), **given
        )
        middle: Tensor = self.point("attention_sum")(hidden_states + attended[0])
        projected: Tensor = self.mlp(self.post_attention_layernorm(middle))
        output: Tensor = self.point("act_out")(middle + projected)
        return output

    def _misplaced(self, count: int) -> UnsupportedError:
        names = ", ".join(("hidden_states", *self.defaults))
        sentence = f"{count + 1} arguments were given by position, of those that it takes so: {names}; "
        sentence += "or one of these by its name too"
        expected = f"at most {len(self.defaults) + 1} arguments by position, none of them by its name too"
        return UnsupportedError(
            Problem(module=self.path, value=count + 1, expected=expected, sentence=sentence)
        )


def _defaults(layer: nn.Module) -> dict[str, object]:
    """Return the defaults of what the float layer takes by position behind the hidden states."""
    if isinstance(layer, QuantLlamaDecoderLayer):
        return layer.defaults
    _, _, *others = inspect.signature(type(layer).forward).parameters.values()
    return {each.name: each.default for each in others if each.kind is each.POSITIONAL_OR_KEYWORD}
