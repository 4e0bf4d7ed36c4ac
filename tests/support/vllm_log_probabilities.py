"""The log probability that vLLM gives each token of rows, the first of a row excepted; run as a program.

    python vllm_log_probabilities.py FOLDER TOKENS RESULT

TOKENS is a JSON file of rows of tokens, RESULT the one to be written. Where the processor lacks instructions
for a kernel of vLLM, what vLLM has loaded is multiplied by torch; the program prints which these are.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

SETTINGS: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_INT4_W4A8": "0",  # the kernel for 4-bit weights rounds its inputs to 8 bits otherwise
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def main(folder: str, tokens: str, result: str) -> None:
    """Write what vLLM makes of the rows."""
    os.environ.update(SETTINGS)
    hide_cuda_builds()
    import vllm

    for name in plain_kernels():
        print(f"multiplied by torch: {name}")  # noqa: T201  # for the record
    rows: list[list[int]] = json.loads(Path(tokens).read_text())
    model = vllm.LLM(
        folder, dtype="bfloat16", enforce_eager=True, skip_tokenizer_init=True, max_model_len=len(rows[0]) + 8
    )
    asked = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, temperature=0)
    answers = model.generate([{"prompt_token_ids": row} for row in rows], asked, use_tqdm=False)
    found = [
        [place[token].logprob for token, place in zip(row[1:], answer.prompt_logprobs[1:], strict=True)]
        for row, answer in zip(rows, answers, strict=True)
    ]
    Path(result).write_text(json.dumps(found))


def hide_cuda_builds() -> None:
    """Have nobody find what comes with vLLM, is not needed for text, and on the index is built for CUDA."""
    sys.modules.update(dict.fromkeys(("torchaudio", "torchcodec", "torchvision")))  # type: ignore[arg-type]


def plain_kernels() -> list[str]:
    """Put torch in the place of kernels that this processor does not run, or not exactly; name them."""
    import torch

    replaced = []
    if not torch.cpu._is_avx512_supported():
        _replace_int4()
        replaced.append("4-bit weights, which need AVX-512")
    if not torch.cpu._is_vnni_supported():
        _replace_int8()
        replaced.append("8-bit layers, whose sums overflow without VNNI")
    return replaced


def _replace_int4() -> None:
    import torch
    from vllm import _custom_ops as ops

    places = torch.arange(8) * 4

    def codes(words: torch.Tensor) -> torch.Tensor:
        return (words.unsqueeze(-1) >> places & 15).flatten(-2)

    def multiply(
        input: torch.Tensor,  # noqa: A002  # vLLM's own names
        q_weight: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        bias: torch.Tensor | None,
        pack_factor: int,
        isa_hint: str,
    ) -> torch.Tensor:
        columns = q_weight.shape[1] // 2  # of blocks of 16 rows
        group = columns // scales.shape[0]
        held = codes(q_weight.view(-1, columns, 2).permute(1, 0, 2).reshape(columns, -1))
        points = torch.full_like(held, 8) if zeros is None else codes(zeros).repeat_interleave(group, 0)
        weight = (held - points).float() * scales.float().repeat_interleave(group, 0)
        output = input.float() @ weight
        return (output if bias is None else output + bias.float()).to(input.dtype)

    ops.cpu_gemm_wna16 = multiply


def _replace_int8() -> None:
    import torch
    from vllm import _custom_ops as ops
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel as Kernel

    process = Kernel.process_weights_after_loading

    def keep(self: Kernel, layer: torch.nn.Module) -> None:
        weight, scale, *_ = self.layer_param_names
        layer.kept = getattr(layer, weight).detach().float().T * getattr(layer, scale).detach().float().T
        process(self, layer)

    def multiply(
        self: Kernel, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        _, _, fixed, fixed_point, _ = self._get_layer_params(layer)
        codes, scale, point = ops.onednn_scaled_int8_quant(
            x.reshape(-1, x.shape[-1]), fixed, fixed_point, self.config.input_symmetric
        )
        output: torch.Tensor = (codes.float() - (0 if point is None else point.float())) * scale @ layer.kept
        return (output if bias is None else output + bias).to(x.dtype).view(*x.shape[:-1], -1)

    Kernel.process_weights_after_loading, Kernel.apply_weights = keep, multiply


if __name__ == "__main__":
    main(*sys.argv[1:])
