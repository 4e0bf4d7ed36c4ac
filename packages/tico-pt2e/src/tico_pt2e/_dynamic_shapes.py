"""Which sizes of the inputs stay free when a model is exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.export import Dim

from tico_config import ConfigError, Found, Problem, PT2EConfig
from tico_quantizers.calibration import map_leaves


def dynamic_shapes(inputs: Mapping[str, object], config: PT2EConfig) -> dict[str, object]:
    """Return what torch.export is told about each input.

    Raises:
        ConfigError: the config names inputs or axes that do not exist, or whose example is too small.
    """
    named = config.dynamic_shapes
    if named is None:
        return {name: map_leaves(value, _free_batch) for name, value in inputs.items()}
    problems = [problem for name, axes in named.items() for problem in _axes_problems(name, axes, inputs)]
    if problems:
        raise ConfigError(*problems)
    sizes = {axis: Dim(axis) for axes in named.values() for axis in axes if axis is not None}
    return {
        name: {i: sizes[axis] for i, axis in enumerate(named[name]) if axis is not None}
        if name in named
        else map_leaves(value, lambda _: None)
        for name, value in inputs.items()
    }


def _free_batch(leaf: object) -> object:
    # The exporter takes sizes 0 and 1 for constants.
    return {0: Dim.AUTO} if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] > 1 else None


def without_choice(shapes: Mapping[str, object]) -> dict[str, object]:
    return dict.fromkeys(shapes)


def _axes_problems(
    name: str, axes: tuple[str | None, ...], inputs: Mapping[str, object]
) -> Iterator[Problem]:
    value, field = inputs.get(name), f"dynamic_shapes[{name!r}]"
    if not isinstance(value, Tensor):
        tensors = ", ".join(key for key, item in inputs.items() if isinstance(item, Tensor))
        found = Found("no tensor" if name in inputs else "no input")
        expected, sentence = f"for one of the input tensors {tensors}", f"{field} is for {found}"
        remedy = f"the input tensors are {tensors}"
        yield Problem(field=field, value=found, expected=expected, remedy=remedy, sentence=sentence)
    elif len(axes) > value.ndim:
        found = Found(f"{len(axes)} axes")
        expected = f"at most {value.ndim} axes, as the example has"
        sentence = f"{field} has {len(axes)} axes, and the example {value.ndim}"
        yield Problem(field=field, value=found, expected=expected, sentence=sentence)
    else:
        for axis, size in zip(axes, value.shape, strict=False):
            if axis is not None and size < 2:
                found = Found(f"an example of size {size} there")
                expected = f"an example of at least 2 for {axis!r}"
                sentence = f"the example has size {size} on the free axis {axis!r}, and needs at least 2"
                yield Problem(field=field, value=found, expected=expected, sentence=sentence)
