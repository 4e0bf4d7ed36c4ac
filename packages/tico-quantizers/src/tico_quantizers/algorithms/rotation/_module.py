"""How rotations meet a model."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import ClassVar, Final, final

from torch import nn

from tico_config import RotationConfig
from tico_modules import Edit, LayerReport, Report, RotatedInput, drop_broken_ties, named_modules
from tico_quantizers.equivalence import (
    Folds,
    FoundRotations,
    OnlineRotation,
    Rotation,
    RotationCalibration,
    Turn,
    config_of,
)
from tico_quantizers.layers import float_lines, require_in_place
from tico_quantizers.protocol import BaseQuantizer, Converted, Example, Planned

_DOES: Final = "rotates linear layers, norms and embeddings"
_UNDECIDED: Final = "decided by the data: in which rotation it is shows when the model is run"


@final
class RotationQuantizer(BaseQuantizer[RotationConfig, RotationCalibration]):
    """Rotations of the residual stream and of value heads; the model stays float and computes what it did.

    QuaRot, Ashkboos et al. 2024, arXiv 2404.00456; SpinQuant, Liu et al. 2024, arXiv 2405.16406.
    """

    checks_target: ClassVar[bool] = True

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, RotationCalibration]:
        """Find the rotations, if the example shows them, and start to watch."""
        calibration = RotationCalibration(model, self.config)
        calibration.start(model, example, edit)
        return model, calibration

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what would become of `model`: nothing of which the data do not decide."""
        rotatable = RotationCalibration(model, self.config).rotatable
        undecided = dict.fromkeys(rotatable.free(), _UNDECIDED)
        lines = float_lines(model, "rotation", rotatable.reasons, does=_DOES)
        ties = {each for head, table in rotatable.ties.items() for each in (head, rotatable.owner(table))}
        online = (path for path in rotatable.layers if self.config.resolve(path).spec.online_inputs)
        changed = tuple(module for path, module in named_modules(model) if path in undecided)
        report = Report(layers=tuple(lines[path] for path, _ in named_modules(model) if path in lines))
        return Planned(
            converted=Converted(root=model, modules=changed, report=report),
            undecided=undecided,
            unsized=frozenset([*(ties if self.config.tied_embeddings == "untie" else ()), *online]),
        )

    def convert(self, model: nn.Module, calibration: RotationCalibration, edit: Edit) -> Converted:
        """Fold a matrix into the modules of each rotation."""
        found, rotatable = calibration.rotations(), calibration.rotatable
        taking_part = {
            path for rotation in found.rotations for path in rotation.paths()
        } | found.inputs.keys()
        require_in_place(model, {path: rotatable.modules[path] for path in sorted(taking_part)})
        turns = [Turn.drawn(each, config_of(self.config, each)) for each in found.rotations]
        inputs = [
            OnlineRotation.drawn(path, layer, self.config.resolve(path).spec)
            for path, layer in found.inputs.items()
        ]
        calibration.require_same_function(model, turns, inputs, edit.offload)
        calibration.finish(model, edit)
        folds = Folds.of(turns, inputs)
        untied = {head: rotatable.owner(table) for head, table in folds.untied(rotatable).items()}
        notes = _notes(found, inputs, untied)
        norms = (each for rotation in found.rotations for each in rotation.norms)
        same = {each.path for each in norms if each.norm.is_plain}
        left = float_lines(model, "rotation", {**rotatable.reasons, **found.refused}, said=notes, does=_DOES)
        root = folds.put(model, rotatable, edit)
        drop_broken_ties(root, edit)
        return _converted(root, notes, same, left)


def _kind(module: nn.Module) -> str:
    """Return the name of the class of a module, or of the layer behind a rotation."""
    return type(module.layer if isinstance(module, RotatedInput) else module).__name__


def _notes(
    found: FoundRotations, inputs: Sequence[OnlineRotation], untied: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return what there is to say of each module that takes part in a rotation, by path."""
    notes: dict[str, list[str]] = {}
    said = (each for rotation in found.rotations for each in _said(rotation))
    online = (each for rotation in inputs for each in _said_of_input(rotation, found.adopted))
    for path, note in [*said, *online, *_said_of_ties(untied)]:
        notes.setdefault(path, [])
        notes[path] += [] if note in notes[path] else [note]
    for path in found.refused.keys() & notes.keys():
        notes[path].append(f"output not rotated: {found.refused[path]}")
    return notes


def _said(rotation: Rotation) -> Iterator[tuple[str, str]]:
    what = "the residual stream" if rotation.kind == "residual" else f"heads of {rotation.mixed}"
    what = f"{what} from {rotation.path}"
    for writer in rotation.writers:
        yield writer.path, f"output rotated: {what}"
    for reader in rotation.readers:
        yield reader.path, f"input rotated back: {what}"
    for each in rotation.norms:
        names = ", ".join(reader.path for reader in each.readers)
        is_plain = each.norm.is_plain
        yield each.path, "nothing to fold" if is_plain else f"weight folded into {names}, and set to one"
        for reader in each.readers:
            yield reader.path, f"input rotated back: {what}, through {each.path}"
    for member in rotation.members():
        if member.adopted:
            yield member.path, "no data reached it, only its peers"


def _said_of_input(rotation: OnlineRotation, adopted: Container[str]) -> Iterator[tuple[str, str]]:
    size = f"{len(rotation.outer)} * {len(rotation.inner)}"
    yield rotation.path, f"input rotated online ({size}), and back in the weight"
    if rotation.path in adopted:
        yield rotation.path, "no data reached it, only its peers"


def _said_of_ties(untied: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for head, table in untied.items():
        yield head, f"a weight of its own now, no longer tied to {table}"
        yield table, f"no longer tied to {head}"


def _converted(
    model: nn.Module,
    notes: Mapping[str, Sequence[str]],
    same: Container[str],
    left: Mapping[str, LayerReport],
) -> Converted:
    """Report what was done to each module; those of `same` were not changed, `left` has lines of others."""
    lines = tuple(
        LayerReport(path=path, module=_kind(module), algorithm="rotation", reason="; ".join(notes[path]))
        if path in notes
        else left[path]
        for path, module in named_modules(model)
        if path in notes or path in left
    )
    changed = tuple(module for path, module in named_modules(model) if path in notes and path not in same)
    return Converted(root=model, modules=changed, report=Report(layers=lines))
