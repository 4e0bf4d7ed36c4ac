"""Algorithms that find the codes of one layer after the other, from what each has read."""

from __future__ import annotations

import itertools
import logging
import re
from abc import abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import ClassVar, Generic, TypeVar, final

import attrs
from torch import nn

from tico_config import ModuleConfig, Problem, UnsupportedError
from tico_modules import Edit, Progress, Report
from tico_observers import Statistic
from tico_quantizers.calibration import (
    BlockInputs,
    BlockOptions,
    BlockRuns,
    Calibration,
    Checkpoint,
    GroupedGram,
    TokenRule,
    float_statistics,
    run_blocks,
)
from tico_quantizers.conversion._conversion import Conversion
from tico_quantizers.conversion._opened_experts import open_experts
from tico_quantizers.conversion._planning import NEVER_CALLED, SKIPPED, STARVED, gram_memory, planned_layers
from tico_quantizers.layers import (
    LayerPlan,
    QuantizedWeight,
    Target,
    columns,
    outline,
    peers_of,
    plan_layers,
    require_in_place,
    shape,
)
from tico_quantizers.protocol import BaseQuantizer, Converted, Example, Planned

C = TypeVar("C", bound=ModuleConfig)
_FROM_FILE = "its statistics are those of the float model, from a calibration file"
_LOG = logging.getLogger("tico_quantizers")
_MOST_NAMED = 8


