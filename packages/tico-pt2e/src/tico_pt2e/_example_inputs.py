"""The example inputs of a model by the names of its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from tico_config import ConfigError, Found, Problem
from tico_modules import named_modules
from tico_quantizers.calibration import tensor_leaves
from tico_quantizers.protocol import Example


def inputs_by_name(model: nn.Module, example: Example | None) -> dict[str, object]:
    """Return the example inputs by the names of the model's arguments.

    Raises:
        ConfigError: there are none, or the model takes no such arguments.
    """
    call = inspect.signature(model.forward)
    remedy = f"pass args=(…,) and kwargs={{…}} for {type(model).__name__}.forward{call}"
    if example is None:
        found = Found("none")
        raise ConfigError(
            Problem(
                field="args",
                value=found,
                expected="example inputs to export with",
                remedy=remedy,
                sentence="PT2E needs example inputs to export the model",
            )
        )
    try:
        bound = call.bind(*example.args, **example.kwargs)
    except TypeError as error:
        found = Found(f"inputs that it does not take ({error})")
        expected, sentence = (
            "example inputs of the model",
            f"the model does not take the example inputs ({error})",
        )
        raise ConfigError(
            Problem(field="args", value=found, expected=expected, remedy=remedy, sentence=sentence)
        ) from None
    named: dict[str, object] = {}
    for name, value in bound.arguments.items():
        keywords = call.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        named |= value if keywords else {name: value}
    return named


def require_device(model: nn.Module, inputs: Mapping[str, object]) -> None:
    """Refuse example inputs on a device where no part of the model is.

    Raises:
        ConfigError: naming them.
    """
    own = {tensor.device for _, module in named_modules(model) for tensor in _tensors(module)}
    problems = [
        Problem(
            field=name,
            value=Found(f"a tensor on {tensor.device}"),
            expected=f"on {' or '.join(sorted(map(str, own)))}, where the model is",
            remedy="move it with .to(device)",
        )
        for name, value in inputs.items()
        for tensor in tensor_leaves(value)
        if own and tensor.ndim and tensor.device not in own
    ]
    if problems:
        raise ConfigError(*problems)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


@contextmanager
def named_arguments(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Let `model` name those of `names` that its ``**kwargs`` takes: the exporter asks for shapes by name."""
    forward, call = model.forward, inspect.signature(model.forward)
    own = [each for each in call.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    known = {each.name for each in own}
    given = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names if name not in known]

    def named(*args: object, **kwargs: object) -> object:
        return forward(*args, **kwargs)

    before = {key: value for key, value in vars(model).items() if key == "forward"}
    if given:
        named.__signature__ = call.replace(parameters=[*own, *given])  # type: ignore[attr-defined]  # read by inspect
        vars(model)["forward"] = named
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        vars(model).update(before)
