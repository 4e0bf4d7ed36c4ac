"""Algorithms that find the codes of one layer after the other, from what each has read."""

from __future__ import annotations

import itertools
import logging
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar, final

import attrs
from torch import nn

from tico_config import ModuleConfig, Problem, UnsupportedError
from tico_modules import Edit
from tico_quantizers.calibration import (
    BlockInputs,
    BlockOptions,
    Calibration,
    Checkpoint,
    GroupedGram,
    TokenRule,
    run_blocks,
)
from tico_quantizers.conversion._conversion import Conversion
from tico_quantizers.conversion._progress import Progress
from tico_quantizers.layers import LayerPlan, QuantizedWeight, Target, plan_layers, require_in_place
from tico_quantizers.protocol import BaseQuantizer, Converted, Example

C = TypeVar("C", bound=ModuleConfig)
_LOG = logging.getLogger("tico_quantizers")
_MOST_NAMED = 8


@final
class BlockCalibration(Calibration, Generic[C]):
    """The layers to quantize, and what is recorded of them: see `BlockInputs`."""

    def __init__(
        self,
        model: nn.Module,
        plan: LayerPlan[C],
        options: BlockOptions,
        rules: Mapping[str, TokenRule],
    ) -> None:
        super().__init__()
        self.plan = plan
        self.inputs = BlockInputs(model, plan.layers, options)
        self.inputs.record(self)
        self.inputs.watch(plan.layers, self, rules)


class BlockQuantizer(BaseQuantizer[C, BlockCalibration[C]]):
    """An algorithm that needs nothing of a layer but its weight and the Gram matrix of its inputs.

    A subclass says in `quantize` what becomes of layers, and may say more in the other methods. Everything
    else is done here: which layers a config reaches, recording, blocks that run again one by one, each on
    what the quantized ones before it give, and the report.

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

    def options(self) -> BlockOptions:
        """Return how blocks are recorded and run again."""
        return BlockOptions()

    def rule(self, target: Target[C]) -> TokenRule:
        """Return how the tokens that a layer reads count."""
        return TokenRule()

    def problems(self, target: Target[C]) -> Iterable[Problem]:
        """Return what is wrong with a layer and the config that holds for it."""
        return ()

    def checkpoint(self, model: nn.Module, inputs: BlockInputs) -> Checkpoint:
        """Return where finished blocks are kept, so that an interrupted conversion can go on."""
        return Checkpoint(None)

    def shows_progress(self) -> bool:
        """Return whether a bar is shown."""
        return True

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, BlockCalibration[C]]:
        """Start to watch the inputs of blocks and layers."""
        plan = plan_layers(model, self.config, check=self.problems)
        rules = {path: self.rule(target) for path, target in plan.targets.items()}
        calibration = BlockCalibration(model, plan, self.options(), rules)
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
        with Progress(name.upper(), total=len(plan.targets), show=self.shows_progress()) as bar:
            work = Conversion(model, plan.layers, edit, bar)
            run_blocks(inputs, _Solving(self, plan, work, inputs), checkpoint)
        _warn({**unreached, **work.notes()})
        return work.converted(plan.lines_left(model, name))


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
        """Put integer layers in the place of those at `paths`."""
        weights: list[QuantizedWeight] = []
        # Most layers that read the same are neighbours.
        for _, alike in itertools.groupby(paths, key=lambda path: id(statistics[path])):
            targets = tuple(self._plan.targets[path] for path in alike)
            found = self._found(targets, statistics[targets[0].path])
            found = [self._noted(*pair) for pair in zip(targets, found, strict=True)]
            self.put_all(tuple(target.path for target in targets), found)
            weights += found
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


def _warn(notes: Mapping[str, str]) -> None:
    """Log what there is to say about layers, once for all of which the same is to be said but for numbers."""
    alike: dict[str, list[str]] = {}
    for path, note in notes.items():
        alike.setdefault(re.sub(r"\d+", "#", note), []).append(path)
    for paths in alike.values():
        more = len(paths) - _MOST_NAMED
        names = ", ".join(paths[:_MOST_NAMED]) + (f" and {more} more layers" if more > 0 else "")
        _LOG.warning("%s: %s", names, notes[paths[0]])