@final
class BlockCalibration(Calibration, Generic[C]):
    """The layers to quantize, and what is recorded of them: see `BlockInputs`.

    `bound` are the settings that need the data themselves, so that nothing can be adopted.
    """

    told_by_recorders: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        plan: LayerPlan[C],
        options: BlockOptions,
        rules: Mapping[str, TokenRule],
        bound: Sequence[Problem] = (),
    ) -> None:
        super().__init__()
        self.plan = plan
        self._bound = bound
        self.inputs = BlockInputs(model, plan.layers, options)
        self.inputs.record(self)
        self.inputs.watch(plan.layers, self, rules)

    def ending_early(self, root: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which passes of `root` end at the first block, where that tells the rest."""
        return self.inputs.ending_early(root)

    def statistics(self) -> Mapping[str, Statistic]:
        """Return what each layer of the plan has read in the float model, all tokens counting alike."""
        self._require_plain_records()
        return float_statistics(self.inputs)

    def _require_plain_records(self) -> None:
        """Refuse records that are weighted or rounded.

        Raises:
            UnsupportedError: naming the field.
        """
        options, weights = self.inputs.options, {rule.weights for rule in self.inputs.rules.values()}
        given = next((each for each in weights if isinstance(each, tuple)), None)
        fields = (
            ("asymmetric", options.paired, True, "0"),
            ("activation_dtype", options.narrow, "bfloat16", "None"),
            ("calibrate_all_experts", options.all_experts, True, "False"),
            ("token_weights", given is not None, given, "'uniform' or 'auto'"),
        )
        problems = [
            Problem(
                field=field,
                value=value,
                expected=f"{plain} where the calibration is saved",
                sentence=f"what was recorded with {field}={value!r} is not what the float model gives",
                remedy=f"prepare the model with {field}={plain} to save its calibration",
            )
            for field, is_set, value, plain in fields
            if is_set
        ]
        if problems:
            raise UnsupportedError(*problems)

    def adopt(self, statistics: Mapping[str, Statistic]) -> None:
        """Solve for what the layers read in the float model, without running it."""
        if self._bound:
            raise UnsupportedError(*self._bound)
        self.inputs.adopt(statistics)


class BlockQuantizer(BaseQuantizer[C, BlockCalibration[C]]):
    """An algorithm that needs nothing of a layer but its weight and the Gram matrix of its inputs.

    A subclass says in `quantize` what becomes of layers, and in `outline`, where the `weight_format` of its
    config does not, what is known of that beforehand. It may say more in the other methods. Everything
    else is done here: which layers a config reaches, recording, blocks that run again one by one, each on
    what the quantized ones before it give, the report, and calibration files.

    >>> import torch
    >>> from tico_config import DType, GPTQConfig
    >>> from tico_modules import Edit, LayerReport, PackedWeight
    >>> from tico_quantizers.layers import matrix, shape
    >>> class Rounding(BlockQuantizer[GPTQConfig]):
    ...     def quantize(self, targets, read):
    ...         return [self.round(target) for target in targets]
    ...
    ...     def round(self, target):
    ...         weight = matrix(target.layer).view(shape(target.layer))
    ...         dtype = DType.uint(target.config.bits)
    ...         packed = PackedWeight.round_to_nearest(weight, dtype, symmetric=False, group_size=None)
    ...         return QuantizedWeight(packed, LayerReport(path=target.path, module="", algorithm="rounding"))
    >>> with Edit() as edit:
    ...     model, prepared = Rounding(GPTQConfig()).start(nn.Sequential(nn.Linear(4, 2)).eval(), None, edit)
    >>> output = model(torch.eye(4))
    >>> with Edit() as edit:
    ...     print(prepared.convert(model, edit)[0].bits)
    4
    """

    checks_target: ClassVar[bool] = True

    @abstractmethod
    def quantize(self, targets: tuple[Target[C], ...], read: GroupedGram) -> list[QuantizedWeight]:
        """Return the codes of `targets`, which have all read what `read` tells, in order.

        A layer has `groups` Gram matrices in ``read.parts``, one for each run of rows of its `matrix`.
        """

    def quantize_starved(self, target: Target[C], tokens: int) -> QuantizedWeight:
        """Return the codes of an expert that read fewer `tokens` than its `rule` asks for.

        Raises:
            UnsupportedError: unless it is overridden, which rules that ask for tokens need.
        """
        name = type(self).__name__
        raise UnsupportedError(
            Problem(
                module=target.path,
                field="quantize_starved",
                value=tokens,
                expected="a method that needs no Gram matrix",
                sentence=f"it is an expert that read {tokens} tokens, too few for its rule, and {name} has no"
                " quantize_starved; override that method, or let its rule ask for no tokens",
            )
        )

    def finish(
        self, targets: Mapping[str, Target[C]], weights: Sequence[QuantizedWeight], runs: BlockRuns
    ) -> list[QuantizedWeight]:
        """Return the `weights` of a block's layers, perhaps changed for what its `runs` show, in order.

        Where the `options` say `compared`, this is called once for each block, while it is float; see
        `Finish`. `targets` has all layers, by path.
        """
        return list(weights)

    def options(self) -> BlockOptions:
        """Return how blocks are recorded and run again."""
        return BlockOptions()

    def rule(self, target: Target[C]) -> TokenRule:
        """Return how the tokens that a layer reads count."""
        return TokenRule()

    def problems(self, target: Target[C]) -> Iterable[Problem]:
        """Return what is wrong with a layer and the config that holds for it."""
        return ()

    def bound(self, plan: LayerPlan[C]) -> Sequence[Problem]:
        """Return which settings need the data themselves, so that no calibration file can serve them."""
        return ()

    def checkpoint(self, model: nn.Module, inputs: BlockInputs) -> Checkpoint:
        """Return where finished blocks are kept, so that an interrupted conversion can go on."""
        return Checkpoint(None)

    def shows_progress(self) -> bool:
        """Return whether a bar is shown."""
        return True

    def outline(self, target: Target[C]) -> QuantizedWeight:
        """Return the weight that a layer is to get, without values, and its line of the report.

        Both follow from the `weight_format` of the config, unless this is overridden.
        """
        return outline(target)

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what would become of `model`."""
        options = self.options()
        model = open_experts(model, edit, every_token=options.all_experts)
        plan = plan_layers(model, self.config, check=self.problems)
        most, paired = options.gram_memory, options.paired
        memory = gram_memory(model, plan.layers, most=most, paired=paired)
        starving = self._may_starve(model, plan)
        planned = planned_layers(model, plan, self.outline, self.config.name, edit)
        notes = (NEVER_CALLED, SKIPPED) if options.skip_unreached else (NEVER_CALLED,)
        return attrs.evolve(planned, undecided=starving, notes=notes, memory=(memory,))

    def _may_starve(self, model: nn.Module, plan: LayerPlan[C]) -> dict[str, str]:
        """Return what becomes of experts that read too little, by path."""
        peers = peers_of(model)
        least = {path: self.rule(target).least for path, target in plan.targets.items() if path in peers}
        return {path: STARVED.format(tokens) for path, tokens in least.items() if tokens}

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, BlockCalibration[C]]:
        """Start to watch the inputs of blocks and layers."""
        options = self.options().on(edit.offload)
        model = open_experts(model, edit, every_token=options.all_experts)
        plan = plan_layers(model, self.config, check=self.problems)
        rules = {path: self.rule(target) for path, target in plan.targets.items()}
        calibration = BlockCalibration(model, plan, options, rules, self.bound(plan))
        calibration.inputs.install(model, edit)
        return model, calibration

    def convert(self, model: nn.Module, calibration: BlockCalibration[C], edit: Edit) -> Converted:
        """Replace the layers by integer ones."""
        inputs = calibration.inputs
        require_in_place(model, calibration.plan.layers)
        unreached = inputs.leave_unreached(edit)
        plan = calibration.plan.without(unreached)
        inputs.uninstall(model, edit)
        checkpoint = self.checkpoint(model, inputs)
        name = self.config.name
        shows = self.shows_progress() and inputs.ranks.number == 0
        with Progress(name.upper(), total=len(plan.targets), show=shows) as bar:
            work = Conversion(model, plan.layers, edit, bar)
            finish = partial(self.finish, plan.targets) if inputs.options.compared else None
            run_blocks(inputs, _Solving(self, plan, work, inputs), checkpoint, finish)
        _warn({**unreached, **work.notes()})
        converted = work.converted(plan.lines_left(work.close_experts(), name))
        return _of_float_model(converted, plan.targets) if inputs.adopted else converted


