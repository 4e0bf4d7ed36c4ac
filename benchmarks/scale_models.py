"""Float checkpoints for `scale.py`: random LLaMAs, written shard by shard, and SmolLM2."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from real_models import CALIBRATION_ARTICLES, smollm2_directory, wiki_articles

WIDTH: Final = 1024
HIDDEN: Final = 2816
HEADS: Final = 8
KEY_HEADS: Final = 4
VOCABULARY: Final = 1024
LAYERS_A_SHARD: Final = 8


def layer_shapes(width: int, hidden: int, heads: int, key_heads: int) -> dict[str, tuple[int, int]]:
    """Return the shape of each weight of a layer, by its name below the layer."""
    keys = width // heads * key_heads
    return {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }


def write_random(folder: Path, gigabytes: float) -> int:
    """Write a random LLaMA in bfloat16 of about so many GB (2^30 bytes); return its bytes.

    A shard holds eight layers, and no more than one shard is ever in memory.
    """
    shapes = layer_shapes(WIDTH, HIDDEN, HEADS, KEY_HEADS)
    layer_bytes = 2 * sum(rows * columns for rows, columns in shapes.values())
    layers = max(2, round(gigabytes * 2**30 / layer_bytes))
    folder.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    listed: dict[str, str] = {}
    size = 0
    for number, shard in enumerate(_shards(layers)):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        listed |= dict.fromkeys(shard, name)
        size += sum(tensor.nbytes for tensor in shard.values())
    index = {"metadata": {"total_size": size}, "weight_map": listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return size


def _shards(layers: int) -> Iterator[dict[str, Tensor]]:
    chance = torch.Generator().manual_seed(0)
    shapes = layer_shapes(WIDTH, HIDDEN, HEADS, KEY_HEADS)
    for start in range(0, layers, LAYERS_A_SHARD):
        shard: dict[str, Tensor] = {}
        for number in range(start, min(start + LAYERS_A_SHARD, layers)):
            place = f"model.layers.{number}"
            for name, shape in shapes.items():
                shard[f"{place}.{name}.weight"] = _random(chance, shape)
            for name in ("input_layernorm", "post_attention_layernorm"):
                shard[f"{place}.{name}.weight"] = torch.ones(WIDTH, dtype=torch.bfloat16)
        yield shard
    yield {
        "model.embed_tokens.weight": _random(chance, (VOCABULARY, WIDTH)),
        "lm_head.weight": _random(chance, (VOCABULARY, WIDTH)),
        "model.norm.weight": torch.ones(WIDTH, dtype=torch.bfloat16),
    }


def _random(chance: torch.Generator, shape: tuple[int, int]) -> Tensor:
    return torch.randn(shape, generator=chance).mul_(0.02).to(torch.bfloat16)


def random_tokens(texts: int, length: int) -> list[Tensor]:
    """Return random `texts` of so many tokens, each (1, length)."""
    chance = torch.Generator().manual_seed(0)
    return [torch.randint(0, VOCABULARY, (1, length), generator=chance) for _ in range(texts)]


def write_smollm2(folder: Path, layers: int | None = None) -> int:
    """Write SmolLM2, or its first `layers`, in float32 in shards of 100 MB; return the bytes of its files."""
    model = AutoModelForCausalLM.from_pretrained(smollm2_directory())
    if layers is not None:
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
    model.save_pretrained(folder, max_shard_size="100MB")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def smollm2_tokens(texts: int, length: int) -> list[Tensor]:
    """Return the first tokens of calibration text for SmolLM2: so many texts, each (1, length).

    Where there is too little of it, it begins anew.
    """
    tokenizer = AutoTokenizer.from_pretrained(smollm2_directory())
    found: list[int] = []
    for article in wiki_articles()[CALIBRATION_ARTICLES]:
        found += tokenizer(article)["input_ids"]
        if len(found) >= texts * length:
            break
    needed = itertools.islice(itertools.cycle(found), texts * length)
    return list(torch.tensor(list(needed)).view(texts, 1, length))
