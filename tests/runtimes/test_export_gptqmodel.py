"""`GPTQFormat()` and `AWQFormat()`: transformers with GPTQModel loads the folders, and gives the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
import torch
from torch import nn

from tico_config import DType
from tico_export import AWQFormat, ExportTarget, GPTQFormat, export
from tico_modules import QuantizedLinear

pytest.importorskip("gptqmodel", reason="nox -s 'runtimes(gptqmodel)' installs it")
transformers = pytest.importorskip("transformers", reason="nox -s 'runtimes(gptqmodel)' installs it")

TOKENS: Final = torch.arange(48).view(2, 24) * 7 % 64
SIZES: Final = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def _model(family: str, dtype: DType, group_size: int | None, left: str = "lm_head") -> nn.Module:
    """Return a random model with integers in the place of its linear layers, but for those named `left`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config").from_dict(SIZES)
        model: nn.Module = getattr(transformers, f"{family}ForCausalLM")(config)
    for path, each in list(model.named_modules()):
        if isinstance(each, nn.Linear) and not path.endswith(("lm_head", left)):
            made = QuantizedLinear.from_float(each, dtype, symmetric=dtype.signed, group_size=group_size)
            model.set_submodule(path, made)
    return model.eval()


CASES: Final[dict[str, tuple[ExportTarget, DType, int | None]]] = {
    "GPTQ, 4 bits": (GPTQFormat(), DType.int(4), 32),
    "GPTQ, 4 bits, version 2": (GPTQFormat(version=2), DType.int(4), 32),
    "GPTQ, 4 bits with zero points": (GPTQFormat(version=2), DType.uint(4), 32),
    "GPTQ, 8 bits, a scale a row": (GPTQFormat(), DType.int(8), None),
    "GPTQ, 3 bits": (GPTQFormat(), DType.int(3), 32),
    "GPTQ, 2 bits": (GPTQFormat(), DType.int(2), 32),
    "AWQ, 4 bits": (AWQFormat(), DType.int(4), 32),
    "AWQ, 4 bits with zero points": (AWQFormat(), DType.uint(4), 32),
    "AWQ, 4 bits, a scale a row": (AWQFormat(), DType.int(4), None),
}


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("case", CASES)
def test_the_library_gives_the_logits_of_the_model(case: str, family: str, tmp_path: Path) -> None:
    """Within what float16 rounds."""
    target, dtype, group_size = CASES[case]
    model = _model(family, dtype, group_size)
    result = export(model, tmp_path / "m", target, args=(TOKENS,), verify="require")
    print(case, family, result, f"KL {result.kl:.1e}")  # noqa: T201  # for the record
    assert result.verified
    assert result.sqnr > 55


@pytest.mark.parametrize("target", [GPTQFormat(), AWQFormat()])
def test_layers_that_are_left_in_float_are_told_from_others(target: ExportTarget, tmp_path: Path) -> None:
    """By the config: a reader that took them for integers would have no weights for them."""
    model = _model("Llama", DType.int(4), 32, left="v_proj")
    result = export(model, tmp_path / "m", target, args=(TOKENS,), verify="require")
    assert result.sqnr > 55
