"""What a plan takes for a large model on the meta device: seconds of the processor, memory, and what it says.

python benchmarks/plan.py             a LLaMA of 70 billion parameters
python benchmarks/plan.py --blocks 4  the same with 4 blocks
python benchmarks/plan.py --zoo       whether plans for the model zoo say what convert does

Memory is read where Linux keeps it: the resident set of this process at its peak, libraries included.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from process_memory import resident
from recorded import Recording, add_option, recording
from tico.quantization import convert, plan, prepare
from tico.quantization.config import AWQConfig, BaseConfig, GPTQConfig, PTQConfig, SmoothQuantConfig
from tico_config import TicoError
from tico_quantizers.planning import differences
from zoo import ARCHITECTURES, Trial

_PTQ: Final = PTQConfig(strict_wrap=False, on_uncalibrated="skip")
_GPTQ: Final = GPTQConfig(show_progress=False, on_uncalibrated="skip")
CONFIGS: Final[Mapping[str, tuple[BaseConfig, ...]]] = {
    "GPTQ": (_GPTQ,),
    "AWQ": (AWQConfig(group_size=8, ragged_groups=True, show_progress=False, on_uncalibrated="skip"),),
    "SmoothQuant": (SmoothQuantConfig(on_uncalibrated="skip"),),
    "PTQ": (_PTQ,),
    "GPTQ, then PTQ": (_GPTQ, _PTQ),
}
LARGE: Final[Mapping[str, tuple[BaseConfig, ...]]] = {
    "GPTQ, groups of 128": (GPTQConfig(group_size=128),),
    "AWQ, groups of 128": (AWQConfig(group_size=128),),
    "SmoothQuant": (SmoothQuantConfig(),),
    "PTQ": (PTQConfig(),),
    "GPTQ, then PTQ": (GPTQConfig(group_size=128), PTQConfig()),
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--blocks", type=int, default=80)
    parser.add_argument("--zoo", action="store_true")
    add_option(parser)
    options = parser.parse_args()
    with recording(options.result) as record:
        if options.zoo:
            _compare(record)
        else:
            _time(record, options.blocks)


def _large(blocks: int) -> nn.Module:
    sizes = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=blocks,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(sizes)


def _time(record: Recording, blocks: int) -> None:
    model = _large(blocks)
    parameters = sum(each.numel() for each in model.parameters())
    title = f"A LLaMA of {parameters / 1e9:.1f} billion parameters on the meta device"
    record.table(title, "CPU s", "GB at the peak", "lines", "GB before", "GB after")
    for name, configs in LARGE.items():
        start = time.process_time()
        made = plan(model, configs)
        seconds = time.process_time() - start
        figures = f"{made.bytes_before / 1e9:.2f}", f"{made.bytes / 1e9:.2f}"
        peak = f"{resident('VmHWM') / 1e9:.2f}"
        record.row(name, f"{seconds:.2f}", peak, str(len(made.lines)), *figures)


def _compare(record: Recording) -> None:
    warnings.filterwarnings("ignore")
    record.table("Lines in which plan and convert differ", *CONFIGS)
    for architecture in ARCHITECTURES:
        trial = Trial(architecture)
        record.row(architecture.name, *(_judged(trial, configs) for configs in CONFIGS.values()))


def _judged(trial: Trial, configs: Sequence[BaseConfig]) -> str:
    """Return how many lines differ; which of the two is refused where one is."""
    model, made, refused = trial.model(), None, []
    try:
        made = plan(model, configs)
    except TicoError:
        refused.append("plan")
    try:
        for config in configs:
            model = prepare(model, config, kwargs=trial.call(0))
            with torch.no_grad():
                model(**trial.call(0))
            model = convert(model)
    except TicoError:
        refused.append("convert")
    if refused or made is None:
        return f"{' and '.join(refused)} refused"
    return str(len(differences(made, model)))


if __name__ == "__main__":
    main()
