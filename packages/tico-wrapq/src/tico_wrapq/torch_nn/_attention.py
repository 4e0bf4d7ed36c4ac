"""Torch's own attention and encoder layer, taken apart into modules that have wrappers of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tico_config import Found, PerToken, Problem, UnsupportedError
from tico_modules import PackedWeight, QuantizedModule, children, parameter
from tico_wrapq.base import Mode, PointDeclaration, QuantModuleBase, Role, register

_Attended: TypeAlias = tuple[Tensor, Tensor | None]
_STEPS = (
    PointDeclaration("scaled_query", Role.OTHER),
    PointDeclaration("logits", Role.OTHER, channels=None),
    PointDeclaration("probabilities", Role.OTHER, channels=None),
    PointDeclaration("context", Role.OTHER),
)


@register(nn.MultiheadAttention)
class QuantMultiheadAttention(QuantModuleBase):
    """``softmax(q kᵀ / sqrt(head_dim) + mask) v`` with a point for every step but the mask, which holds -inf.

    The three projections are one linear layer `in_proj`, which stacks them as torch does. As long as nothing
    is quantized or watched, the output is that of `torch.nn.functional.multi_head_attention_forward`.
    """

    kind: ClassVar[str] = "ptq.multihead_attention"
    points: ClassVar[tuple[PointDeclaration, ...]] = _STEPS
    makes_parts: ClassVar[bool] = True
    replaces_forward: ClassVar[bool] = True
    in_proj: nn.Module
    out_proj: nn.Module
    num_heads: int
    batch_first: bool

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return why torch's formula does not hold for `module`, or None."""
        if isinstance(module, cls):
            return None
        if not isinstance(module, nn.MultiheadAttention):
            return f"it is a {type(module).__name__}"
        if not module._qkv_same_embed_dim:
            return "its keys or values have a width of their own (kdim, vdim)"
        extra = module.bias_k is not None or module.add_zero_attn
        return "it adds keys of its own (add_bias_kv, add_zero_attn)" if extra else None

    def adopt(self, module: nn.Module) -> None:
        """Keep the projections, the stacked ones as a linear layer."""
        if isinstance(module, QuantMultiheadAttention):
            self.in_proj, self.out_proj = module.in_proj, module.out_proj
            self.num_heads, self.batch_first = module.num_heads, module.batch_first
            return
        if not isinstance(module, nn.MultiheadAttention):
            found = Found(type(module).__name__)
            raise UnsupportedError(Problem(module=self.path, value=found, expected="nn.MultiheadAttention"))
        self.in_proj = _stacked(module)
        self.out_proj = module.out_proj
        self.num_heads, self.batch_first = module.num_heads, module.batch_first

    @property
    def in_proj_weight(self) -> Tensor:
        """The stacked weights of the projections, as torch has them."""
        return _tensor(self.in_proj, "weight")

    def rounded_from(self, original: nn.Module) -> Mapping[PackedWeight, Tensor]:
        """Return the stacked weights of the projections of `original`, for the codes of `in_proj`."""
        weight = parameter(original, "in_proj_weight")
        inner = self.in_proj
        if weight is None or not isinstance(inner, QuantizedModule):
            return {}
        return {inner.packed: weight.detach()}

    @property
    def in_proj_bias(self) -> Tensor | None:
        """The stacked biases of the projections."""
        return _optional(self.in_proj, "bias")

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **kwargs: bool,
    ) -> _Attended:
        """Return the attended values and, if `need_weights`, the probabilities; arguments are torch's."""
        swapped = self.batch_first and query.ndim == 3
        if swapped:
            query, key, value = _swapped(query, key, value)
        if self.mode is Mode.NO_QUANT:
            masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}
            output, weights = self._as_torch(query, key, value, masks, need_weights=need_weights, **kwargs)
        else:
            mask = _additive(attn_mask, key_padding_mask, query, self.num_heads)
            output, weights = self._by_steps(query, key, value, mask, needs_weights=need_weights)
            weights = _averaged(weights, query, kwargs) if need_weights else None
        return (output.transpose(0, 1) if swapped else output), weights

    def _as_torch(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        masks: Mapping[str, Tensor | None],
        *,
        need_weights: bool,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> _Attended:
        found: _Attended = F.multi_head_attention_forward(
            query,
            key,
            value,
            query.shape[-1],
            self.num_heads,
            _tensor(self.in_proj, "weight"),
            _optional(self.in_proj, "bias"),
            None,
            None,
            False,
            0.0,
            _tensor(self.out_proj, "weight"),
            _optional(self.out_proj, "bias"),
            training=False,
            need_weights=need_weights,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
            key_padding_mask=masks["key_padding_mask"],
            attn_mask=masks["attn_mask"],
        )
        return found

    def _by_steps(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, needs_weights: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the output and the probabilities (batch * heads, queries, keys).

        A query that may see no key gets zeros, as from `scaled_dot_product_attention`. With `needs_weights`
        it gets NaN, as in torch, which calls another function then.
        """
        q, k, v = (self._heads(part) for part in self._projected(query, key, value))
        q = self.point("scaled_query")(q * math.sqrt(1.0 / q.shape[-1]))
        logits = self._seen(torch.bmm(q, k.transpose(-2, -1)), mask)
        masked = logits if mask is None else logits + mask
        shares = torch.softmax(masked, -1)
        if mask is not None and not needs_weights:
            shares = shares.masked_fill((mask == -torch.inf).all(-1, keepdim=True), 0.0)
        probabilities = self.point("probabilities")(shares)
        context = self.point("context")(torch.bmm(probabilities, v))
        merged = context.transpose(0, 1).reshape(query.shape)
        output: Tensor = self.out_proj(merged)
        return output, probabilities

    def _seen(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """Return the logits passed through their point, which sees 0 in the place of those masked."""
        point = self.point("logits")
        static = point.fixed is not None and not isinstance(point.fixed.granularity, PerToken)
        if mask is None or static or not point.is_quantized:
            plain: Tensor = point(logits)
            return plain
        moved: Tensor = point(logits.masked_fill(mask < torch.finfo(mask.dtype).min / 2, 0.0))
        return logits if point.fixed is None else moved

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if query is key and key is value:
            stacked: Tensor = self.in_proj(query)
            q, k, v = stacked.chunk(3, -1)
            return q, k, v
        q, k, v = (self.in_proj(x).chunk(3, -1)[index] for index, x in enumerate((query, key, value)))
        return q, k, v

    def _heads(self, x: Tensor) -> Tensor:
        """Return (length, batch, width) or (length, width) as (batch * heads, length, head_dim)."""
        batch = x.shape[1] if x.ndim == 3 else 1
        split = x.reshape(x.shape[0], batch * self.num_heads, x.shape[-1] // self.num_heads)
        return split.transpose(0, 1)

    def work(self, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> int:
        """Return the multiply-accumulates of the two products between tensors."""
        query, key = (
            args[i] if len(args) > i else kwargs.get(name) for i, name in enumerate(("query", "key"))
        )
        if not (isinstance(query, Tensor) and isinstance(key, Tensor)):
            return 0
        keys = key.shape[-2] if self.batch_first or key.ndim == 2 else key.shape[0]
        return 2 * query.numel() * keys

    @property
    def multiplies_integers(self) -> bool:
        """Whether both products have both operands on a grid; keys and values have that of `in_proj`."""
        return self.point("scaled_query").is_quantized and self.point("probabilities").is_quantized


def _stacked(attention: nn.MultiheadAttention) -> nn.Linear:
    weight = attention.in_proj_weight
    has_bias = parameter(attention, "in_proj_bias") is not None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias, device="meta")
    linear.weight = weight
    if has_bias:
        linear.bias = attention.in_proj_bias
    return linear.train(attention.training)


def _swapped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Swap the first two axes; what was one tensor stays one, so that it is projected once."""
    moved = {id(x): x.transpose(0, 1) for x in (query, key, value)}
    return moved[id(query)], moved[id(key)], moved[id(value)]


def _additive(attn_mask: Tensor | None, padding: Tensor | None, query: Tensor, heads: int) -> Tensor | None:
    """Return both masks as one to be added, broadcastable to (batch * heads, queries, keys)."""
    parts = []
    if attn_mask is not None:
        parts.append(_as_float(attn_mask, query.dtype))
    if padding is not None:
        rows = _as_float(padding, query.dtype).reshape(-1, 1, 1, padding.shape[-1])
        parts.append(rows.expand(-1, heads, -1, -1).reshape(-1, 1, padding.shape[-1]))
    return sum(parts[1:], parts[0]) if parts else None


def _as_float(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)


def _averaged(weights: Tensor, query: Tensor, kwargs: Mapping[str, bool]) -> Tensor:
    """Return the probabilities by batch, if there is one, and averaged over heads unless told not to."""
    batch = query.shape[1] if query.ndim == 3 else 1
    by_head = weights.view(batch, -1, *weights.shape[1:])
    found = by_head.mean(1) if kwargs.get("average_attn_weights", True) else by_head
    return found if query.ndim == 3 else found.squeeze(0)


def _tensor(layer: nn.Module, name: str) -> Tensor:
    value: Tensor = getattr(layer, name)
    return value


def _optional(layer: nn.Module, name: str) -> Tensor | None:
    value: Tensor | None = getattr(layer, name)
    return value


_ACTIVATIONS = {F.relu: nn.ReLU, F.gelu: nn.GELU, torch.relu: nn.ReLU}
_LAYER_PARTS = ("self_attn", "linear1", "dropout", "linear2", "norm1", "norm2", "dropout1", "dropout2")


@register(nn.TransformerEncoderLayer)
class QuantTransformerEncoderLayer(QuantModuleBase):
    """Attention and feed-forward, each added to its input, with a point for each sum."""

    kind: ClassVar[str] = "ptq.transformer_encoder_layer"
    points: ClassVar[tuple[PointDeclaration, ...]] = (
        PointDeclaration("attention_sum", Role.OTHER),
        PointDeclaration("feed_forward_sum", Role.OTHER),
    )
    makes_parts: ClassVar[bool] = True
    replaces_forward: ClassVar[bool] = True
    self_attn: nn.Module
    linear1: nn.Module
    dropout: nn.Module
    linear2: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    dropout1: nn.Module
    dropout2: nn.Module
    activation: nn.Module

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return why torch's formula does not hold for `module`, or None."""
        if isinstance(module, cls):
            return None
        return "its activation is no module, relu or gelu" if _activation(module) is None else None

    def adopt(self, module: nn.Module) -> None:
        """Keep the parts under their own names, the activation as a module."""
        activation = _activation(module)
        if activation is None or not isinstance(module, nn.TransformerEncoderLayer | type(self)):
            found = Found(type(module).__name__)
            raise UnsupportedError(Problem(module=self.path, value=found, expected="an encoder layer"))
        for name in _LAYER_PARTS:
            self.add_module(name, children(module)[name])
        self.activation = activation
        self.norm_first: bool = module.norm_first

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return the hidden states after the layer; arguments are torch's."""
        masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
        x = src
        if self.norm_first:
            x = self.point("attention_sum")(x + self._attended(self.norm1(x), masks))
            last: Tensor = self.point("feed_forward_sum")(x + self._fed(self.norm2(x)))
            return last
        x = self.norm1(self.point("attention_sum")(x + self._attended(x, masks)))
        normed: Tensor = self.norm2(self.point("feed_forward_sum")(x + self._fed(x)))
        return normed

    def _attended(self, x: Tensor, masks: Mapping[str, Tensor | bool | None]) -> Tensor:
        found: tuple[Tensor, None] = self.self_attn(x, x, x, need_weights=False, **masks)
        output: Tensor = self.dropout1(found[0])
        return output

    def _fed(self, x: Tensor) -> Tensor:
        output: Tensor = self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))
        return output


def _activation(layer: nn.Module) -> nn.Module | None:
    """Return the activation of an encoder layer as a module, None where there is none for it."""
    found: object = getattr(layer, "activation", None)
    if isinstance(found, nn.Module):
        return found
    kind = next((kind for function, kind in _ACTIVATIONS.items() if function is found), None)
    return None if kind is None else kind().train(layer.training)
