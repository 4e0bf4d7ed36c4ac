"""From a module to its graph, by torch.export."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from tico_config import ConfigError, Found, Problem, PT2EConfig, UnsupportedError
from tico_modules import named_modules
from tico_pt2e._composites import take_apart
from tico_pt2e._graph import quiet
from tico_pt2e._input_check import input_check
from tico_pt2e._nodes import module_of, operator_of, writes
from tico_quantizers.calibration import map_leaves, tensor_leaves
from tico_quantizers.protocol import Example

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_LONGEST_REASON = 300
_UNKNOWN_OUTPUT = re.compile(r"Found <class '(?:\w+\.|<locals>\.)*(?P<name>\w+)'> in output")


def export(model: nn.Module, example: Example | None, config: PT2EConfig) -> fx.GraphModule:
    """Return the graph of `model`: functional, attention decomposed, with its inputs checked.

    Raises:
        ConfigError: the example inputs are missing or are none that the model takes.
        UnsupportedError: the model cannot be exported, with the exporter's reason.
    """
    inputs = _inputs_by_name(model, example)
    _require_device(model, inputs)
    given = example or Example()
    shapes = _dynamic_shapes(inputs, config)
    try:
        with quiet():
            graph = _exported(model, given, shapes)
    except Exception as error:  # the exporter and the model may raise anything
        fixed = _without_choice(shapes) if config.dynamic_shapes is None else None
        if fixed is None or fixed == shapes or _UNKNOWN_OUTPUT.search(str(error)):
            raise _refusal(model, error) from error
        try:
            with quiet():
                graph = _exported(model, given, fixed)
        except Exception as second:
            raise _refusal(model, second) from second
    _require_no_writes(graph)
    return graph


def _exported(model: nn.Module, example: Example, shapes: Mapping[str, object]) -> fx.GraphModule:
    with _named_arguments(model, shapes):
        program = torch.export.export(
            model, example.args, dict(example.kwargs), dynamic_shapes=dict(shapes), strict=False
        )
    program = take_apart(program, {_ATTENTION: _attention})
    made: fx.GraphModule = program.module()
    graph = made.graph
    for node in list(graph.nodes):
        # Guards are checked below; the others say what the exporter knows already.
        if node.target == "_guards_fn" or operator_of(node) == "_assert_tensor_metadata":
            graph.erase_node(node)
    _drop_empty_parts(graph)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if placeholders:
        made.add_module("input_check", input_check(graph))
        with graph.inserting_after(placeholders[-1]):
            graph.call_module("input_check", tuple(placeholders))
    return made


def _drop_empty_parts(graph: fx.Graph) -> None:
    """Leave out of each concatenation what has no elements, such as a cache that nothing is in yet."""
    for node in [node for node in graph.nodes if node.target is torch.ops.aten.cat.default]:
        parts: list[fx.Node] = list(node.args[0])
        whole = [part for part in parts if not _is_empty(part)]
        if whole and len(whole) < len(parts) and len({part.meta["val"].dtype for part in parts}) == 1:
            if len(whole) == 1:
                node.replace_all_uses_with(whole[0])
                graph.erase_node(node)
            else:
                node.args = (whole, *node.args[1:])


def _is_empty(node: fx.Node) -> bool:
    value: object = node.meta.get("val")
    return isinstance(value, Tensor) and any(type(size) is int and size == 0 for size in value.shape)


def _require_no_writes(exported: fx.GraphModule) -> None:
    """Refuse a graph that changes its buffers or inputs: what is kept from call to call has no one grid.

    Raises:
        UnsupportedError: with every node that does.
    """
    problems = [
        Problem(
            module=module_of(node)[0] or None,
            field="model",
            value=Found(f"one whose node {node.name} writes to {node.args[0]}"),
            expected="a model that writes neither to its buffers nor to its inputs",
            sentence=f"its node {node.name} writes to {node.args[0]}, a buffer or an input",
            remedy="pass that state in and return it, or leave it out (for example use_cache=False)",
        )
        for node in exported.graph.nodes
        if writes(node)
    ]
    if problems:
        raise UnsupportedError(*problems)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(query keyᵀ scale + mask) value, by operators that can be quantized."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * factor
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is None:
        return torch.matmul(torch.softmax(scores, -1), value)
    boolean = attn_mask.dtype == torch.bool
    allowed = attn_mask if boolean else attn_mask > -math.inf
    scores = scores.masked_fill(~attn_mask, -math.inf) if boolean else scores + attn_mask
    if is_causal:
        return torch.matmul(torch.softmax(scores, -1), value)
    # A row of which nothing is left has weights of 0, where a softmax would give NaN.
    nothing = ~allowed.any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(nothing, 0.0), -1)
    return torch.matmul(weights.masked_fill(nothing, 0.0), value)


def _inputs_by_name(model: nn.Module, example: Example | None) -> dict[str, object]:
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


def _require_device(model: nn.Module, inputs: Mapping[str, object]) -> None:
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


def _dynamic_shapes(inputs: Mapping[str, object], config: PT2EConfig) -> dict[str, object]:
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


@contextmanager
def _named_arguments(model: nn.Module, names: Collection[str]) -> Iterator[None]:
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


def _free_batch(leaf: object) -> object:
    # The exporter takes sizes 0 and 1 for constants.
    return {0: Dim.AUTO} if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] > 1 else None


def _without_choice(shapes: Mapping[str, object]) -> dict[str, object]:
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


def _refusal(model: nn.Module, error: BaseException) -> UnsupportedError:
    """Return the error that says why and where the model could not be exported."""
    output = _UNKNOWN_OUTPUT.search(str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines[0] if lines else type(error).__name__)[:_LONGEST_REASON].rstrip(".")
    sentence = f"torch.export refuses it ({type(error).__name__}: {reason})"
    remedy = "rewrite that part, or export the parts around it"
    if output is not None:
        sentence = f"it returns {output['name']}, a kind of value that no graph can return"
        remedy = "return tensors, or tuples and dicts of them"
    if output is not None and "Cache" in output["name"]:
        remedy = "pass use_cache=False with the example inputs and in every call"
    return UnsupportedError(
        Problem(
            module=_module_of(model, error),
            field="model",
            value=Found(f"one that it refuses ({type(error).__name__}: {reason})"),
            expected="a model that torch.export takes",
            remedy=remedy,
            sentence=sentence,
        )
    )


def _module_of(model: nn.Module, error: BaseException) -> str:
    """Return the path of the innermost module of `model` whose code was running when `error` was raised."""
    paths = {id(module): path for path, module in named_modules(model)}
    where = type(model).__name__
    trace = error.__traceback__
    while trace is not None:
        owner: object = trace.tb_frame.f_locals.get("self")
        where = paths.get(id(owner), "") or where
        trace = trace.tb_next
    return where
