"""The embedded LLaMA with 4-bit weights and with 8-bit layers, in folders for transformers and vLLM.

python examples/export_compressed_tensors.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from language_models import WIKI_LLAMA, load, text_of
from tico.quantization import GPTQConfig, PTQConfig, calibrate, convert, prepare
from tico.quantization.config import DType, PerToken, affine, no_quant
from tico_config import BaseConfig
from tico_export import CompressedTensors, ExportResult, export

PER_TOKEN = affine(DType.int(8), granularity=PerToken())
FLOAT_ENDS = {"model.embed_tokens": no_quant(), "lm_head": no_quant()}
SCHEMES: dict[str, BaseConfig] = {
    "w4_group64": GPTQConfig(bits=4, group_size=64, symmetric=True, show_progress=False),
    "w8a8_per_token": PTQConfig(
        activation=no_quant(),
        weight=affine(DType.int(8)),
        overrides={"*_proj.act_in": PER_TOKEN, **FLOAT_ENDS},
    ),
}


def write(name: str, folder: Path, tokens: int = 8192) -> ExportResult:
    """Quantize the model by the scheme `name` on so many tokens, and write it with its tokenizer."""
    loaded = load(WIKI_LLAMA, 128)
    seen, unseen = loaded.windows(text_of("calibration"), tokens), loaded.windows(text_of("heldout"), 1024)
    prepared = prepare(loaded.model, SCHEMES[name], args=(seen[:1],))
    calibrate(prepared, [{"input_ids": seen, "use_cache": False}])
    return export(
        convert(prepared),
        folder / name,
        CompressedTensors(),
        args=(unseen,),
        kwargs={"use_cache": False},
        verify="require",
    )


def main(folder: Path) -> None:
    """Write both folders, and print what transformers made of them."""
    for name in SCHEMES:
        result = write(name, folder)
        print(result)
        print("perplexities by the model and by transformers:", result.perplexities)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
