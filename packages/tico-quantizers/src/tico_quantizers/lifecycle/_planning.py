"""plan: what configs will do to a model, before there are data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tico_config import BaseConfig, ConfigError, Found, Problem
from tico_modules import Edit, Run, all_tensors, drop_stale_ties, remember, report
from tico_quantizers.calibration import unchanged_process
from tico_quantizers.lifecycle._arguments import require_arguments, require_config
from tico_quantizers.lifecycle._copies import detached_copy
from tico_quantizers.lifecycle._model_kinds import require_model, require_modules, require_plain
from tico_quantizers.lifecycle._stages import require_unprepared
from tico_quantizers.planning import Plan, PlanLine, bytes_by_line, total_bytes
from tico_quantizers.protocol import Planned
from tico_quantizers.registry import Registry


def plan(model: nn.Module, config: BaseConfig | Sequence[BaseConfig], *, registry: Registry) -> Plan:
    """Return what `prepare` and `convert` will do to `model` by `config`, or by several, one after the other.

    This is `tico.quantization.plan`, which says more, without a registry of its own.

    >>> from tico_config import GPTQConfig
    >>> from tico_quantizers import GPTQQuantizer, quantizer_entry
    >>> registry = Registry([quantizer_entry(GPTQConfig, GPTQQuantizer)])
    >>> made = plan(nn.Sequential(nn.Linear(64, 8)), GPTQConfig(group_size=32), registry=registry)
    >>> made.lines[0].weight, made.bytes_before, made.bytes
    ('uint4 asymmetric group 32', 2080, 416)
    """
    require_model(model)
    require_arguments(registry=registry)
    configs = _as_configs(config)
    require_plain(model, inplace=False, values=False)
    require_unprepared(model)
    root = _without_values(model)
    stages: list[Planned] = []
    memory: list[tuple[tuple[str, int], ...]] = []
    for each in configs:
        quantizer = registry.quantizer(each)
        require_modules(root, quantizer, each)
        old = {id(tensor): tensor for _, tensor in all_tensors(root)}
        with unchanged_process(), Edit() as edit:
            stages.append(quantizer.planned(root, edit))
            root = _finished(stages[-1], edit)
        memory.append(_memory(old.values(), root, stages[-1]))
    return _assembled(model, root, stages, max(memory, key=_sum))


def _as_configs(config: object) -> tuple[BaseConfig, ...]:
    """Return one config or several as a tuple.

    Raises:
        ConfigError: something else is among them, or there is none.
    """
    configs = tuple(config) if isinstance(config, list | tuple) else (config,)
    if not configs:
        raise ConfigError(Problem(field="config", value=Found("none"), expected="a config, or several"))
    for each in configs:
        require_config(each)
    return tuple(each for each in configs if isinstance(each, BaseConfig))


def _without_values(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with its floats on the meta device; its integers are its own, not copies."""
    memo = {id(tensor): _emptied(tensor) for _, tensor in all_tensors(model) if not is_lazy(tensor)}
    return detached_copy(model, memo)


def _emptied(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    if not tensor.ndim and not isinstance(tensor, nn.Parameter):
        # A module may read a single number, such as a factor, to make an attribute of it.
        return torch.ones((), dtype=tensor.dtype) if tensor.is_meta else tensor.detach().clone()
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


def _finished(planned: Planned, edit: Edit) -> nn.Module:
    """Return the root that `planned` leaves, with its report kept as `convert` keeps one."""
    converted = planned.converted
    remember(converted.modules, Run(report=converted.report), edit)
    drop_stale_ties(converted.root, edit)
    return converted.root


def _memory(old: Collection[Tensor], root: nn.Module, planned: Planned) -> tuple[tuple[str, int], ...]:
    """Return what is in memory when all that is replaced is still there."""
    known = {id(tensor) for tensor in old}
    new = {id(each): each.nbytes for _, each in all_tensors(root) if id(each) not in known}
    model = sum(tensor.nbytes for tensor in old)
    return ("the model", model), ("integers beside it", sum(new.values())), *planned.memory


def _sum(memory: tuple[tuple[str, int], ...]) -> int:
    return sum(size for _, size in memory)


def _assembled(
    model: nn.Module, root: nn.Module, stages: Sequence[Planned], memory: tuple[tuple[str, int], ...]
) -> Plan:
    """Return the plan that the stages make together."""
    lines = report(root).layers
    paths = [line.path for line in lines]
    before, after = bytes_by_line(model, paths), bytes_by_line(root, paths)
    rules, undecided, unsized = _told(stages)
    return Plan(
        lines=tuple(
            PlanLine.of(
                line,
                before=before[line.path],
                after=None if line.path in unsized else after[line.path],
                rule=rules.get(line.path, ""),
                undecided=undecided.get(line.path, ""),
            )
            for line in lines
        ),
        bytes_before=total_bytes(model),
        bytes=total_bytes(root),
        memory=memory,
        notes=tuple(dict.fromkeys(note for stage in stages for note in stage.notes)),
    )


def _told(stages: Iterable[Planned]) -> tuple[dict[str, str], dict[str, str], frozenset[str]]:
    """Return rules, what is undecided, and the lines without bytes; the last stage of a line has its rule."""
    rules: dict[str, str] = {}
    undecided: dict[str, dict[str, None]] = {}
    unsized: frozenset[str] = frozenset()
    for stage in stages:
        rules |= {line.path: stage.rules.get(line.path, "") for line in stage.converted.report.layers}
        for path, what in stage.undecided.items():
            undecided.setdefault(path, {})[what] = None
        unsized |= stage.unsized
    return rules, {path: "; ".join(each) for path, each in undecided.items()}, unsized
