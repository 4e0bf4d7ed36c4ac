"""The architectures that files of GGUF are written for: their tensors and what their configs become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

_OUTSIDE: Final = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_HEAD_NORMS: Final = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_QKV: Final = frozenset({"attn_q", "attn_k", "attn_v"})
_EVERY_BIAS: Final = _QKV | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}


@attrs.frozen(kw_only=True)
class Architecture:
    """A family of models as llama.cpp computes it.

    Attributes:
        name: what llama.cpp calls it.
        pairs_neighbours: whether it rotates each two neighbouring values of a head. The models of
            transformers rotate a value of the first half with one of the second, and rows of q and k are
            reordered.
        layer: the modules of a layer, by their paths in it, with their names in a file.
        outside: the modules outside of the layers.
        biases: which of them may have a bias.
    """

    name: str
    pairs_neighbours: bool = False
    layer: Mapping[str, str] = attrs.field(factory=lambda: _LAYER)
    outside: Mapping[str, str] = attrs.field(factory=lambda: _OUTSIDE)
    biases: frozenset[str] = frozenset()

    def name_of(self, tensor: str) -> str | None:
        """Return what a file calls a tensor of a state dict; None where the architecture has none such.

        >>> ARCHITECTURES["llama"].name_of("model.layers.3.self_attn.q_proj.weight")
        'blk.3.attn_q.weight'
        """
        path, _, kind = tensor.rpartition(".")
        named = self._module_of(path)
        known = named is not None and (
            kind == "weight" or (kind == "bias" and self._part(named) in self.biases)
        )
        return f"{named}.{kind}" if known else None

    def _module_of(self, path: str) -> str | None:
        if not path.startswith("model.layers."):
            return self.outside.get(path)
        index, _, inner = path.removeprefix("model.layers.").partition(".")
        named = self.layer.get(inner)
        return f"blk.{index}.{named}" if index.isdecimal() and named is not None else None

    @staticmethod
    def _part(named: str) -> str:
        return named.rpartition(".")[2]

    def heads_of(self, named: str) -> str | None:
        """Return the field of a config with the heads of a tensor whose rows are reordered; else None.

        >>> ARCHITECTURES["llama"].heads_of("blk.3.attn_k.weight")
        'num_key_value_heads'
        """
        if not self.pairs_neighbours:
            return None
        part = self._part(named.rpartition(".")[0])
        return {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(part)


_LLAMA: Final = Architecture(name="llama", pairs_neighbours=True, biases=_EVERY_BIAS)

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture(name="qwen2", biases=_QKV),
    "qwen3": Architecture(name="qwen3", layer={**_LAYER, **_HEAD_NORMS}),
}
"""By the `model_type` of a config of transformers."""
