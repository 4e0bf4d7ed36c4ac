"""The protocol of an algorithm: a config type, a quantizer that holds it, and the calibration it keeps."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, Protocol, TypeVar, final

import attrs
from torch import fx, nn
from torch.utils.hooks import RemovableHandle

from tico_config import BaseConfig, Found, Problem, UnsupportedError, to_json
from tico_modules import Edit, Offload, Report, Run, library_versions, model_fingerprint, remember
from tico_quantizers.calibration import (
    ALONE,
    Calibration,
    Origin,
    Ranks,
    join_ranks,
    remember_hooks,
    unchanged_process,
    watch_forward,
)

__all__ = ["AnyPrepared", "AnyQuantizer", "BaseQuantizer", "Converted", "Example", "Planned", "Prepared"]

C = TypeVar("C", bound=BaseConfig)
K = TypeVar("K", bound=Calibration)


@attrs.frozen(kw_only=True)
class Example:
    """Example inputs of a model, as `prepare` was given them."""

    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Converted:
    """What a conversion gives: the root of the model, the modules it left, and what was done.

    Raises:
        UnsupportedError: a field is something else.
    """

    root: nn.Module
    modules: tuple[nn.Module, ...]
    report: Report

    def __attrs_post_init__(self) -> None:
        """Refuse other values: a quantizer may be anybody's."""
        modules: object = self.modules
        are_modules = isinstance(modules, tuple) and all(isinstance(each, nn.Module) for each in modules)
        checks = (
            ("root", isinstance(self.root, nn.Module), "an nn.Module"),
            ("modules", are_modules, "a tuple of nn.Modules"),
            ("report", isinstance(self.report, Report), "a Report"),
        )
        problems = [
            Problem(field=f"Converted.{name}", value=getattr(self, name), expected=expected)
            for name, fits, expected in checks
            if not fits
        ]
        if problems:
            raise UnsupportedError(*problems)


@attrs.frozen(kw_only=True)
class Planned:
    """What a conversion would give, on a model whose tensors have no values.

    Attributes:
        converted: the root, with integer modules that have no codes yet (`PlannedWeight`), and the report
            that `convert` would give, without figures.
        rules: the field or override of the config that decided, by path.
        undecided: the part of a line that depends on the data, by path.
        unsized: the paths of modules whose bytes depend on the data.
        notes: what the data may change in any line.
        memory: what `convert` holds at a time besides the model and the integers, by name, in bytes.
    """

    converted: Converted
    rules: Mapping[str, str] = attrs.field(factory=dict)
    undecided: Mapping[str, str] = attrs.field(factory=dict)
    unsized: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    memory: tuple[tuple[str, int], ...] = ()


