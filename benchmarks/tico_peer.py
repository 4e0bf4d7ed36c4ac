"""Samsung's tico, imported from a folder of its own and called by the same steps as this project."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import attrs
from torch import Tensor, nn

Quantize = Callable[[nn.Module], nn.Module]


@attrs.frozen(eq=False)
class Tico:
    """Its `prepare` with the activations in so many bits, its `convert`, and a call for logits."""

    prepare: Callable[[nn.Module, int], nn.Module]
    convert: Quantize
    logits: Callable[[nn.Module, Tensor], Tensor]
    observers: Callable[[nn.Module], int]


def tico_from(folder: Path | None) -> Tico | None:
    """Return tico as it is in `folder`, a target of ``pip install --no-deps --target``; None if it is not.

    It needs circle-schema and flatbuffers there. Its own ``__init__``, which imports all of its converters,
    is not run, and the project's `tico.quantization` has to be imported as `tico_api` in the same process.
    """
    if folder is None or not (folder / "tico").is_dir():
        return None
    sys.path.insert(0, str(folder))
    package = ModuleType("tico")
    package.__path__ = [str(folder / "tico")]
    sys.modules["tico"] = package
    importlib.import_module("tico.utils.register_custom_op").RegisterOps()
    quantization = importlib.import_module("tico.quantization")
    config = importlib.import_module("tico.quantization.config.ptq")
    specs = importlib.import_module("tico.quantization.config.specs")
    dtypes = importlib.import_module("tico.quantization.wrapq.dtypes")
    base = importlib.import_module("tico.quantization.wrapq.wrappers.quant_module_base")

    def prepare(model: nn.Module, bits: int) -> nn.Module:
        activation = specs.affine(dtypes.DType.uint(8) if bits == 8 else dtypes.DType.int(bits))
        found: nn.Module = quantization.prepare(model, config.PTQConfig(activation=activation))
        return found

    def observers(model: nn.Module) -> int:
        wrappers = [module for module in model.modules() if isinstance(module, base.QuantModuleBase)]
        return len({id(each) for wrapper in wrappers for each in wrapper._all_observers()})

    return Tico(prepare, quantization.convert, _logits, observers)


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    output = model(tokens)
    found: Tensor = output[0] if isinstance(output, tuple) else output.logits
    return found
