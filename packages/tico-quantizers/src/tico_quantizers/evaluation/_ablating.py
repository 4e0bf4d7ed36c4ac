"""ablation: what each kind, block and role of a quantized model costs, measured."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import attrs
from torch import Tensor, nn

from tico_config import Problem, UnsupportedError
from tico_modules import Progress
from tico_quantizers.calibration import Batch, TokenMask, micro_batches, quiet_runs, unchanged_process
from tico_quantizers.evaluation._ablate import selected
from tico_quantizers.evaluation._ablation import Ablation, AblationLine, Grouping
from tico_quantizers.evaluation._logit_sums import LogitSums
from tico_quantizers.evaluation._outputs import called, logits_of, require_finished, rows_of
from tico_quantizers.evaluation._selection import QuantizedPart, Selection
from tico_quantizers.evaluation._switchboard import Switchboard


def ablation(  # what a measurement depends on, by name
    float_model: nn.Module,
    quantized: nn.Module,
    batches: Iterable[Batch],
    mask: TokenMask | None = None,
    *,
    select: str | Selection | Iterable[str | Selection] = "*",
    show_progress: bool = True,
) -> Ablation:
    """Return what each kind, block and role of the quantized model costs: left out, and alone.

    `quantized` is called, for each sample, twice for each group of parts, with the group in float and with
    everything else in float, as `ablate` does, and its output compared with that of `float_model`. Models and
    process are afterwards what they were.

    Args:
        float_model: the model before `convert`, as for `ablate`.
        quantized: what `convert` has made of a copy of it.
        batches: what to call the models with, as for `calibrate`; a few hundred rows are enough to find a
            part that hurts.
        mask: which tokens are real, as for `calibrate`.
        select: the parts that get lines, as for `ablate`.
        show_progress: show a bar on standard error, if that is a terminal and the extra `progress` is there.

    Raises:
        ConfigError: `select` matches nothing.
        UnsupportedError: one is no module, or `ablate` cannot switch the weights of `quantized` back.
        LifecycleError: one of the models is prepared.
        CalibrationError: one is in training mode, there are no batches, or the models give no logits.

    >>> import torch
    >>> from tico_config import DType
    >>> from tico_modules import Progress, QuantizedLinear
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    >>> rounded = nn.Sequential(QuantizedLinear.from_float(model[0], DType.uint(2)), model[1]).eval()
    >>> found = ablation(model, rounded, [torch.ones(2, 4)])
    >>> [(line.by, line.name, line.without) for line in found.lines], found.kl > found.rest
    ([('role', '0', 0.0)], True)
    """
    for field, model in (("float_model", float_model), ("quantized", quantized)):
        if not isinstance(model, nn.Module):
            raise UnsupportedError(Problem(field=field, value=model, expected="an nn.Module"))
        require_finished(field, model)
    board = Switchboard(quantized, float_model)
    board.require(board.parts)
    groups = list(_groups([part for part in board.parts if part in selected(board, select)]))
    run = _Run(board, groups)
    total = len(batches) * run.passes if isinstance(batches, list | tuple | Tensor) else None
    with (
        Progress("ABLATION", total=total, show=show_progress, unit="pass") as bar,
        unchanged_process(),
        quiet_runs(float_model, with_hooks=True),
        quiet_runs(quantized, with_hooks=True),
    ):
        for batch in batches:
            for args, kwargs in micro_batches(batch, 1, mask):
                real = rows_of(kwargs)
                expected = real(logits_of(called(float_model, args, kwargs), "float_model"))
                for off, own in run.variants():
                    with board.off(off):
                        found = logits_of(called(quantized, args, kwargs), "quantized")
                    own.add(expected, real(found))
                    bar.step()
    return run.result()


@attrs.frozen(kw_only=True)
class _Group:
    by: Grouping
    name: str
    kind: str
    parts: tuple[QuantizedPart, ...]


def _groups(parts: Collection[QuantizedPart]) -> Iterator[_Group]:
    """Yield the parts of each kind, where there are several, of each block, and of each role of a kind."""
    by_kind = _together((part.kind, "", part) for part in parts)
    keys: dict[Grouping, dict[tuple[str, str], list[QuantizedPart]]] = {
        "kind": by_kind if len(by_kind) > 1 else {},
        "block": _together((part.block, "", part) for part in parts if part.block),
        "role": _together((part.role, part.kind, part) for part in parts),
    }
    for by, found in keys.items():
        for (name, kind), members in found.items():
            yield _Group(by=by, name=name, kind=name if by == "kind" else kind, parts=tuple(members))


def _together(keyed: Iterable[tuple[str, str, QuantizedPart]]) -> dict[tuple[str, str], list[QuantizedPart]]:
    found: dict[tuple[str, str], list[QuantizedPart]] = {}
    for name, kind, part in keyed:
        found.setdefault((name, kind), []).append(part)
    return found


class _Run:
    """What is measured, and what it adds up to: everything, nothing, and each group left out and alone."""

    def __init__(self, board: Switchboard, groups: list[_Group]) -> None:
        every = board.parts
        self._groups = groups
        self._off: list[tuple[QuantizedPart, ...]] = [(), every]
        for group in groups:
            own = frozenset(group.parts)
            self._off += [group.parts, tuple(part for part in every if part not in own)]
        self._sums = [LogitSums() for _ in self._off]

    @property
    def passes(self) -> int:
        """How often the quantized model is called for a sample."""
        return len(self._off)

    def variants(self) -> Iterator[tuple[tuple[QuantizedPart, ...], LogitSums]]:
        """Yield the parts that are to be float, and where the outputs count."""
        return zip(self._off, self._sums, strict=True)

    def result(self) -> Ablation:
        """Return the means.

        Raises:
            CalibrationError: nothing was counted.
        """
        whole, rest, *others = self._sums
        whole.require_rows()
        pairs = zip(others[::2], others[1::2], strict=True)
        lines = tuple(
            AblationLine(
                by=group.by,
                name=group.name,
                kind=group.kind,
                parts=len(group.parts),
                without=without.mean,
                alone=alone.mean,
            )
            for group, (without, alone) in zip(self._groups, pairs, strict=True)
        )
        return Ablation(lines=lines, kl=whole.mean, rest=rest.mean, rows=whole.rows)