class BaseQuantizer(ABC, Generic[C, K]):
    """An algorithm. It holds hyper-parameters only; what it learns from data is the calibration.

    Attributes of the class say what it can do. `works_in_place` is False for one that works on a copy only.
    `graphs` are the classes of exported graphs that it takes besides models made of modules. `checks_target`
    is True for one whose `prepare` refuses what the `target` of its config does not take; no other can be
    given a target.
    """

    works_in_place: ClassVar[bool] = True
    checks_target: ClassVar[bool] = False
    graphs: ClassVar[tuple[type[fx.GraphModule], ...]] = ()

    def __init__(self, config: C) -> None:
        self.config = config

    @abstractmethod
    def prepare(self, model: nn.Module, example: Example | None, edit: Edit) -> tuple[nn.Module, K]:
        """Start watching: return the root of the model and the calibration.

        Everything wrong with model and config is raised here, before anything was changed; every change
        is made through `edit`.
        """

    @abstractmethod
    def convert(self, model: nn.Module, calibration: K, edit: Edit) -> Converted:
        """Put integers in the place of floats, through `edit`."""

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what `prepare` and `convert` would make of `model`, whose tensors have no values.

        What they would refuse is raised here, too, but for what only data can show. Unless a subclass says
        how it plans, it does not.

        Raises:
            UnsupportedError: the algorithm has no plan.
        """
        name = type(self).__name__
        raise UnsupportedError(
            Problem(
                field="quant_config",
                value=Found(type(self.config).__name__),
                expected="the config of an algorithm that plans",
                sentence=f"{name} has no plan: it does not say before it has seen data what it will do",
                remedy=f"define foresee in {name}, or call prepare and convert",
            )
        )

    @final
    def planned(self, model: nn.Module, edit: Edit) -> Planned:
        """Return the plan for `model`."""
        self._require_checked_target()
        made: object = self.foresee(model, edit)
        if not isinstance(made, Planned):
            raise _not_returned(self, "foresee", made, "a Planned")
        return made

    @final
    def start(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, Prepared[C, K]]:
        """Prepare and return the root with everything that `convert` will need."""
        self._require_checked_target()
        origin = Origin(config=to_json(self.config), model=model_fingerprint(model))
        edit.on_undo(remember_hooks(model))
        with unchanged_process():
            root, calibration = self._prepared(model, example, edit)
        prepared = Prepared(self, calibration, watch_forward(root, calibration), origin, edit.offload)
        edit.on_undo(prepared.stop_watching)
        return root, prepared

    def _require_checked_target(self) -> None:
        """Refuse a target that nobody would look at.

        Raises:
            UnsupportedError: the config has one.
        """
        target = self.config.target
        if target is not None and not self.checks_target:
            name = type(self).__name__
            raise UnsupportedError(
                Problem(
                    field="target",
                    value=target,
                    expected="None",
                    sentence=f"{name} does not check what {target.runtime} takes",
                    remedy="leave target out, or have prepare check the model and set checks_target",
                )
            )

    def _prepared(self, model: nn.Module, example: Example | None, edit: Edit) -> tuple[nn.Module, K]:
        made = self.prepare(model, example, edit)
        match made:
            case (nn.Module(), Calibration()):
                return made
            case _:
                raise _not_returned(self, "prepare", made, "a pair of an nn.Module and a Calibration")


def _not_returned(quantizer: object, method: str, made: object, expected: str) -> UnsupportedError:
    name = f"the result of {type(quantizer).__name__}.{method}"
    return UnsupportedError(Problem(field=name, value=made, expected=expected))


class Prepared(Generic[C, K]):
    """A quantizer in the middle of its work on one model."""

    def __init__(
        self,
        quantizer: BaseQuantizer[C, K],
        calibration: K,
        handles: tuple[RemovableHandle, ...],
        origin: Origin,
        offload: Offload | None,
    ) -> None:
        self._quantizer = quantizer
        self._handles = handles
        self._origin = origin
        self.calibration = calibration
        self.offload = offload

    @property
    def config(self) -> BaseConfig:
        """The config that the model was prepared with."""
        return self._quantizer.config

    @property
    def origin(self) -> Origin:
        """What the preparation started from."""
        return self._origin

    def convert(self, model: nn.Module, edit: Edit, ranks: Ranks = ALONE) -> nn.Module:
        """Finish the work and return the root; hooks go and modules learn of it once all has succeeded."""
        start = time.perf_counter()
        edit.on_commit(self.stop_watching)
        edit.on_undo(remember_hooks(model))
        self.calibration.pause(edit)
        if ranks.count > 1:
            with unchanged_process():
                join_ranks(model, self.calibration, self._origin, edit, ranks)
        with unchanged_process():
            converted: object = self._quantizer.convert(model, self.calibration, edit)
        if not isinstance(converted, Converted):
            raise _not_returned(self._quantizer, "convert", converted, "a Converted")
        data = self.calibration.data
        run = Run(
            report=converted.report,
            config=self._origin.config,
            model=self._origin.model,
            data=data.text,
            calls=data.calls,
            versions=library_versions(),
            seconds=time.perf_counter() - start,
        )
        remember(converted.modules, run, edit)
        return converted.root

    def stop_watching(self) -> None:
        """Remove every hook that `prepare` left."""
        for handle in (*self._handles, *self.calibration.handles):
            handle.remove()


class AnyPrepared(Protocol):
    """A `Prepared` of any config and calibration."""

    @property
    def config(self) -> BaseConfig:
        """The config that the model was prepared with."""

    @property
    def origin(self) -> Origin:
        """What the preparation started from."""

    @property
    def calibration(self) -> Calibration:
        """What was seen so far."""

    @property
    def offload(self) -> Offload | None:
        """Where tensors go that do not fit into memory; None if all do."""

    def convert(self, model: nn.Module, edit: Edit, ranks: Ranks = ALONE) -> nn.Module:
        """Finish the work, together with the other `ranks`, and return the root."""


class AnyQuantizer(Protocol):
    """A `BaseQuantizer` of any config and calibration."""

    @property
    def works_in_place(self) -> bool:
        """Whether the object that was passed in can be the one that works afterwards."""

    @property
    def graphs(self) -> tuple[type[fx.GraphModule], ...]:
        """The classes of exported graphs that it works on."""

    def start(self, model: nn.Module, example: Example | None, edit: Edit) -> tuple[nn.Module, AnyPrepared]:
        """Prepare the model."""

    def planned(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what would become of the model."""
