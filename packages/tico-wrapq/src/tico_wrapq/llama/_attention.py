"""The wrapper of the LLaMA family's attention."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tico_config import Found, PerToken, Problem, UnsupportedError
from tico_wrapq.base import PointDeclaration, QuantModuleBase, Role, try_register
from tico_wrapq.llama._family import classes_of

_EXACT = ("eager", "sdpa", None)
_HEADS = -3  # the axis whose channels are told apart, in tensors of shape (batch, heads, tokens, …)


class _Missing(enum.Enum):
    """Stands for an argument that was not given, where None means something."""

    MISSING = enum.auto()


class KeyValueCache(Protocol):
    """What the attention needs of a cache of transformers."""

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Add new keys and values (batch, heads, tokens, head_dim); return all that the layer attends to."""


def head_points(*names: str) -> tuple[PointDeclaration, ...]:
    """Return points for tensors of shape (batch, heads, tokens, …)."""
    return tuple(PointDeclaration(name, Role.OTHER, channels=_HEADS) for name in names)


_ROTARY = (
    PointDeclaration("cos", Role.OTHER),
    PointDeclaration("sin", Role.OTHER),
    *head_points("q_negated", "q_turned", "q_cos", "q_sin", "q_rotated"),
    *head_points("k_negated", "k_turned", "k_cos", "k_sin", "k_rotated"),
)