def _of_float_model(converted: Converted, paths: Container[str]) -> Converted:
    """Return `converted` with a report that says of the layers at `paths` where their statistics are from."""
    lines = (
        attrs.evolve(line, reason="; ".join(filter(None, (line.reason, _FROM_FILE))))
        if line.path in paths
        else line
        for line in converted.report.layers
    )
    return attrs.evolve(converted, report=Report(layers=tuple(lines)))


@final
class _Solving(Generic[C]):
    """The step that lets a quantizer find codes, and puts them into the model."""

    def __init__(
        self, quantizer: BlockQuantizer[C], plan: LayerPlan[C], work: Conversion, inputs: BlockInputs
    ) -> None:
        self._inputs = inputs
        self._quantizer = quantizer
        self._plan = plan
        self._work = work

    def learn(
        self, paths: tuple[str, ...], statistics: Mapping[str, GroupedGram | int]
    ) -> list[QuantizedWeight]:
        """Return the integer weights of the layers at `paths`."""
        # Most layers that read the same are neighbours.
        parts = [
            tuple(self._plan.targets[path] for path in alike)
            for _, alike in itertools.groupby(paths, key=lambda path: id(statistics[path]))
        ]
        ranks = self._inputs.ranks
        owners = ranks.owners([_cost(targets) for targets in parts])

        def solve() -> dict[int, list[QuantizedWeight]]:
            mine = (index for index, owner in enumerate(owners) if owner == ranks.number)
            return {index: self._solved(parts[index], statistics[parts[index][0].path]) for index in mine}

        solved = {index: found for own in ranks.together("weights", solve) for index, found in own.items()}
        weights = [weight for index in range(len(parts)) for weight in solved[index]]
        for weight in weights:
            self._work.tell(weight.line)
        return weights

    def _solved(self, targets: tuple[Target[C], ...], read: GroupedGram | int) -> list[QuantizedWeight]:
        weights: list[QuantizedWeight] = []
        for target, weight in zip(targets, self._found(targets, read), strict=True):
            self._work.layer_for(weight)  # refuses it if it fits none, before it is told of
            weights.append(self._noted(target, weight))
            self._work.tell(weights[-1].line)
        return weights

    def _found(self, targets: tuple[Target[C], ...], read: GroupedGram | int) -> list[QuantizedWeight]:
        if isinstance(read, int):
            return [self._quantizer.quantize_starved(target, read) for target in targets]
        found: object = self._quantizer.quantize(targets, read)
        if not isinstance(found, list) or len(found) != len(targets):
            name, paths = type(self._quantizer).__name__, ", ".join(target.path for target in targets)
            expected = f"a list of a QuantizedWeight for each of {paths}"
            raise UnsupportedError(
                Problem(field=f"the result of {name}.quantize", value=found, expected=expected)
            )
        return found

    def _noted(self, target: Target[C], weight: QuantizedWeight) -> QuantizedWeight:
        """Return the weight with what there is to say about the data in its line of the report."""
        note = self._inputs.notes.get(target.path)
        if note is None:
            return weight
        reason = "; ".join(filter(None, (weight.line.reason, note)))
        return QuantizedWeight(weight.packed, attrs.evolve(weight.line, reason=reason))

    def put_all(self, paths: tuple[str, ...], weights: list[QuantizedWeight]) -> None:
        """Put `weights` into the model."""
        self._work.put_all(weights)


def _cost(targets: Sequence[Target[C]]) -> float:
    """Return about how many products it takes to factor what layers have read, and to solve for them."""
    width = columns(targets[0].layer)
    rows = sum(shape(target.layer)[0] for target in targets)
    return float(width) ** 2 * (width + rows)


def _warn(notes: Mapping[str, str]) -> None:
    """Log what there is to say about layers, once for all of which the same is to be said but for numbers."""
    alike: dict[str, list[str]] = {}
    for path, note in notes.items():
        alike.setdefault(re.sub(r"\d+", "#", note), []).append(path)
    for paths in alike.values():
        more = len(paths) - _MOST_NAMED
        names = ", ".join(paths[:_MOST_NAMED]) + (f" and {more} more layers" if more > 0 else "")
        _LOG.warning("%s: %s", names, notes[paths[0]])