@try_register(*classes_of("Attention"))
class QuantLlamaAttention(QuantModuleBase):
    """Grouped-query attention with rotary positions (Su et al., arXiv 2104.09864), a point for each step.

    In the order of the computation, with the rotation of `q` and `k` as
    ``rotated = x * cos + turned * sin`` and ``turned = concat(-second half, first half)``:

    - `cos`, `sin`: what the positions give,
    - `q_negated`, `q_turned`, `q_cos`, `q_sin`, `q_rotated`: minus the second half, the concatenation, both
      products and their sum; the same with `k_`,
    - `key`, `value`: what the cache holds,
    - `logits`, `scaled`, `masked`: the products of queries and keys, these times `scaling`, those masked,
    - `softmax`, `attn_out`: the weights, and the weighted sum of the values.

    A masked logit counts nowhere: no observer sees it, it takes no part of a grid's range, and its weight
    after the softmax is exactly 0. So a token's output does not depend on later tokens. Families differ in
    data only: `q_norm` and `k_norm` where the module has them (Qwen3), no rotation in layers that use none
    (SmolLM3), windows by the mask that the model makes.
    """

    kind: ClassVar[str] = "ptq.llama_attention"
    points: ClassVar[tuple[PointDeclaration, ...]] = (
        *_ROTARY,
        *head_points("key", "value", "logits", "scaled", "masked", "softmax", "attn_out"),
    )
    replaces_forward: ClassVar[bool] = True
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    config: object
    layer_idx: int
    head_dim: int
    scaling: float
    attention_dropout: float
    num_key_value_groups: int
    requires_mask: bool

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return that another attention than eager and sdpa is asked for, or None."""
        implementation = _implementation(getattr(module, "config", None))
        if implementation in _EXACT:
            return None
        return f"its attention is {implementation}; the points need 'eager' or 'sdpa'"

    @classmethod
    def points_of(cls, module: nn.Module) -> tuple[PointDeclaration, ...]:
        """Return the points; without those of the rotation in a layer that has none."""
        rotates = getattr(module, "use_rope", True)
        return cls.points if rotates else tuple(each for each in cls.points if each not in _ROTARY)

    def adopt(self, module: nn.Module) -> None:
        """Keep the projections and norms under their own names, and what says how to use them."""
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
            if name in module._modules:
                self.add_module(name, module.get_submodule(name))
        for name in (
            "config",
            "layer_idx",
            "head_dim",
            "scaling",
            "attention_dropout",
            "num_key_value_groups",
        ):
            setattr(self, name, getattr(module, name))
        self.requires_mask = _requires_mask(module)
        self.is_causal = bool(getattr(module, "is_causal", True))
        self.use_rope = bool(getattr(module, "use_rope", True))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | _Missing | None = _Missing.MISSING,
        past_key_values: KeyValueCache | None = None,
        cache: KeyValueCache | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output (batch, tokens, width) and the weights (batch, heads, tokens, keys).

        The cache has either name: `cache` is that of transformers 5.24 and later.

        Raises:
            UnsupportedError: an argument is missing that the float module needs, or there is a cache by
                another name.
        """
        self._refuse_caches(kwargs)
        kept = past_key_values if cache is None else cache
        if attention_mask is _Missing.MISSING:
            self._refuse_missing("attention_mask", needed=self.requires_mask)
            attention_mask = None
        if position_embeddings is None:
            self._refuse_missing("position_embeddings", needed=self.use_rope)
        query, key = self._heads("q", hidden_states), self._heads("k", hidden_states)
        value = self._heads("v", hidden_states)
        if self.use_rope and position_embeddings is not None:
            cos, sin = (
                self.point(name)(each).unsqueeze(1)
                for name, each in zip(("cos", "sin"), position_embeddings, strict=True)
            )
            query, key = self._rotated("q", query, cos, sin), self._rotated("k", key, cos, sin)
        key, value = self.point("key")(key), self.point("value")(value)
        if kept is not None:
            key, value = kept.update(key, value, self.layer_idx)
        weights = self._weights(query, _repeated(key, self.num_key_value_groups), attention_mask)
        mixed = torch.matmul(weights, _repeated(value, self.num_key_value_groups))
        mixed = self.point("attn_out")(mixed).transpose(1, 2)
        output: Tensor = self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1).contiguous())
        return output, weights

    def work(self, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> int:
        """Return those of queries with keys, and of weights with values."""
        weights = output[1] if isinstance(output, tuple) else None
        return 2 * weights.numel() * self.head_dim if isinstance(weights, Tensor) else 0

    @property
    def multiplies_integers(self) -> bool:
        """Whether queries, keys, weights and values have a grid."""
        names = ("q_rotated", "key", "softmax", "value")
        points = dict(self.named_points())
        return all(points[name].is_quantized for name in names if name in points)

    def _refuse_caches(self, others: Mapping[str, object]) -> None:
        """Refuse a cache among arguments that are not read: what it holds would be left out in silence."""
        for name, value in others.items():
            if hasattr(value, "get_seq_length"):
                raise UnsupportedError(
                    Problem(
                        module=self.path,
                        field=name,
                        value=Found(f"a {type(value).__name__}"),
                        expected="a cache under the name of cache or past_key_values",
                        remedy="pass it by one of these names, or install a transformers that does",
                    )
                )

    def _refuse_missing(self, name: str, *, needed: bool) -> None:
        if needed:
            found, remedy = Found("none"), f"give {name}, as the float module needs it"
            sentence = f"{name} is missing"
            raise UnsupportedError(
                Problem(
                    module=self.path,
                    field=name,
                    value=found,
                    expected="given",
                    sentence=sentence,
                    remedy=remedy,
                )
            )

    def _heads(self, name: str, hidden_states: Tensor) -> Tensor:
        """Return the projection `name` of the hidden states as (batch, heads, tokens, head_dim)."""
        modules: dict[str, nn.Module | None] = self._modules
        projected: Tensor = self.get_submodule(f"{name}_proj")(hidden_states)
        heads = projected.view(*hidden_states.shape[:-1], -1, self.head_dim)
        norm = modules.get(f"{name}_norm")
        return (heads if norm is None else norm(heads)).transpose(1, 2)

    def _rotated(self, name: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        negated = self.point(f"{name}_negated")(-x[..., half:])
        turned = self.point(f"{name}_turned")(torch.cat((negated, x[..., :half]), dim=-1))
        along, across = self.point(f"{name}_cos")(x * cos), self.point(f"{name}_sin")(turned * sin)
        rotated: Tensor = self.point(f"{name}_rotated")(along + across)
        return rotated

    def _weights(self, query: Tensor, key: Tensor, given: Tensor | None) -> Tensor:
        """Return the attention weights; those of masked keys are 0."""
        mask = self._mask(given, query, key)
        logits = self._seen("logits", torch.matmul(query, key.transpose(2, 3)), mask)
        logits = self._seen("scaled", logits * self.scaling, mask)
        if mask is not None:
            logits = logits + mask.added
        logits = self._seen("masked", logits, mask)
        if mask is not None and self.point("masked").fixed is not None:
            logits = torch.minimum(logits, mask.limit)
        weights = self._softmax(logits, mask).to(query.dtype)
        if mask is not None and mask.of_sdpa:
            weights = weights * mask.kept.amax(-1, keepdim=True)
        weights = self.point("softmax")(weights)
        return nn.functional.dropout(weights, self.attention_dropout, self.training)

    def _softmax(self, logits: Tensor, mask: Mask | None) -> Tensor:
        """Return the softmax of each row, in float32; the logits of masked keys are the smallest number."""
        return nn.functional.softmax(logits, dim=-1, dtype=torch.float32)

    def _mask(self, given: Tensor | None, query: Tensor, key: Tensor) -> Mask | None:
        sdpa = _implementation(self.config) == "sdpa"
        if given is None and sdpa and self.is_causal and query.shape[2] > 1:
            # Where the mask is causal and nothing else, transformers leaves it to torch to make.
            given = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        if given is None:
            return None
        lowest = torch.finfo(query.dtype).min
        if given.dtype is torch.bool:
            added = torch.zeros_like(given, dtype=query.dtype).masked_fill(~given, lowest)
            return Mask(added=added, left_out=~given, of_sdpa=sdpa)
        return Mask(added=given, left_out=given < lowest / 2, of_sdpa=sdpa)

    def _seen(self, name: str, logits: Tensor, mask: Mask | None) -> Tensor:
        """Return the logits passed through a point that sees 0 in the place of those left out."""
        point = self.point(name)
        # On a static grid what is left out moves no other logit, and it is left out again before the softmax.
        static = point.fixed is not None and not isinstance(point.fixed.granularity, PerToken)
        alone = mask is None or static or not point.is_quantized
        moved: Tensor = point(logits if mask is None or alone else logits * mask.kept)
        return logits if point.fixed is None else moved


class Mask(NamedTuple):
    """A mask in two forms: what is added to the logits, and which of them are left out.

    `of_sdpa`: a row of which nothing is left has weights of 0; otherwise they are equal, as softmax has it.
    """

    added: Tensor
    left_out: Tensor
    of_sdpa: bool

    # A tuple, since torch.compile cannot trace how frozen attrs classes are made. Products and minima are
    # used in the place of `masked_fill`, which takes five times as long. A logit left out that is not finite
    # would have spoilt the float model too.

    @property
    def kept(self) -> Tensor:
        """1 where a logit is kept, 0 where it is left out."""
        return self.left_out.logical_not().to(self.added.dtype)

    @property
    def kept_or_all(self) -> Tensor:
        """The same, but 1 in a whole row of which nothing is kept."""
        return torch.maximum(self.kept, 1 - self.kept.amax(-1, keepdim=True))

    @property
    def limit(self) -> Tensor:
        """The smallest number where a logit is left out, infinity where it is kept."""
        lowest = torch.finfo(self.added.dtype).min
        return torch.full_like(self.added, torch.inf).masked_fill_(self.left_out, lowest)


def _requires_mask(attention: nn.Module) -> bool:
    """Tell whether the float module is never called without a mask, be it None."""
    if isinstance(attention, QuantLlamaAttention):
        return attention.requires_mask
    asked = inspect.signature(type(attention).forward).parameters.get("attention_mask")
    return asked is not None and asked.default is inspect.Parameter.empty


def _implementation(config: object) -> object:
    return getattr(config, "_attn_implementation", None)


def _repeated(x: Tensor, times: int) -> Tensor:
    """Return each head of `x` (batch, heads, tokens, head_dim) `times` times, one after the other."""
    if times == 1:
        return x
    batch, heads, tokens, width = x.shape
    return x[:, :, None].expand(batch, heads, times, tokens, width).reshape(batch, -1, tokens, width)
